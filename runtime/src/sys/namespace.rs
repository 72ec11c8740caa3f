//! Entering and leaving namespaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Enters namespaces: `fd` is a namespace file and `types` its type (or 0 for any), or `fd` is a
/// process descriptor and `types` the set of its namespaces to enter.
pub(crate) fn set_namespace(fd: BorrowedFd<'_>, types: u64) -> io::Result<()> {
    // SAFETY: takes two integers; changes the calling process's view of the system, no memory.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), types as libc::c_int) })?;
    Ok(())
}

/// Moves the calling process into new namespaces of the given types.
pub(crate) fn unshare(types: u64) -> io::Result<()> {
    // SAFETY: takes one integer; with namespace flags only, it shares or unshares no memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, types as libc::c_ulong) })?;
    Ok(())
}
