//! Benches: what they measure ([`microvm`], [`firecracker`], [`oci`], [`memory`], [`busy`]), what
//! they write ([`report`]), how that is drawn ([`waterfall`]), and what it may come to
//! ([`budget`]).
//!
//! They run inside the test host, under the virtual clock (one instruction, one
//! nanosecond), so that the host's own `Instant` is the stopwatch.

pub mod budget;
pub mod busy;
pub mod firecracker;
pub mod memory;
pub mod microvm;
pub mod oci;
pub mod report;
pub mod waterfall;
