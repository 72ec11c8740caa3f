//! virtio-balloon (specification 5.5): memory that the guest does without goes back to the
//! host, when the host asks for it (inflate) and by itself (free page reporting).

mod config;
mod device;
mod metrics;
mod persist;

pub use device::Balloon;
pub use metrics::{BalloonCounters, BalloonStats};
pub use persist::SavedBalloon;
