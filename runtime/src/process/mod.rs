//! Processes of a container: what the caller gives and gets, the caller's side of making one
//! ([`launch`]), and what runs on the other side: [`init`] for a container's first process,
//! [`join`] for one that is added, [`finish`] for the end that both have in common.

mod command;
mod finish;
mod init;
mod join;
mod launch;
pub(crate) mod message;

#[cfg(feature = "criu")]
pub(crate) use finish::connect;
pub use launch::Launching;
pub(crate) use launch::{Place, create, exec};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};

use crate::sys;

/// How a process is connected.
#[derive(Debug)]
pub enum Io {
    /// The three standard streams.
    Files {
        /// File descriptor 0.
        stdin: OwnedFd,
        /// File descriptor 1.
        stdout: OwnedFd,
        /// File descriptor 2.
        stderr: OwnedFd,
    },
    /// A pseudo terminal from the container's own devpts.
    Terminal {
        /// The first size; without it that of the spec, if any, else the kernel's 0x0.
        size: Option<TerminalSize>,
    },
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A process made by the engine. It is a child of the caller, who reaps it.
#[derive(Debug)]
pub struct Launched {
    /// Its process id as the caller sees it.
    pub pid: u32,
    /// A descriptor of it: readable when it has ended.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when it has one.
    pub terminal: Option<OwnedFd>,
}

impl Launched {
    /// Sends it a signal by number.
    ///
    /// # Errors
    /// What the kernel says: `ESRCH` when it has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::send_signal(self.pidfd.as_fd(), signal)
    }
}

/// A descriptor of the process that has this id now.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?)
}

/// Kills a child and collects it. It may have ended by itself; it is collected either way.
pub(crate) fn end(pidfd: BorrowedFd<'_>) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let _ = reap(pidfd);
}

/// Waits for the end of a child and collects it.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<WaitIdStatus>> {
    Ok(rustix::io::retry_on_intr(|| {
        waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
    })?)
}
