//! Features and configuration space of virtio-blk.

use super::{Disk, SECTOR};
use crate::devices::virtio::feature;

/// Size of the one queue.
pub const QUEUE_SIZE: u16 = 128;
/// Data segments of a request: the rest of the queue's descriptors are header and status.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Segments of one discard request.
pub const MAX_DISCARD_SEGMENTS: u32 = 16;
/// Sectors of one discard segment: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// VIRTIO_BLK_F_SEG_MAX.
pub const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
pub const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_FLUSH.
pub const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_DISCARD.
pub const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Features of a device with or without a disk.
pub fn features(disk: Option<&dyn Disk>) -> u64 {
    let kind = if disk.is_none_or(Disk::read_only) {
        F_RO
    } else {
        F_FLUSH | F_DISCARD | F_WRITE_ZEROES
    };
    feature::COMMON | F_SEG_MAX | kind
}

/// `struct virtio_blk_config` of a device with or without a disk.
pub fn space(disk: Option<&dyn Disk>) -> Vec<u8> {
    let mut space = vec![0; 60];
    let mut put = |offset: usize, bytes: &[u8]| {
        space[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &(disk.map_or(0, Disk::capacity) / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
    // Discard in units of 4 KiB: smaller holes free nothing.
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(52, &MAX_DISCARD_SEGMENTS.to_le_bytes());
    // write_zeroes_may_unmap
    put(56, &[1]);
    space
}
