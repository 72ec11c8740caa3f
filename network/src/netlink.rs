//! Blocking rtnetlink: ask for a table, order a change.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, socket,
};

/// The most the kernel puts into one datagram of a dump, when the receiver
/// offers as much.
const BUFFER_BYTES: usize = 32 << 10;
/// Netlink messages start at multiples of this.
const ALIGNMENT: usize = 4;
/// How often a table that changes under the reader is read anew.
const DUMP_ATTEMPTS: usize = 8;

/// Why a request over rtnetlink failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The socket failed.
    #[error("the rtnetlink socket failed")]
    Socket(#[source] io::Error),
    /// The kernel refused the request.
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
    /// The kernel's answer is not understood.
    #[error("the kernel's answer is not understood")]
    Malformed(#[source] DecodeError),
    /// The table changed each time it was read.
    #[error("the table kept changing while it was read; is another process configuring it?")]
    Unsettled,
}

impl NetlinkError {
    /// The kernel's reason, where it refused.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self::Socket(errno.into())
    }
}

/// A socket to the rtnetlink of the namespace it was opened in.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What one datagram brought.
enum Progress {
    More,
    Done,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// All entries that answer `request`.
    pub(crate) fn dump(
        &mut self,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(request.clone(), NLM_F_DUMP)?;
            let mut entries = Vec::new();
            let mut consistent = true;
            while let Progress::More = self.receive(&mut entries, &mut consistent)? {}
            if consistent {
                return Ok(entries);
            }
        }
        Err(NetlinkError::Unsettled)
    }

    /// Orders a change and waits until it is made.
    pub(crate) fn execute(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.send(request, NLM_F_ACK | flags)?;
        while let Progress::More = self.receive(&mut Vec::new(), &mut true)? {}
        Ok(())
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes in one datagram: entries, the end of a dump, or an acknowledgement.
    fn receive(
        &mut self,
        entries: &mut Vec<RouteNetlinkMessage>,
        consistent: &mut bool,
    ) -> Result<Progress, NetlinkError> {
        let length = loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
                // Another process may write to this socket; only the kernel is 0.
                Ok((length, Some(sender))) if sender.pid() == 0 => break length,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(NetlinkError::Malformed)?;
            let step = (message.header.length as usize).next_multiple_of(ALIGNMENT);
            rest = rest.get(step.max(ALIGNMENT)..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                // What is left of a dump that was given up.
                continue;
            }
            if message.header.flags & NLM_F_DUMP_INTR != 0 {
                *consistent = false;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(entry) => entries.push(entry),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(NetlinkError::Refused(io::Error::from_raw_os_error(
                        -done.code,
                    )));
                }
                NetlinkPayload::Done(_) => return Ok(Progress::Done),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(Progress::Done),
                NetlinkPayload::Error(error) => return Err(NetlinkError::Refused(error.to_io())),
                _ => {}
            }
        }
        Ok(Progress::More)
    }
}
