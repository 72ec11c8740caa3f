//! The header before each packet (`struct virtio_vsock_hdr`).

use serde::{Deserialize, Serialize};

use super::config::{BUFFER, GUEST_CID, HOST_CID};
use crate::le::{u16_at, u32_at, u64_at};

/// Length of a header in bytes.
pub const HEADER_SIZE: usize = 44;

/// Socket type: stream.
pub const TYPE_STREAM: u16 = 1;

/// Operations.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends one.
    pub const RST: u16 = 3;
    /// Says that no more will be sent, received, or both.
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Says how much was forwarded.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flag of SHUTDOWN: the sender of the packet will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of SHUTDOWN: the sender of the packet will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A header, in the byte order of the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Sender's address.
    pub src_cid: u64,
    /// Receiver's address.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation, see [`op`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of it so far, wrapping.
    pub fwd_cnt: u32,
}

impl Header {
    /// A packet of ours for a port of the guest.
    pub fn to_guest(host_port: u32, guest_port: u32, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: host_port,
            dst_port: guest_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: BUFFER,
            ..Self::default()
        }
    }

    /// The reset that answers a packet of the guest; keeps its socket type, as the
    /// driver finds the socket by it.
    pub fn reset_of(packet: &Self) -> Self {
        Self {
            kind: packet.kind,
            buf_alloc: 0,
            ..Self::to_guest(packet.dst_port, packet.src_port, op::RST)
        }
    }

    /// Reads a header.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Self {
        Self {
            src_cid: u64_at(bytes, 0),
            dst_cid: u64_at(bytes, 8),
            src_port: u32_at(bytes, 16),
            dst_port: u32_at(bytes, 20),
            len: u32_at(bytes, 24),
            kind: u16_at(bytes, 28),
            op: u16_at(bytes, 30),
            flags: u32_at(bytes, 32),
            buf_alloc: u32_at(bytes, 36),
            fwd_cnt: u32_at(bytes, 40),
        }
    }

    /// Writes a header.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let bytes: [u8; HEADER_SIZE] = std::array::from_fn(|i| i as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.to_bytes(), bytes);
    }
}
