//! What landlock takes from the VMM: everything that it can. The VMM opens, connects
//! and signals nothing, so no rule allows anything, and also a directory that was
//! handed to it by mistake leads nowhere.

use std::io;

use crate::sys::jail::{self, Ruleset};

/// What each version added (linux/landlock.h); those between added nothing to deny. A
/// newer one than the last has all of it.
const ADDED: [(u32, Ruleset); 8] = [
    // From executing a file to making a symbolic link.
    (1, rights(0x1fff, 0, 0)),
    // Moving between directories.
    (2, rights(1 << 13, 0, 0)),
    // Truncating.
    (3, rights(1 << 14, 0, 0)),
    // Binding and connecting of TCP.
    (4, rights(0, 0b11, 0)),
    // ioctl of devices.
    (5, rights(1 << 15, 0, 0)),
    // Abstract Unix sockets and signals.
    (6, rights(0, 0, 0b11)),
    // Unix sockets by path.
    (9, rights(1 << 16, 0, 0)),
    // Binding and sending of UDP.
    (10, rights(0, 0b1100, 0)),
];

const fn rights(files: u64, ports: u64, scopes: u64) -> Ruleset {
    Ruleset {
        files,
        ports,
        scopes,
    }
}

/// The version of the kernel's landlock; `None`: it has none, or is booted without it.
pub fn version() -> io::Result<Option<u32>> {
    match jail::landlock_version() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        version => version.map(Some),
    }
}

/// Takes all that this kernel's landlock can take; nothing where there is none. The
/// process may gain no privileges any more.
pub fn confine() -> io::Result<()> {
    match version()? {
        Some(version) => jail::landlock_deny(&everything(version)),
        None => Ok(()),
    }
}

/// All that a version knows.
fn everything(version: u32) -> Ruleset {
    ADDED
        .iter()
        .filter(|(since, _)| *since <= version)
        .fold(rights(0, 0, 0), |sum, (_, added)| Ruleset {
            files: sum.files | added.files,
            ports: sum.ports | added.ports,
            scopes: sum.scopes | added.scopes,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_takes_what_it_knows() {
        assert_eq!(everything(1), rights(0x1fff, 0, 0));
        assert_eq!(everything(3), rights(0x7fff, 0, 0));
        assert_eq!(everything(7), rights(0xffff, 0b11, 0b11));
        assert_eq!(everything(9), rights(0x1_ffff, 0b11, 0b11));
        assert_eq!(everything(10), rights(0x1_ffff, 0b1111, 0b11));
        assert_eq!(everything(99), everything(10));
    }
}
