//! virtio-net (specification 5.1) over a TAP.

mod config;
mod device;
mod metrics;

pub use config::{MAC, Offloads};
pub use device::{Net, set_up_tap};
pub use metrics::{NetCounters, NetStats};
