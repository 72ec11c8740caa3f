//! What is saved of the socket device beside its queues. The other ends of its connections
//! are processes of the host: the sockets that lead to them go from VMM to VMM, or those
//! connections are gone.

use serde::{Deserialize, Serialize};

use super::connection::Flow;
use super::packet::Header;

/// The socket device, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVsock {
    /// The guest has said that it is ready.
    pub guest_ready: bool,
    /// The host's port of the next connection: of an earlier one the guest may still send
    /// something, which must not be taken for the new one's.
    pub next_port: u32,
    /// Its connections.
    pub connections: Vec<Flow>,
    /// Answers that the guest has not taken yet.
    pub replies: Vec<Header>,
}
