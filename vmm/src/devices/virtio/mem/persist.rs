//! What is saved of plugged memory beside the device's queue.

use serde::{Deserialize, Serialize};

/// What is plugged, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMem {
    /// Bytes of the region that are guest memory.
    pub usable: u64,
    /// Bytes that shall be plugged.
    pub requested: u64,
    /// A bit for each block of the usable part: whether it is plugged.
    pub plugged: Vec<u64>,
}

/// Saved memory that does not fit the VM.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the snapshot's plugged memory does not fit the VM")]
pub struct Misfit;
