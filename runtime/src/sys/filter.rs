//! Installing a seccomp filter.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::check;
use crate::seccomp::Instruction;

/// Installs a compiled filter program for the calling thread and all that it makes; `flags` are
/// `SECCOMP_FILTER_FLAG_*`. Returns the descriptor that `SECCOMP_FILTER_FLAG_NEW_LISTENER` asks for.
pub(crate) fn install_filter(program: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    let mut instructions: Vec<libc::sock_filter> = program
        .iter()
        .map(|instruction| libc::sock_filter {
            code: instruction.code,
            jt: instruction.yes,
            jf: instruction.no,
            k: instruction.operand,
        })
        .collect();
    let length = u16::try_from(instructions.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the filter is too long"))?;
    let program = libc::sock_fprog {
        len: length,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `program` names `length` instructions that outlive the call; the kernel checks the
    // program before it takes it.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with that flag the result is a new descriptor, which nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as i32) }))
}

/// Whether the kernel knows `flags`, which are `SECCOMP_FILTER_FLAG_*`.
pub(crate) fn knows_filter_flags(flags: u64) -> bool {
    // SAFETY: without a program the kernel installs nothing: it looks at the flags, then finds
    // nothing at the address 0.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    });
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_its_flags_and_no_others() {
        assert!(knows_filter_flags(libc::SECCOMP_FILTER_FLAG_LOG));
        assert!(!knows_filter_flags(1 << 31));
    }
}
