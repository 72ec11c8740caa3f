//! Features, configuration space and limits of virtio-fs.

use crate::devices::virtio::feature;
use crate::slots::FS_TAG;

/// The queue of requests that overtake others (FORGET), and the queue of all others.
pub const QUEUES: usize = 2;
/// Their sizes. Linux makes no request with more pages than its queue is long, and 1 MiB
/// of data is 256 pages.
pub const QUEUE_SIZES: [u16; QUEUES] = [64, 512];
/// Features offered.
pub const FEATURES: u64 = feature::COMMON;

/// `struct fuse_in_header`, which starts every request.
pub const IN_HEADER: usize = 40;
/// `struct fuse_out_header`, which starts every answer.
pub const OUT_HEADER: usize = 16;

/// Bytes of the tag.
const TAG_SIZE: usize = 36;

/// `struct virtio_fs_config`.
pub fn space() -> Vec<u8> {
    let mut space = FS_TAG.as_bytes().to_vec();
    space.resize(TAG_SIZE, 0);
    // num_request_queues
    space.extend_from_slice(&1u32.to_le_bytes());
    space
}
