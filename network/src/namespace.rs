//! Entering a network namespace without leaving one's own.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// Ample for reading a namespace's tables; the default would map 2 MiB.
const STACK_BYTES: usize = 256 << 10;

/// An open network namespace that is not the caller's.
#[derive(Debug)]
pub(crate) struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Opens `path`, a bind mount as CNI makes them or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    ///
    /// Where it does not exist, cannot be opened, or is the namespace of the
    /// calling thread: linking *its* interface would take the node's.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let netns = || path.to_owned();
        let open = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing { netns: netns() },
            _ => Error::Open {
                netns: netns(),
                source,
            },
        };
        let file = File::open(path).map_err(open)?;
        let there = file.metadata().map_err(open)?;
        let here = fs::metadata("/proc/thread-self/ns/net").map_err(open)?;
        if (there.st_dev(), there.st_ino()) == (here.st_dev(), here.st_ino()) {
            return Err(Error::OwnNamespace { netns: netns() });
        }
        Ok(Self {
            path: netns(),
            file,
        })
    }

    /// The path it was opened by, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` in the namespace, on a thread that ends with it: whatever
    /// happens in there, no thread of the caller's changes its namespace.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let netns = || self.path.clone();
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("netns".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                        Errno::EINVAL => Error::NotNamespace { netns: netns() },
                        errno => Error::Enter {
                            netns: netns(),
                            source: errno.into(),
                        },
                    })?;
                    work()
                })
                .map_err(|source| Error::Thread {
                    netns: netns(),
                    source,
                })?;
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
