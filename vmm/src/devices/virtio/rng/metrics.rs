//! Counters of the entropy source.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// What the entropy source did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngStats {
    /// Bytes given.
    pub bytes: u64,
    /// Times that the guest had to wait since it took too much.
    pub throttled: u64,
}

/// Counters behind [`RngStats`].
#[derive(Debug, Default)]
pub struct RngCounters {
    /// See [`RngStats::bytes`].
    pub bytes: Counter,
    /// See [`RngStats::throttled`].
    pub throttled: Counter,
}

impl RngCounters {
    /// Their values now.
    pub fn stats(&self) -> RngStats {
        RngStats {
            bytes: self.bytes.get(),
            throttled: self.throttled.get(),
        }
    }
}
