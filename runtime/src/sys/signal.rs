//! Signals by number: rustix's type leaves out the real-time ones.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Sends a signal to the process behind `pidfd`; signal 0 only checks.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null `siginfo` asks the kernel to fill in the default one.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Gives every signal its default action and blocks none. A command inherits ignored signals
/// (Rust programs ignore SIGPIPE) and the mask over `execve`; it must get the system's defaults.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default action runs no code of ours. For SIGKILL, SIGSTOP and the two
        // signals of the C library it fails, and those cannot be ignored anyway.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: `set` is initialised by sigemptyset before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}
