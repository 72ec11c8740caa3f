//! Features and configuration space of virtio-net.

use crate::devices::virtio::feature;
use crate::spec::NetSpec;

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
const F_MTU: u64 = 1 << 3;
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
const BASIC: u64 = feature::COMMON | F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS;
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
pub const TAP_OFFLOADS: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
/// What is added with it.
pub const TAP_UDP_OFFLOADS: u32 = TUN_F_USO4 | TUN_F_USO6;

/// MAC of a NIC without a network: locally administered.
const IDLE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const IDLE_MTU: u16 = 1500;
const LINK_UP: u16 = 1;

/// Which offloads the TAP has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums and TCP segmentation.
    Tcp,
    /// UDP segmentation as well.
    TcpAndUdp,
}

/// Features of a NIC.
pub fn features(offloads: Offloads) -> u64 {
    let udp = match offloads {
        Offloads::Tcp => 0,
        Offloads::TcpAndUdp => UDP_OFFLOADS,
    };
    BASIC | OFFLOADS | udp
}

/// `struct virtio_net_config`; without a network the link is down.
pub fn space(spec: Option<&NetSpec>) -> Vec<u8> {
    let (mac, mtu, status) = match spec {
        Some(spec) => (spec.mac, spec.mtu, LINK_UP),
        None => (IDLE_MAC, IDLE_MTU, 0),
    };
    let mut space = mac.to_vec();
    space.extend_from_slice(&status.to_le_bytes());
    // max_virtqueue_pairs
    space.extend_from_slice(&1u16.to_le_bytes());
    space.extend_from_slice(&mtu.to_le_bytes());
    space
}
