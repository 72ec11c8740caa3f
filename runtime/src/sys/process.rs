//! Attributes of the calling process, and `execve`.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Whether other processes may look into this one (`/proc/<pid>/{mem,fd,exe}`, ptrace).
pub(crate) fn set_dumpable(dumpable: bool) -> io::Result<()> {
    let dumpable = libc::c_ulong::from(dumpable);
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0) };
    check(result.into())?;
    Ok(())
}

/// Gives free memory of the heap back to the kernel: what is forked next shares less, and a limit
/// counts less. Costs some microseconds.
pub fn trim_heap() {
    // SAFETY: glibc's allocator does this under its own locks; nothing that is in use is touched.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Whether they may now.
pub(crate) fn is_dumpable() -> bool {
    // SAFETY: PR_GET_DUMPABLE takes nothing and returns a number.
    let result = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
    result == 1
}

/// Marks every descriptor from `first` on to be closed by `execve`.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed, so none that is owned elsewhere
    // becomes invalid.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Closes a descriptor that belongs to the parent. For a forked process alone, as
/// [`close_all_from`].
pub(crate) fn close_inherited(fd: BorrowedFd<'_>) {
    // SAFETY: takes an integer. Whatever owns the descriptor is the parent's and is not used here.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Closes every descriptor from `first` on but `kept`. For a forked process alone, which never
/// returns into the code of its parent: whatever owns one of these must not be used or dropped.
pub(crate) fn close_all_from(first: u32, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let close = |from: u32, to: u32| {
        // SAFETY: takes integers. No owner of one of these descriptors is left in this process.
        check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) })
    };
    let mut from = first;
    for fd in kept.into_iter().filter(|fd| *fd >= first) {
        if fd > from {
            close(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close(from, libc::c_uint::MAX)?;
    Ok(())
}

/// Becomes the program at `path`; returns only when that fails.
pub(crate) fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null pointer, and their strings, like `path`, are terminated
    // and outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Gives the process a new session keyring instead of the caller's. Does nothing on a kernel
/// without keyrings.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // A name could lead to an existing keyring.
    let name = std::ptr::null::<c_char>();
    // SAFETY: without a name the operation reads no memory.
    let joined =
        check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) });
    match joined {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Sets the execution domain (`personality(2)`).
pub(crate) fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: takes one integer.
    let result = unsafe { libc::personality(domain.into()) };
    check(result.into())?;
    Ok(())
}

/// Sets the io priority of a process, of the calling one if `pid` is 0: `class` is an
/// `IOPRIO_CLASS_*`.
pub(crate) fn set_io_priority(pid: u32, class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes three integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            pid,
            (class << 13) | level,
        )
    })?;
    Ok(())
}

/// The fields of `struct sched_attr` that a spec can set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SchedulerAttributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the time-sharing policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// Sets the scheduling policy of a process, of the calling one if `pid` is 0.
pub(crate) fn set_scheduler(pid: u32, attributes: SchedulerAttributes) -> io::Result<()> {
    /// The first version of the kernel's structure.
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attr = SchedAttr {
        size: std::mem::size_of::<SchedAttr>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
    };
    // SAFETY: `attr` says its own size and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) })?;
    Ok(())
}

/// A set of numbers as a mask of bits.
fn mask(numbers: &[u32]) -> Vec<u64> {
    let highest = numbers.iter().copied().max().unwrap_or(0) as usize;
    let mut mask = vec![0u64; highest / 64 + 1];
    for &number in numbers {
        mask[number as usize / 64] |= 1 << (number % 64);
    }
    mask
}

/// Binds the process to processors.
pub(crate) fn set_affinity(cpus: &[u32]) -> io::Result<()> {
    let mask = mask(cpus);
    // SAFETY: the kernel reads exactly the bytes of `mask`; process 0 is the caller.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            std::mem::size_of_val(mask.as_slice()),
            mask.as_ptr(),
        )
    })?;
    Ok(())
}

/// Says on which nodes memory of the process and of its children is taken: `mode` is one of `MPOL_*`
/// with flags, `nodes` may be empty where the mode wants none.
pub(crate) fn set_memory_policy(mode: u32, nodes: &[u32]) -> io::Result<()> {
    let mask = mask(nodes);
    let (pointer, bits) = match nodes {
        [] => (std::ptr::null(), 0),
        // The kernel takes one bit less than it is told.
        _ => (mask.as_ptr(), mask.len() * 64 + 1),
    };
    // SAFETY: the kernel reads `bits - 1` bits, which is all of `mask`, or nothing.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}
