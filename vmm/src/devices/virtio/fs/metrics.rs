//! Counters of the file system device.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// What the file system device did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStats {
    /// Requests handed to the daemon.
    pub requests: u64,
    /// Their bytes.
    pub request_bytes: u64,
    /// Bytes of the daemon's answers.
    pub answer_bytes: u64,
    /// Times that requests waited as all slots were busy.
    pub waits: u64,
    /// Requests that made no sense, or that had no daemon to go to.
    pub errors: u64,
}

/// Counters behind [`FsStats`].
#[derive(Debug, Default)]
pub struct FsCounters {
    /// See [`FsStats::requests`].
    pub requests: Counter,
    /// See [`FsStats::request_bytes`].
    pub request_bytes: Counter,
    /// See [`FsStats::answer_bytes`].
    pub answer_bytes: Counter,
    /// See [`FsStats::waits`].
    pub waits: Counter,
    /// See [`FsStats::errors`].
    pub errors: Counter,
}

impl FsCounters {
    /// Their values now.
    pub fn stats(&self) -> FsStats {
        FsStats {
            requests: self.requests.get(),
            request_bytes: self.request_bytes.get(),
            answer_bytes: self.answer_bytes.get(),
            waits: self.waits.get(),
            errors: self.errors.get(),
        }
    }
}
