//! `clone3`: a process in its namespaces and in its cgroup from its first instruction.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::check;

/// Handlers of signals become the default actions (the libc crate's constant is too narrow).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Start in the cgroup that `clone_args.cgroup` names (likewise).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How to make a process.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NewProcess<'a> {
    /// `CLONE_NEW*` flags: namespaces made for it.
    pub namespaces: u64,
    /// The directory of the cgroup that it starts in; without it, the caller's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it becomes a sibling of the caller instead of a child.
    pub sibling: bool,
}

/// Makes a process that runs `child` and exits with the code it returns (101 after a panic). It
/// has handlers of signals reset to their defaults. Returns its id and a descriptor of it.
///
/// The child is a copy of the calling thread alone: the caller's process must have no other
/// thread, or the child may wait forever for a lock that one of them held.
pub(crate) fn spawn(
    how: NewProcess<'_>,
    child: impl FnOnce() -> i32,
) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = how.namespaces | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    if how.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    if how.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    // SAFETY: all-zero is a valid `clone_args`, which holds only integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = &raw mut pidfd as u64;
    // A sibling reports its end as its parent's child does: the kernel wants no signal named.
    args.exit_signal = if how.sibling { 0 } else { libc::SIGCHLD as u64 };
    args.cgroup = how.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);

    // SAFETY: without CLONE_VM the child has its own copy of the address space and, with no stack
    // given, goes on on its copy of this one, as after fork(). `args` and `pidfd` outlive the call.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            std::mem::size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
        // SAFETY: `_exit` ends this copy without running the exit handlers that belong to the
        // original process.
        unsafe { libc::_exit(code) }
    }
    // SAFETY: the kernel has stored a new descriptor there, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as u32, pidfd))
}
