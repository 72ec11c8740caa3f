//! One process that the host knows: a container's first, or one added by exec.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::runtime::Process as ProcessSpec;
use runtime::TerminalSize;
use tokio::sync::watch;

use crate::stdio::Attached;
use crate::sys;

pub use crate::sys::signal;

/// Signals of Linux: 1 to 64.
pub const SIGNALS: std::ops::RangeInclusive<u32> = 1..=64;

/// The size that a spec gives its terminal.
pub fn console_size(spec: &ProcessSpec) -> Option<TerminalSize> {
    let size = spec.console_size()?;
    Some(TerminalSize {
        columns: u16::try_from(size.width()).ok()?,
        rows: u16::try_from(size.height()).ok()?,
    })
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 and the number of the signal that ended it.
    pub status: u32,
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
}

impl Exit {
    /// An end that is noticed now.
    pub fn now(status: u32) -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            status,
            at_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

/// The end of a process, to be waited for even before the process is there.
#[derive(Clone, Debug)]
pub struct Ending(watch::Sender<Option<Exit>>);

impl Default for Ending {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Ending {
    /// Records the end. Only the first counts.
    pub fn set(&self, exit: Exit) {
        self.0.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert(exit);
            first
        });
    }

    /// The end, if it has come.
    pub fn get(&self) -> Option<Exit> {
        *self.0.borrow()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Exit {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(exit) = *receiver.borrow_and_update() {
                return exit;
            }
            if receiver.changed().await.is_err() {
                // `self` holds the sender, so the channel cannot close; if it could,
                // the end would never come.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A process that was started.
pub struct Process {
    /// The container's id.
    pub container_id: String,
    /// Empty: the container's first process.
    pub exec_id: String,
    /// Its id in the guest.
    pub pid: u32,
    /// Its end.
    pub ending: Ending,
    pidfd: OwnedFd,
    stdio: Attached,
}

impl Process {
    /// A process as the engine made it, its streams already running.
    pub fn new(
        container_id: &str,
        exec_id: &str,
        pid: u32,
        pidfd: OwnedFd,
        ending: Ending,
        stdio: Attached,
    ) -> Self {
        Self {
            container_id: container_id.into(),
            exec_id: exec_id.into(),
            pid,
            ending,
            pidfd,
            stdio,
        }
    }

    /// Sends a signal to this process alone.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::signal(&self.pidfd, signal)
    }

    /// Gives its terminal a size; without a terminal there is nothing to do.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match self.stdio.terminal() {
            Some(terminal) => runtime::resize(terminal, size),
            None => Ok(()),
        }
    }

    /// Ends its input; see [`Attached::close_stdin`].
    pub fn close_stdin(&self) {
        self.stdio.close_stdin();
    }
}

/// Follows a process that has been made to its command: `advance` goes as far as it has
/// come, and `watched` tells when to look again. `unwatched` says that it cannot be watched.
pub async fn follow<T, E>(
    watched: io::Result<OwnedFd>,
    unwatched: impl Fn(io::Error) -> E,
    mut advance: impl FnMut() -> Result<Option<T>, E>,
) -> Result<T, E> {
    let watched = watched.and_then(sys::watch).map_err(&unwatched)?;
    loop {
        let mut ready = watched.readable().await.map_err(&unwatched)?;
        if let Some(done) = advance()? {
            return Ok(done);
        }
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts_and_wakes_all() {
        let ending = Ending::default();
        assert_eq!(ending.get(), None);
        let exit = Exit {
            status: 7,
            at_ns: 1,
        };
        let (a, b, ()) = tokio::join!(ending.wait(), ending.wait(), async { ending.set(exit) });
        ending.set(Exit {
            status: 9,
            at_ns: 2,
        });
        assert_eq!(
            (a, b, ending.get(), ending.wait().await),
            (exit, exit, Some(exit), exit)
        );
    }
}
