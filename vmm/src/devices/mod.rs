//! What the guest sees beside memory and CPUs.

pub mod bus;
pub mod serial;
pub mod virtio;
