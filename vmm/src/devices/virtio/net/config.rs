//! Features and configuration space of virtio-net.

use serde::{Deserialize, Serialize};

use crate::devices::virtio::feature;

/// Size of the receive and of the transmit queue.
pub const QUEUE_SIZE: u16 = 256;
/// Length of `struct virtio_net_hdr_v1`, before each packet on queue and TAP.
pub const HEADER_SIZE: usize = 12;
/// Offset in it of the number of buffers that a received packet fills.
pub const NUM_BUFFERS: usize = 10;
/// Largest packet with its header: 64 KiB of TCP payload and headers.
pub const MAX_PACKET: usize = 65562 + HEADER_SIZE;
/// Smallest packet with its header: an Ethernet header.
pub const MIN_PACKET: usize = HEADER_SIZE + 14;

/// Feature bits.
const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_GUEST_USO4: u64 = 1 << 54;
const F_GUEST_USO6: u64 = 1 << 55;
const F_HOST_USO: u64 = 1 << 56;

/// A packet may fill several buffers: without it each would have to hold 64 KiB.
pub const REQUIRED: u64 = feature::VERSION_1 | F_MRG_RXBUF;
/// Offered in any case.
const BASIC: u64 = feature::COMMON | F_MAC | F_MRG_RXBUF | F_STATUS;
/// Offered when the TAP takes and gives such packets.
const OFFLOADS: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN;
/// Offered when the TAP knows UDP segmentation too (Linux 6.2).
const UDP_OFFLOADS: u64 = F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO;

/// TAP offload flags (linux/if_tun.h).
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;
const TUN_F_TSO_ECN: u32 = 8;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;
/// What the guest is offered without UDP segmentation.
const TAP_OFFLOADS: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
/// What is added with it.
const TAP_UDP_OFFLOADS: u32 = TUN_F_USO4 | TUN_F_USO6;

/// The MAC that every NIC starts with: the pod's own is set by the guest, since all
/// VMs are restored from one. Locally administered.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const LINK_UP: u16 = 1;

/// Which offloads the TAP has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offloads {
    /// Checksums and TCP segmentation.
    Tcp,
    /// UDP segmentation as well (Linux 6.2).
    TcpAndUdp,
}

/// TUN_F_* flags of what a NIC offers.
pub fn tap_offloads(offloads: Offloads) -> u32 {
    match offloads {
        Offloads::Tcp => TAP_OFFLOADS,
        Offloads::TcpAndUdp => TAP_OFFLOADS | TAP_UDP_OFFLOADS,
    }
}

/// Features of a NIC.
pub fn features(offloads: Offloads) -> u64 {
    let udp = match offloads {
        Offloads::Tcp => 0,
        Offloads::TcpAndUdp => UDP_OFFLOADS,
    };
    BASIC | OFFLOADS | udp
}

/// `struct virtio_net_config`.
pub fn space() -> Vec<u8> {
    let mut space = MAC.to_vec();
    space.extend_from_slice(&LINK_UP.to_le_bytes());
    // max_virtqueue_pairs
    space.extend_from_slice(&1u16.to_le_bytes());
    space
}
