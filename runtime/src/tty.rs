//! Terminals: a pair from the container's own devpts, whose master goes to the caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchown, fstat, fstatfs, makedev, openat};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::TerminalSize;
use crate::process::message::{Stage, Step};
use crate::rootfs::{Root, attach, clone_tree};

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Gives the terminal behind `terminal` (its master side) a new size; the processes in the
/// foreground get SIGWINCH.
pub fn resize(terminal: BorrowedFd<'_>, size: TerminalSize) -> io::Result<()> {
    Ok(tcsetwinsize(
        terminal,
        Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?)
}

/// A new terminal in the caller's own devpts, of this size: its master side, and the one for the
/// process.
pub fn open_terminal(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let Terminal { master, slave } = Terminal::open_pair()?;
    resize(master.as_fd(), size)?;
    Ok((master, slave))
}

/// A new terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The side that the caller reads and writes.
    pub master: OwnedFd,
    /// The side that the process has.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Opens one in the devpts of the root that the calling process is in, owned by `uid`.
    pub(crate) fn open(uid: u32, size: Option<TerminalSize>) -> Step<Self> {
        let terminal = Self::open_pair()
            .stage(|| "open a terminal (the container needs devpts on /dev/pts)")?;
        if let Some(size) = size {
            resize(terminal.master.as_fd(), size).stage(|| "set the size of the terminal")?;
        }
        fchown(&terminal.slave, Some(Uid::from_raw(uid)), None::<Gid>)
            .stage(|| "hand the terminal to the user")?;
        Ok(terminal)
    }

    fn open_pair() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())?;
        // The image must not pass something else off as a terminal.
        if fstat(&master)?.st_rdev != makedev(5, 2)
            || fstatfs(&master)?.f_type as u64 != DEVPTS_MAGIC
        {
            return Err(io::Error::other("/dev/pts/ptmx is not of a devpts"));
        }
        unlockpt(&master)?;
        // By descriptor: no path of the container is trusted to lead to the other side.
        let slave = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        Ok(Self { master, slave })
    }

    /// Mounts the process's side on /dev/console.
    pub(crate) fn mount_console(&self, root: &Root) -> Step<()> {
        let mount = || {
            // A link there would put the terminal over some other file.
            let place = root.make_plain_file(Path::new("/dev/console"))?;
            let tree = clone_tree(self.slave.as_fd(), Path::new(""), false)?;
            attach(tree.as_fd(), place.as_fd())
        };
        mount().stage(|| "mount the terminal on /dev/console")
    }

    /// Makes it the controlling terminal of the calling process, which leads a session, and its
    /// standard streams.
    pub(crate) fn take(&self) -> Step<()> {
        ioctl_tiocsctty(&self.slave).stage(|| "take the terminal")?;
        rustix::stdio::dup2_stdin(&self.slave)
            .and_then(|()| rustix::stdio::dup2_stdout(&self.slave))
            .and_then(|()| rustix::stdio::dup2_stderr(&self.slave))
            .stage(|| "connect the terminal")
    }
}
