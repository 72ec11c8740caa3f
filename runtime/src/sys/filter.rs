//! Installing a seccomp filter.

use std::io;

use super::check;

/// Installs a compiled filter program (`struct sock_filter`s as bytes) for the calling thread and
/// all that it makes; `flags` are `SECCOMP_FILTER_FLAG_*`.
pub(crate) fn install_filter(program: &[u8], flags: u64) -> io::Result<()> {
    let size = std::mem::size_of::<libc::sock_filter>();
    let mut instructions: Vec<libc::sock_filter> = program
        .chunks_exact(size)
        .map(|chunk| libc::sock_filter {
            code: u16::from_ne_bytes([chunk[0], chunk[1]]),
            jt: chunk[2],
            jf: chunk[3],
            k: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
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
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })?;
    Ok(())
}
