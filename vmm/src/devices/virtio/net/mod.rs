//! virtio-net (specification 5.1) over a TAP.

mod config;
mod device;
mod metrics;

pub use device::Net;
pub use metrics::{NetCounters, NetStats};
