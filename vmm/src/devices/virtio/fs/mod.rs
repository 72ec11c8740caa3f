//! virtio-fs (specification 5.11): a relay between the guest and virtiofsd.
//!
//! The daemon never sees guest memory: it shares an arena of some MiB with the VMM, in
//! which the VMM is the driver of two virtqueues of its own. A request is copied from the
//! guest's queue into a slot of the arena, its answer is copied back.

mod backend;
mod config;
mod device;
mod handshake;
mod metrics;
mod persist;
mod ring;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use backend::Backend;
pub use device::{AttachError, Fs};
pub use handshake::{HandshakeError, connect};
pub use metrics::{FsCounters, FsStats};
pub use persist::SavedFs;
