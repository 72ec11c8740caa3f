//! The fixed places of the devices, and what the guest calls them.

/// The tag by which the guest mounts the file system device.
pub const FS_TAG: &str = "joey";
/// Disks that have no backing until one is attached.
pub const SPARE_DISKS: u8 = 4;

/// Index of the file system device among all devices; the spare disks follow.
pub const FS: usize = 5;
/// Index of the balloon; what memory is plugged by follows.
pub const BALLOON: usize = FS + 1 + SPARE_DISKS as usize;

/// Name of a device below /sys/bus/platform/devices of the guest: Linux numbers the
/// devices of its command line in order.
pub fn platform_device(index: usize) -> String {
    format!("virtio-mmio.{index}")
}
