//! The whole protocol between the caller's side and a process that it has made, over one socket of
//! packets. A process that becomes its command closes the socket by doing so.
//!
//! | from the process | from the caller |
//! | --- | --- |
//! | `Forked`: the real process, made by a helper | |
//! | | `Placed`: it is in its cgroup, go on (where it is not born there) |
//! | | `Mapped`: its ids are mapped, go on |
//! | `MountsReady`: hooks may run | `HooksDone` |
//! | `Terminal` with the master's descriptor | |
//! | `Listener`: the descriptor of its filter, for an agent | `ListenerTaken` |
//! | `Ready`: set up, waits for `Start` on a connection of its own | `Start` |
//! | `Executing`, then the end of the connection | |
//! | `Failed` at any time, instead of all the rest | |

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// One message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Message {
    /// A helper has made the real process and is about to exit.
    Forked {
        /// Its id as the helper sees it, which is as the caller does.
        pid: u32,
    },
    /// The process is in its cgroup.
    Placed,
    /// The ids of the process's new user namespace are mapped.
    Mapped,
    /// The mounts of the container are made, its root is not yet entered.
    MountsReady,
    /// The hooks of the caller's side have run.
    HooksDone,
    /// The master side of the process's terminal comes with this message.
    Terminal,
    /// All that can be done before the command is done.
    Ready,
    /// Run the command.
    Start,
    /// The process is under a filter that leaves calls to an agent. Written and read, not sent and
    /// received: the fewer calls a profile must allow the better.
    Listener {
        /// The number of the filter's descriptor in the process.
        fd: i32,
    },
    /// The agent has the descriptor, go on.
    ListenerTaken,
    /// The next thing is `execve`.
    Executing,
    /// The process has given up.
    Failed(Failure),
}

/// Why a process gave up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// How the caller should sort it.
    pub kind: FailureKind,
    /// The step that failed.
    pub stage: String,
    /// What went wrong.
    pub text: String,
}

/// How the caller should sort a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    /// A step of the set-up.
    Step,
    /// The command is not there.
    CommandNotFound,
    /// The command is there and cannot be run.
    CommandNotExecutable,
}

/// The result of a step in a process.
pub(crate) type Step<T> = Result<T, Failure>;

/// Names the step that an error comes from.
pub(crate) trait Stage<T> {
    /// With a name made only when it is needed.
    fn stage<S: Into<String>>(self, name: impl FnOnce() -> S) -> Step<T>;
}

impl<T, E: fmt::Display> Stage<T> for Result<T, E> {
    fn stage<S: Into<String>>(self, name: impl FnOnce() -> S) -> Step<T> {
        self.map_err(|error| Failure {
            kind: FailureKind::Step,
            stage: name().into(),
            text: error.to_string(),
        })
    }
}

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// The longest message; an error's text is cut to fit.
const LONGEST: usize = 32 * 1024;

impl Channel {
    /// Two ends: the caller's and the process's.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// Sends a message, with a descriptor if given.
    pub(crate) fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(&shortened(message))?;
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Hands the descriptor of the calling process's filter to its agent, by way of the caller.
    pub(crate) fn offer_listener(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let message = Message::Listener {
            fd: listener.as_raw_fd(),
        };
        rustix::io::write(&self.0, &serde_json::to_vec(&message)?)?;
        let mut answer = [0u8; 64];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut answer))?;
        match serde_json::from_slice(&answer[..length]) {
            Ok(Message::ListenerTaken) => Ok(()),
            _ => Err(io::Error::other("the caller has not taken it")),
        }
    }

    /// Waits for the next message and its descriptor; `None` when the other side has closed.
    pub(crate) fn receive(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        self.receive_with(RecvFlags::empty())
    }

    /// As [`Self::receive`], but when none has come the error is [`io::ErrorKind::WouldBlock`].
    pub(crate) fn receive_now(&self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        self.receive_with(RecvFlags::DONTWAIT)
    }

    /// Returns when there is a message, or the end.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        Ok(())
    }

    fn receive_with(&self, flags: RecvFlags) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = vec![0u8; LONGEST + 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Ok(received) => received,
            // A process that ended with unread messages.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let fd = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .next();
        if received.bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..received.bytes])?;
        Ok(Some((message, fd)))
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The message with its texts cut so that it fits, even if every byte needs six in JSON.
fn shortened(message: &Message) -> Message {
    let mut message = message.clone();
    if let Message::Failed(failure) = &mut message {
        for text in [&mut failure.stage, &mut failure.text] {
            let mut end = (LONGEST / 16).min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_a_descriptor_arrive_together() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&Message::Terminal, Some(one.as_fd())).unwrap();
        let (message, fd) = other.receive().unwrap().unwrap();
        assert!(matches!(message, Message::Terminal));
        assert!(fd.is_some());
        drop(fd);
        drop(one);
        assert!(other.receive().unwrap().is_none());
    }

    #[test]
    fn a_long_text_is_cut() {
        let (one, other) = Channel::pair().unwrap();
        let failure = Failure {
            kind: FailureKind::Step,
            stage: "\u{1}".repeat(100_000),
            text: "ä".repeat(100_000),
        };
        one.send(&Message::Failed(failure), None).unwrap();
        let (message, _) = other.receive().unwrap().unwrap();
        let Message::Failed(failure) = message else {
            panic!("{message:?}");
        };
        assert!(failure.text.starts_with("ää") && failure.text.len() <= LONGEST);
    }
}
