//! Counters of the NIC.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// What the NIC did. "Received" is from the guest's point of view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStats {
    /// Packets that the guest received; with offloads one may be 64 KiB.
    pub received_packets: u64,
    /// Their bytes, headers of virtio included.
    pub received_bytes: u64,
    /// Packets that the guest sent.
    pub sent_packets: u64,
    /// Their bytes, headers of virtio included.
    pub sent_bytes: u64,
    /// Packets that the host did not take, or that made no sense.
    pub dropped: u64,
}

/// Counters behind [`NetStats`].
#[derive(Debug, Default)]
pub struct NetCounters {
    /// See [`NetStats::received_packets`].
    pub received_packets: Counter,
    /// See [`NetStats::received_bytes`].
    pub received_bytes: Counter,
    /// See [`NetStats::sent_packets`].
    pub sent_packets: Counter,
    /// See [`NetStats::sent_bytes`].
    pub sent_bytes: Counter,
    /// See [`NetStats::dropped`].
    pub dropped: Counter,
}

impl NetCounters {
    /// Their values now.
    pub fn stats(&self) -> NetStats {
        NetStats {
            received_packets: self.received_packets.get(),
            received_bytes: self.received_bytes.get(),
            sent_packets: self.sent_packets.get(),
            sent_bytes: self.sent_bytes.get(),
            dropped: self.dropped.get(),
        }
    }
}
