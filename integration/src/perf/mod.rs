//! Benches: what they measure ([`microvm`], [`firecracker`], [`oci`], [`memory`]), what they write
//! ([`report`]) and how that is drawn ([`waterfall`]).
//!
//! They run inside the test host, under the virtual clock (one instruction, one
//! nanosecond), so that the host's own `Instant` is the stopwatch.

pub mod firecracker;
pub mod memory;
pub mod microvm;
pub mod oci;
pub mod report;
pub mod waterfall;
