//! Features and configuration space of virtio-balloon.

use crate::devices::virtio::feature;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: a guest that runs out of memory takes it back.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_REPORTING.
const F_REPORTING: u64 = 1 << 5;
/// Features offered.
pub const FEATURES: u64 = feature::COMMON | F_DEFLATE_ON_OOM | F_REPORTING;

/// Size of each queue. Linux reports 32 ranges at a time and takes no queue that is
/// smaller.
pub const QUEUE_SIZE: u16 = 128;
/// The queues: a queue whose feature is not offered has no number, so that the one for
/// reports follows the first two.
pub const QUEUE_SIZES: [u16; 3] = [QUEUE_SIZE; 3];
/// Places in [`QUEUE_SIZES`].
pub const INFLATE: usize = 0;
/// See [`INFLATE`].
pub const DEFLATE: usize = 1;
/// See [`INFLATE`].
pub const REPORTING: usize = 2;

/// Most page numbers of a request that are looked at; Linux sends 256.
pub const MAX_PAGES: usize = 1024;

/// `struct virtio_balloon_config` with this target. How large the balloon is, the second
/// number, is the driver's to write and nobody's to believe.
pub fn space(pages: u32) -> [u8; 8] {
    let mut space = [0; 8];
    space[..4].copy_from_slice(&pages.to_le_bytes());
    space
}
