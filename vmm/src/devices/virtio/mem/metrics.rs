//! Counters of plugged memory.

use serde::{Deserialize, Serialize};

use crate::metrics::{Counter, Gauge};

/// What was plugged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemStats {
    /// Bytes that the guest was asked to have beyond what it booted with.
    pub requested_bytes: u64,
    /// Bytes that it has.
    pub plugged_bytes: u64,
    /// Requests of the guest that were carried out.
    pub requests: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// Counters behind [`MemStats`].
#[derive(Debug, Default)]
pub struct MemCounters {
    /// See [`MemStats::requested_bytes`].
    pub requested_bytes: Gauge,
    /// See [`MemStats::plugged_bytes`].
    pub plugged_bytes: Gauge,
    /// See [`MemStats::requests`].
    pub requests: Counter,
    /// See [`MemStats::refused`].
    pub refused: Counter,
}

impl MemCounters {
    /// Their values now.
    pub fn stats(&self) -> MemStats {
        MemStats {
            requested_bytes: self.requested_bytes.get(),
            plugged_bytes: self.plugged_bytes.get(),
            requests: self.requests.get(),
            refused: self.refused.get(),
        }
    }
}
