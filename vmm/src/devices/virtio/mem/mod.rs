//! virtio-mem (specification 5.15): memory that comes and goes, block by block, while the
//! guest runs. Not there for a driver when the VM has no address space for it.

mod blocks;
mod config;
mod device;
mod metrics;
mod persist;

pub use config::BLOCK_SIZE;
pub use device::{Mem, ResizeError};
pub use metrics::{MemCounters, MemStats};
pub use persist::SavedMem;
