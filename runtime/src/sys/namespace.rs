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

/// The type of the namespace behind a file: a `CLONE_NEW*` flag.
///
/// # Errors
/// `ENOTTY` when the file is not of a namespace.
pub(crate) fn namespace_type(file: BorrowedFd<'_>) -> io::Result<u64> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the operation takes no argument and returns a number.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    Ok(check(result.into())? as u64)
}

/// Moves the calling process into new namespaces of the given types.
pub(crate) fn unshare(types: u64) -> io::Result<()> {
    // SAFETY: takes one integer; with namespace flags only, it shares or unshares no memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, types as libc::c_ulong) })?;
    Ok(())
}
