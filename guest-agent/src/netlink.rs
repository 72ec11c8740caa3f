//! Just enough rtnetlink: requests with attributes, one answer each.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// `NETLINK_ROUTE` is protocol 0, which rustix says by `None`.
const NETLINK_ROUTE: Option<Protocol> = None;
const HEADER: usize = 16;
const ALIGNMENT: usize = 4;
/// `NLMSG_ERROR`: the answer to every request; error number 0 means done.
const ERROR: u16 = 2;
const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
/// `NLM_F_EXCL`: fail if it is there already.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of message type `kind`, its family's fixed struct as `body`.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | FLAG_REQUEST | FLAG_ACK).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        // The values here are addresses and names; a longer one is a bug of ours.
        let length = u16::try_from(4 + data.len()).expect("an attribute has less than 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Adds an attribute that holds one other.
    pub fn nested(&mut self, kind: u16, inner: u16, data: &[u8]) -> &mut Self {
        let mut nested = Self(Vec::new());
        nested.attribute(inner, data);
        self.attribute(kind | NESTED, &nested.0)
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// A socket to the kernel's routing tables.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket, in the caller's network namespace.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            NETLINK_ROUTE,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request and takes the kernel's answer to it.
    pub fn call(&mut self, request: &mut Request) -> io::Result<()> {
        self.sequence += 1;
        send(
            &self.socket,
            request.finish(self.sequence),
            SendFlags::empty(),
        )?;
        let mut answer = [0; 1024];
        loop {
            // The kernel answers such requests before send(2) returns.
            let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT)?;
            if let Some(result) = parse_answer(&answer[..length.min(answer.len())], self.sequence) {
                return result;
            }
        }
    }
}

/// What the kernel said to request `sequence`; `None` if this is something else.
fn parse_answer(bytes: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    if kind != ERROR || word(8)? != sequence {
        return None;
    }
    Some(match word(HEADER)?.cast_signed() {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_lengths_are_not() {
        let mut request = Request::new(16, CREATE, &[0; 16]);
        request
            .attribute(3, b"eth0\0")
            .attribute(4, &1500u32.to_ne_bytes());
        let bytes = request.finish(9);
        assert_eq!(bytes.len(), 16 + 16 + 12 + 8);
        assert_eq!(bytes[0..4], 52u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
        assert_eq!(bytes[32..34], 9u16.to_ne_bytes());
    }

    #[test]
    fn answers_belong_to_their_request() {
        let mut answer = Request::new(ERROR, 0, &(-17i32).to_ne_bytes());
        let bytes = answer.finish(5).to_vec();
        assert_eq!(
            parse_answer(&bytes, 5).unwrap().unwrap_err().raw_os_error(),
            Some(17)
        );
        assert!(parse_answer(&bytes, 6).is_none());
        assert!(parse_answer(&bytes[..18], 5).is_none());
        assert!(parse_answer(&[], 5).is_none());
    }
}
