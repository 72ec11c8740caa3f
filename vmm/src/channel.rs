//! The control socket: one JSON document per message (SOCK_SEQPACKET), with
//! descriptors beside it (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
    listen, recvmsg, sendmsg, setsockopt, socket, socketpair,
};
use nix::sys::time::TimeVal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::MAX_FILES;
use crate::kernel_log::ring::MAX_TEXT;
use crate::sys;

/// Longest message in bytes that the VMM takes.
const MAX_ACTION: usize = 16 * 1024;

/// Longest that its owner takes. The largest is the kernel's log, whose every byte may
/// take two.
const MAX_REPLY: usize = 2 * MAX_TEXT + 1024;

/// What can go wrong on the control socket.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side has gone.
    #[error("the other side of the control socket has gone")]
    Closed,
    /// Nothing came within the time given.
    #[error("no message on the control socket within the time given")]
    Timeout,
    /// The message is longer than a receiver takes, or carries too many descriptors.
    #[error("a control message is too large ({MAX_FILES} descriptors at most)")]
    TooLarge,
    /// The message is not the JSON that was expected.
    #[error("a control message cannot be read: {0}; are VMM and client of one version?")]
    Malformed(#[from] serde_json::Error),
    /// The socket itself failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
}

/// One end of the control socket.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Longest message that is taken, in bytes.
    longest: usize,
}

impl Channel {
    /// A connected pair: the owner's end and the VMM's.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let owners = Self {
            socket: a,
            longest: MAX_REPLY,
        };
        Ok((owners, Self::new(b)))
    }

    /// The owner's end of a connection to a VMM that waits for one, at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self {
            socket,
            longest: MAX_REPLY,
        })
    }

    /// A socket at `path` at which a VMM can wait for one owner.
    pub fn listen(path: &Path) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&socket, Backlog::new(1)?)?;
        Ok(socket)
    }

    /// The VMM's end of a connection to such a socket.
    pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Self> {
        sys::accept_with(listener, 0).map(Self::new)
    }

    /// Takes the VMM's end.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            longest: MAX_ACTION,
        }
    }

    /// Bounds the time that [`Self::receive`] waits.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let time = TimeVal::new(
            i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            i64::from(timeout.subsec_micros()),
        );
        Ok(setsockopt(&self.socket, ReceiveTimeout, &time)?)
    }

    /// Sends one message with its descriptors.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MAX_REPLY || files.len() > MAX_FILES {
            return Err(ChannelError::TooLarge);
        }
        let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        match sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&text)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(ChannelError::Closed),
            Err(error) => Err(ChannelError::Io(error.into())),
        }
    }

    /// Waits for one message.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        let mut text = vec![0; self.longest];
        let mut control = cmsg_space!([std::os::fd::RawFd; MAX_FILES]);
        let (length, files, cut) = {
            let mut parts = [IoSliceMut::new(&mut text)];
            let received = loop {
                match recvmsg::<()>(
                    self.socket.as_raw_fd(),
                    &mut parts,
                    Some(&mut control),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                ) {
                    Ok(received) => break received,
                    Err(Errno::EINTR) => continue,
                    Err(Errno::EAGAIN) => return Err(ChannelError::Timeout),
                    Err(Errno::ECONNRESET) => return Err(ChannelError::Closed),
                    Err(error) => return Err(ChannelError::Io(error.into())),
                }
            };
            let cut = received
                .flags
                .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
            (received.bytes, sys::received_files(&received)?, cut)
        };
        if cut {
            return Err(ChannelError::TooLarge);
        }
        if length == 0 {
            return Err(ChannelError::Closed);
        }
        Ok((serde_json::from_slice(&text[..length])?, files))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::action::Action;

    #[test]
    fn carries_messages_and_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let mut file = File::from(sys::memory_file(c"test").unwrap());
        file.write_all(b"content").unwrap();
        let action = Action::MapImage {
            offset: 4096,
            length: 8192,
        };
        a.send(&action, &[file.as_fd()]).unwrap();
        let (received, mut files): (Action, _) = b.receive().unwrap();
        assert_eq!(received, action);
        let mut same = File::from(files.pop().unwrap());
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert!(files.is_empty());
    }

    #[test]
    fn tells_a_closed_peer_from_a_slow_one_and_from_nonsense() {
        let (a, b) = Channel::pair().unwrap();
        b.set_timeout(Duration::from_millis(1)).unwrap();
        assert!(matches!(b.receive::<Action>(), Err(ChannelError::Timeout)));
        a.send(&"nonsense", &[]).unwrap();
        assert!(matches!(
            b.receive::<Action>(),
            Err(ChannelError::Malformed(_))
        ));
        drop(a);
        assert!(matches!(b.receive::<Action>(), Err(ChannelError::Closed)));
        assert!(matches!(
            b.send(&Action::Stats, &[]),
            Err(ChannelError::Closed)
        ));
    }
}
