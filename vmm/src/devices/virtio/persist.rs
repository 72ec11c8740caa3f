//! What is saved of a device: its registers, and its queues where it had got to.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};

/// A queue, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    max_size: u16,
    size: u16,
    ready: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl SavedQueue {
    /// Takes down a queue that no device uses.
    pub fn of(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }

    /// The queue again; `None` when no device of size `most` has such a queue. Where it
    /// lies in guest memory is checked when a device takes it.
    pub fn queue(&self, most: u16) -> Option<Queue> {
        let state = QueueState {
            max_size: self.max_size,
            size: self.size,
            ready: self.ready,
            event_idx_enabled: self.event_idx,
            next_avail: self.next_avail,
            next_used: self.next_used,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        if self.max_size != most {
            return None;
        }
        Queue::try_from(state).ok()
    }
}

/// A device behind its registers, as plain data. What only one kind of device has
/// beside its queues is saved apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTransport {
    /// The device status register.
    pub status: u32,
    /// See the register of this name, as for the next four.
    pub device_features_page: u32,
    /// The same.
    pub driver_features_page: u32,
    /// The same.
    pub driver_features: u64,
    /// The same.
    pub queue: u32,
    /// Why the interrupt was raised.
    pub interrupt: u32,
    /// How often the configuration space has changed.
    pub generation: u32,
    /// Queues that a driver sets up.
    pub queues: Vec<SavedQueue>,
    /// Queues that the device works on; `None` while there is no driver.
    pub live: Option<Vec<SavedQueue>>,
}

/// A saved device cannot be had back.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RestoreError {
    /// The VM has other devices.
    #[error("the snapshot has {found} devices where this VM has {expected}")]
    Count {
        /// Devices in the snapshot.
        found: usize,
        /// Devices of this VM.
        expected: usize,
    },
    /// A queue is none of the device's, or not in guest memory.
    #[error("the snapshot's device {0} has impossible queues")]
    Queues(usize),
    /// Its driver relies on what the device does not do here.
    #[error("the snapshot's device {0} was used with features that it does not have here")]
    Features(usize),
}
