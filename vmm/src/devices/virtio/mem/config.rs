//! Features and configuration space of virtio-mem.

use crate::devices::virtio::feature;

/// Size of the one queue; Linux makes one request at a time.
pub const QUEUE_SIZE: u16 = 16;
/// Memory is plugged and unplugged in blocks of this size: what Linux can isolate at
/// least, and a huge page of the host.
pub const BLOCK_SIZE: u64 = 2 << 20;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver leaves memory alone that is not plugged.
pub const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// Features offered.
pub const FEATURES: u64 = feature::COMMON | F_UNPLUGGED_INACCESSIBLE;
/// Features without which a driver would touch what is not there.
pub const REQUIRED: u64 = feature::VERSION_1 | F_UNPLUGGED_INACCESSIBLE;

/// The numbers of `struct virtio_mem_config`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Guest address of the region.
    pub start: u64,
    /// What the region can have at most.
    pub region: u64,
    /// How much of the region the guest may plug blocks in.
    pub usable: u64,
    /// What is plugged.
    pub plugged: u64,
    /// What shall be.
    pub requested: u64,
}

impl Numbers {
    /// As the driver reads them.
    pub fn space(&self) -> [u8; 56] {
        let mut space = [0; 56];
        let fields = [
            (0, BLOCK_SIZE),
            (16, self.start),
            (24, self.region),
            (32, self.usable),
            (40, self.plugged),
            (48, self.requested),
        ];
        for (offset, value) in fields {
            space[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        space
    }
}
