//! What the jail asks of the kernel.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{check, owned};

/// Makes `directory` the root of the mount namespace and detaches the old root.
pub fn become_root(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all paths are C string literals; the calls change only this
    // process's root and working directory.
    unsafe {
        check(libc::fchdir(directory.as_raw_fd()))?;
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32)?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
    }
    Ok(())
}

/// A mount of an empty, read-only tmpfs, attached over `/` of the calling mount
/// namespace; the descriptor is the mount's root.
pub fn mount_empty_root() -> io::Result<OwnedFd> {
    const FSCONFIG_SET_STRING: i32 = 1;
    const FSCONFIG_CMD_CREATE: i32 = 6;
    const MOVE_MOUNT_F_EMPTY_PATH: i32 = 4;
    const MOUNT_ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    let set = |context: &OwnedFd, key: &CStr, value: &CStr| -> io::Result<()> {
        // SAFETY: key and value are C strings, and the kernel copies them.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            ) as i32
        })
    };
    // SAFETY: the name is a C string.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1) as i32 })?;
    set(&context, c"size", c"4096")?;
    set(&context, c"nr_inodes", c"2")?;
    set(&context, c"mode", c"555")?;
    // SAFETY: FSCONFIG_CMD_CREATE takes no key, value or length.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            ptr::null::<libc::c_char>(),
            ptr::null::<libc::c_char>(),
            0,
        ) as i32
    })?;
    // SAFETY: fsmount takes no memory.
    let mount = owned(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, MOUNT_ATTRIBUTES) as i32
    })?;
    // SAFETY: both paths are C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        ) as i32
    })?;
    Ok(mount)
}

/// Lets the capabilities of this process outlive a change of its user.
pub fn keep_capabilities() -> io::Result<()> {
    let bits = libc::SECBIT_NO_SETUID_FIXUP as libc::c_ulong;
    // SAFETY: PR_SET_SECUREBITS takes its argument by value.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits) })
}

/// Gives up the session's keys for an empty ring. A kernel without keys has none to
/// give up.
pub fn forget_keys() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name is allowed and asks for a ring without one.
    let ring = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<libc::c_char>(),
        )
    };
    match check(ring as i32) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other,
    }
}

/// The kernel's `struct landlock_ruleset_attr`: what is denied unless a rule allows it.
/// An older kernel takes the longer structure while what it does not know is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Access to files and directories.
    pub files: u64,
    /// Use of ports.
    pub ports: u64,
    /// Ways to processes outside.
    pub scopes: u64,
}

/// The version of the kernel's landlock.
pub fn landlock_version() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag there is no structure.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<Ruleset>(),
            0,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

/// Denies the calling thread, and those that it makes, all of a ruleset for good.
pub fn landlock_deny(ruleset: &Ruleset) -> io::Result<()> {
    // SAFETY: the kernel reads the structure, whose size is told.
    let rules = owned(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ruleset as *const Ruleset,
            size_of::<Ruleset>(),
            0,
        ) as i32
    })?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) as i32 })
}
