//! Where a VMM lives on the host.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// What [`crate::Vmm::spawn`] starts a VMM in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// The directory of its cgroup; `None`: its owner's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Its network namespace, one of [`empty_network`]. VMMs may share it, as none of
    /// them can do anything in it; `None`: the VMM makes one, for a millisecond and 320
    /// KiB of the kernel's memory.
    pub network: Option<BorrowedFd<'a>>,
    /// A descriptor that it keeps open for as long as it lives: whoever looks at it can tell
    /// that its user id is taken.
    pub lease: Option<BorrowedFd<'a>>,
}

/// A new network namespace with nothing in it but a loopback interface that is down.
pub fn empty_network() -> io::Result<OwnedFd> {
    // A namespace belongs to threads: this one has no other use.
    let made = thread::spawn(|| -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}
