//! Features, configuration space and limits of virtio-vsock.

use crate::devices::virtio::feature;

/// The guest's address. Each VM has a vsock of its own, so it never varies.
pub const GUEST_CID: u64 = 3;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// The one port of the host that the guest may dial, once it is ready.
pub const READY_PORT: u32 = 1;
/// Host ports of connections count up from here.
pub const FIRST_HOST_PORT: u32 = 1 << 30;

/// Receive, transmit and event queue.
pub const QUEUE_SIZES: [u16; 3] = [128, 128, 4];
/// What the guest is told on the event queue when all its connections are gone
/// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET).
pub const TRANSPORT_RESET: u32 = 0;
/// Features offered: stream sockets need none.
pub const FEATURES: u64 = feature::COMMON;
/// `struct virtio_vsock_config`.
pub const SPACE: [u8; 8] = GUEST_CID.to_le_bytes();

/// Bytes that the guest may have under way in one connection: what we keep for a
/// host that does not read.
pub const BUFFER: u32 = 256 * 1024;
/// Most data of one packet.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 4096;
/// Most replies to packets that belong to no connection which wait for receive
/// buffers; beyond it the guest's packets wait too.
pub const MAX_REPLIES: usize = 64;
