//! Counters of a block device.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// What a block device did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard and write-zeroes requests.
    pub discards: u64,
    /// Requests that failed or made no sense.
    pub errors: u64,
}

/// Counters behind [`BlockStats`].
#[derive(Debug, Default)]
pub struct BlockCounters {
    /// See [`BlockStats::reads`].
    pub reads: Counter,
    /// See [`BlockStats::read_bytes`].
    pub read_bytes: Counter,
    /// See [`BlockStats::writes`].
    pub writes: Counter,
    /// See [`BlockStats::written_bytes`].
    pub written_bytes: Counter,
    /// See [`BlockStats::flushes`].
    pub flushes: Counter,
    /// See [`BlockStats::discards`].
    pub discards: Counter,
    /// See [`BlockStats::errors`].
    pub errors: Counter,
}

impl BlockCounters {
    /// Their values now.
    pub fn stats(&self) -> BlockStats {
        BlockStats {
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            flushes: self.flushes.get(),
            discards: self.discards.get(),
            errors: self.errors.get(),
        }
    }
}
