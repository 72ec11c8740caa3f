//! What is saved of the socket device beside its queues. Its connections are not: their
//! other ends are processes of the host.

use serde::{Deserialize, Serialize};

/// The socket device, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVsock {
    /// The guest has said that it is ready.
    pub guest_ready: bool,
    /// The host's port of the next connection: of an earlier one the guest may still send
    /// something, which must not be taken for the new one's.
    pub next_port: u32,
    /// The guest knows connections, which are gone after a restore.
    pub connected: bool,
}
