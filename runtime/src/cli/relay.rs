//! A container's terminal in the foreground: what is typed goes to it, what it shows comes back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use runtime::{TerminalSize, resize};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Bytes carried at once.
const CHUNK: usize = 4096;

/// The relay between the caller's terminal (or streams) and that of the container.
pub(super) struct Relay {
    /// The caller's terminal and how it was, when there is one.
    host: Option<(OwnedFd, Termios)>,
    master: Option<OwnedFd>,
    /// Typed, and not yet taken by the container.
    typed: Vec<u8>,
    input_ended: bool,
}

impl Relay {
    /// Finds the caller's terminal.
    pub(super) fn open() -> Result<Self> {
        let host = own_terminal()
            .map(|terminal| {
                let before = tcgetattr(&terminal).context("read the terminal's settings")?;
                anyhow::Ok((terminal, before))
            })
            .transpose()?;
        Ok(Self {
            host,
            master: None,
            typed: Vec::new(),
            input_ended: false,
        })
    }

    /// The size of the caller's terminal.
    pub(super) fn size(&self) -> Option<TerminalSize> {
        let (terminal, _) = self.host.as_ref()?;
        let size = tcgetwinsize(terminal).ok()?;
        Some(TerminalSize {
            columns: size.ws_col,
            rows: size.ws_row,
        })
    }

    /// Begins with the master side of the container's terminal. The caller's own passes everything
    /// on from here, until this is dropped.
    pub(super) fn begin(mut self, master: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context("set up the terminal")?;
        self.master = Some(master);
        if let Some((terminal, before)) = &self.host {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(terminal, OptionalActions::Drain, &raw).context("set up the terminal")?;
        }
        Ok(self)
    }

    /// Gives the container's terminal the size of the caller's.
    pub(super) fn resize(&self) {
        if let (Some(master), Some(size)) = (&self.master, self.size()) {
            // The container's side may be gone.
            let _ = resize(master.as_fd(), size);
        }
    }

    /// What to wait for: the caller's input, then the container's terminal.
    pub(super) fn wanted(&self) -> Vec<PollFd<'_>> {
        let Some(master) = &self.master else {
            return Vec::new();
        };
        let mut flags = PollFlags::IN;
        if !self.typed.is_empty() {
            flags |= PollFlags::OUT;
        }
        let mut fds = vec![PollFd::new(master, flags)];
        if !self.input_ended && self.typed.is_empty() {
            fds.push(PollFd::from_borrowed_fd(input(), PollFlags::IN));
        }
        fds
    }

    /// Carries what there is. `ready` is what [`Self::wanted`] has become.
    pub(super) fn carry(&mut self, ready: &[PollFlags]) -> Result<()> {
        let some = |at: usize| ready.get(at).is_some_and(|flags| !flags.is_empty());
        if some(1) {
            self.read_input();
        }
        if some(0) {
            self.show()?;
        }
        self.type_on();
        Ok(())
    }

    /// Shows what a container that has ended has written.
    pub(super) fn drain(&mut self) -> Result<()> {
        while self.show()? {}
        Ok(())
    }

    fn read_input(&mut self) {
        let mut buffer = [0; CHUNK];
        match rustix::io::read(input(), &mut buffer) {
            Ok(0) => self.input_ended = true,
            Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input_ended = true,
        }
    }

    fn type_on(&mut self) {
        let Some(master) = &self.master else { return };
        if self.typed.is_empty() {
            return;
        }
        match rustix::io::write(master, &self.typed) {
            Ok(length) => drop(self.typed.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody reads it any more.
            Err(_) => self.typed.clear(),
        }
    }

    /// Shows one piece; false when there is none.
    fn show(&mut self) -> Result<bool> {
        let Some(master) = &self.master else {
            return Ok(false);
        };
        let mut buffer = [0; CHUNK];
        match rustix::io::read(master, &mut buffer) {
            Ok(length @ 1..) => {
                let mut left = &buffer[..length];
                while !left.is_empty() {
                    match rustix::io::write(rustix::stdio::stdout(), left) {
                        Ok(written) => left = &left[written..],
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error).context("write to standard output"),
                    }
                }
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // EIO: the last process with the other side has gone.
            Ok(_) | Err(_) => {
                self.master = None;
                Ok(false)
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some((terminal, before)) = &self.host {
            // The caller may have closed its terminal.
            let _ = tcsetattr(terminal, OptionalActions::Drain, before);
        }
    }
}

fn input() -> BorrowedFd<'static> {
    rustix::stdio::stdin()
}

/// The terminal among the caller's streams, else the one that controls this process.
fn own_terminal() -> Option<OwnedFd> {
    [
        rustix::stdio::stderr(),
        rustix::stdio::stdout(),
        rustix::stdio::stdin(),
    ]
    .into_iter()
    .find(|stream| isatty(stream))
    .and_then(|stream| rustix::io::fcntl_dupfd_cloexec(stream, 3).ok())
    .or_else(|| {
        openat(
            CWD,
            "/dev/tty",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()
    })
}
