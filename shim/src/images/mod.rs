//! Container root filesystems: from containerd's mounts to ranges of the
//! sandbox's image window.

pub mod blobs;
pub mod rootfs;
pub mod superblock;
pub mod window;
