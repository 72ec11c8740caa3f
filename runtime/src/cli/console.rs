//! Unix sockets over which a caller is sent a descriptor.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// What callers are told about the master side of a terminal.
pub(super) const NAME: &str = "/dev/ptmx";

/// A connection to the caller.
pub(super) struct Socket {
    stream: UnixStream,
    path: String,
}

impl Socket {
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {name}"))?;
        Ok(Self { stream, path: name })
    }

    /// Sends a descriptor with a name.
    pub(super) fn send(&self, name: &str, fd: &OwnedFd) -> Result<()> {
        send(&self.stream, name, fd).with_context(|| format!("send a descriptor to {}", self.path))
    }
}

/// Sends a message with a descriptor.
pub(super) fn send(socket: impl AsFd, message: &str, fd: &OwnedFd) -> Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(
        control.push(SendAncillaryMessage::ScmRights(&fds)),
        "no room for a descriptor"
    );
    let data = [IoSlice::new(message.as_bytes())];
    sendmsg(socket, &data, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
