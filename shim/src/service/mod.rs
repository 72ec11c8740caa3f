//! containerd's services, and what they share: the pod.

pub mod node;
mod options;
mod pod;
pub mod task;

pub use pod::Pod;
