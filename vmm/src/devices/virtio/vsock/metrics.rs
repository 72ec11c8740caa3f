//! Counters of the socket device.

use serde::{Deserialize, Serialize};

use crate::metrics::Counter;

/// What the socket device did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockStats {
    /// Connections that the guest accepted.
    pub connections: u64,
    /// Connections that the guest refused, or that were reset.
    pub resets: u64,
    /// Bytes from host to guest.
    pub bytes_to_guest: u64,
    /// Bytes from guest to host.
    pub bytes_to_host: u64,
    /// Packets of the guest that made no sense.
    pub bad_packets: u64,
    /// Connections that the guest knows now.
    pub open: u64,
}

/// Counters behind [`VsockStats`].
#[derive(Debug, Default)]
pub struct VsockCounters {
    /// See [`VsockStats::connections`].
    pub connections: Counter,
    /// See [`VsockStats::resets`].
    pub resets: Counter,
    /// See [`VsockStats::bytes_to_guest`].
    pub bytes_to_guest: Counter,
    /// See [`VsockStats::bytes_to_host`].
    pub bytes_to_host: Counter,
    /// See [`VsockStats::bad_packets`].
    pub bad_packets: Counter,
}

impl VsockCounters {
    /// Their values now; what is open only the device knows.
    pub fn stats(&self) -> VsockStats {
        VsockStats {
            connections: self.connections.get(),
            resets: self.resets.get(),
            bytes_to_guest: self.bytes_to_guest.get(),
            bytes_to_host: self.bytes_to_host.get(),
            bad_packets: self.bad_packets.get(),
            open: 0,
        }
    }
}
