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

/// Has the kernel collect children that end, or leaves that to their parent.
pub(crate) fn collect_children(by_kernel: bool) {
    // The kernel's `struct sigaction`: handler, flags, restorer, mask.
    let action = [if by_kernel { libc::SIG_IGN as u64 } else { 0 }, 0, 0, 0];
    // SAFETY: `action` has the kernel's layout, and neither action runs code of ours.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            libc::SIGCHLD,
            action.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
}

/// Gives every signal its default action and blocks none. A command inherits ignored signals
/// (Rust programs ignore SIGPIPE) and the mask over `execve`; it must get the system's defaults.
pub(crate) fn reset_signals() {
    /// The kernel's own `struct sigaction` is never longer.
    const LONGEST: usize = 64;
    /// Bytes of the kernel's set of signals.
    const SET: usize = 8;
    let zero = [0u64; LONGEST / 8];
    for signal in 1..=64 {
        // Not by the C library, which keeps two signals to itself and would leave them ignored.
        // SAFETY: all-zero is the default action, without flags and with an empty mask, and longer
        // than what the kernel reads. The default action runs no code of ours. For SIGKILL and
        // SIGSTOP it fails, and those cannot be ignored anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                zero.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SET,
            )
        };
    }
    // SAFETY: the kernel reads the first eight bytes, an empty set, and writes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            zero.as_ptr(),
            std::ptr::null_mut::<u64>(),
            SET,
        )
    };
}
