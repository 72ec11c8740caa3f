//! virtio-rng (specification 5.4): entropy from the host's getrandom.

mod config;
mod device;
mod metrics;

pub use device::Rng;
pub use metrics::{RngCounters, RngStats};
