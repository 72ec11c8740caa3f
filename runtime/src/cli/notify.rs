//! `$NOTIFY_SOCKET`: a service manager that waits to be told that the container is ready.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, Result};
use runtime::Container;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};

use super::console;

/// What a manager gets to take a message.
const PATIENCE: Duration = Duration::from_secs(30);

/// The way from a container to the service manager.
pub(super) struct Notify {
    container: UnixDatagram,
    manager: UnixDatagram,
}

/// Whether a service manager waits.
pub(super) fn is_wanted() -> bool {
    address().is_some()
}

fn address() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
}

impl Notify {
    /// Before the container is started. `None` when nobody waits.
    pub(super) fn open(container: &Container) -> Result<Option<Self>> {
        let Some(address) = address() else {
            return Ok(None);
        };
        let Some(socket) = container.notify_socket()? else {
            return Ok(None);
        };
        match connect(&address) {
            Ok(manager) => Ok(Some(Self {
                container: socket,
                manager,
            })),
            // The container is as good without.
            Err(error) => {
                tracing::warn!("cannot tell {address:?} when the container is ready: {error}");
                Ok(None)
            }
        }
    }

    /// Waits until the container is ready, or has ended, and tells the manager, for which the
    /// container's first process is the service from then on.
    pub(super) fn wait(&self, container: &Container) {
        // The container runs, whatever its manager knows.
        if let Err(error) = self.try_wait(container) {
            tracing::warn!("{error:#}");
        }
    }

    fn try_wait(&self, container: &Container) -> Result<()> {
        let Some(first) = container.process() else {
            return Ok(());
        };
        loop {
            let mut fds = [
                PollFd::new(self, PollFlags::IN),
                PollFd::from_borrowed_fd(first, PollFlags::IN),
            ];
            retry_on_intr(|| poll(&mut fds, None)).context("wait for the container to be ready")?;
            let [said, ended] = fds.map(|fd| !fd.revents().is_empty());
            if said && self.hears_ready()? {
                self.tell(container.pid())?;
                return self.barrier();
            }
            if ended && !said {
                return Ok(());
            }
        }
    }

    /// Takes one message of the container: whether it says that it is ready.
    pub(super) fn hears_ready(&self) -> Result<bool> {
        let mut message = [0; 4096];
        match self.container.recv(&mut message) {
            Ok(length) => {
                let mut lines = message[..length].split(|byte| *byte == b'\n');
                Ok(lines.any(|line| line == b"READY=1"))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("hear from the container whether it is ready"),
        }
    }

    /// Tells the manager that its service is ready, and which process that is. In our own words:
    /// what the container says is not the manager's to hear.
    pub(super) fn tell(&self, pid: u32) -> Result<()> {
        let message = format!("READY=1\nMAINPID={pid}\n");
        self.manager
            .send(message.as_bytes())
            .context("tell the service manager that the container is ready")?;
        Ok(())
    }

    /// Waits until the manager has taken all messages: it looks for their sender, which is about to
    /// end.
    fn barrier(&self) -> Result<()> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        console::send(&self.manager, "BARRIER=1", &theirs)
            .context("send a barrier to the service manager")?;
        // From here on only the manager keeps it open.
        drop(theirs);
        let timeout = Timespec::try_from(PATIENCE)?;
        let mut fds = [PollFd::new(&ours, PollFlags::IN)];
        let closed = retry_on_intr(|| poll(&mut fds, Some(&timeout)));
        if closed.context("wait for the service manager")? == 0 {
            tracing::warn!("the service manager has not taken the message in {PATIENCE:?}");
        }
        Ok(())
    }
}

/// Readable when the container says something.
impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.container.as_fd()
    }
}

/// A path, or with `@` a name of the abstract namespace.
fn connect(address: &OsString) -> std::io::Result<UnixDatagram> {
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}
