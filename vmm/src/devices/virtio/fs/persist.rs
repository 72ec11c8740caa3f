//! What is saved of the file system device beside its queues. The daemon is a process of the
//! host, which stays: what it shares with the VMM goes from one to the next.

use serde::{Deserialize, Serialize};

use super::config::QUEUES;

/// The file system device, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFs {
    /// Requests that the daemon has had in each of its queues, all of them answered; `None`:
    /// there is no daemon.
    pub made: Option<[u16; QUEUES]>,
}
