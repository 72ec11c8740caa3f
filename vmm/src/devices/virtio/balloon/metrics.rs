//! Counters of the balloon.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// What the balloon did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStats {
    /// Bytes that the guest gave because it was asked to.
    pub inflated_bytes: u64,
    /// Bytes that it took back.
    pub deflated_bytes: u64,
    /// Bytes that it reported as free. The same page counts each time.
    pub reported_bytes: u64,
    /// Requests that made no sense, in whole or in part.
    pub errors: u64,
}

/// Counters behind [`BalloonStats`].
#[derive(Debug, Default)]
pub struct BalloonCounters {
    /// See [`BalloonStats::inflated_bytes`].
    pub inflated_bytes: Counter,
    /// See [`BalloonStats::deflated_bytes`].
    pub deflated_bytes: Counter,
    /// See [`BalloonStats::reported_bytes`].
    pub reported_bytes: Counter,
    /// See [`BalloonStats::errors`].
    pub errors: Counter,
}

impl BalloonCounters {
    /// Their values now.
    pub fn stats(&self) -> BalloonStats {
        BalloonStats {
            inflated_bytes: self.inflated_bytes.get(),
            deflated_bytes: self.deflated_bytes.get(),
            reported_bytes: self.reported_bytes.get(),
            errors: self.errors.get(),
        }
    }
}
