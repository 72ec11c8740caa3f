//! containerd's services, and what they share: the pod.

mod options;
mod pod;
pub mod task;

pub use pod::Pod;
