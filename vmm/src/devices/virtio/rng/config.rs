//! Features and limits of virtio-rng, which has no configuration space.

use crate::devices::virtio::feature;

/// Size of the one queue.
pub const QUEUE_SIZE: u16 = 16;
/// Features offered.
pub const FEATURES: u64 = feature::COMMON;
/// Most bytes for one request; a driver that wants more asks again.
pub const MAX_REQUEST: usize = 256;
/// Bytes that a guest may take in a burst, and that it gets back per
/// [`REFILL_MILLIS`]: enough for any program, too little to keep a host CPU busy.
pub const BURST: usize = 16 * 1024;
/// See [`BURST`].
pub const REFILL_MILLIS: u64 = 100;
