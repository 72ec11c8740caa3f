//! The TAP's ioctls.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `TUNSETIFF`: makes the interface `name` with `flags` (`IFF_*`) and ties it
/// to `tun`, an open `/dev/net/tun`. `name` is at most 15 bytes, without NUL.
pub(crate) fn set_interface(tun: BorrowedFd, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // The flags are 16 bits wide and IFF_TUN_EXCL is the topmost.
            ifru_flags: flags as libc::c_short,
        },
    };
    // One less than there is room for: the name ends in a NUL.
    if name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(Errno::EINVAL.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes an ifreq at this address, which
    // `request` is and which lives until the call returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map(drop).map_err(Into::into)
}

/// `TUNSETVNETHDRSZ`: the length in bytes of the header before each frame.
pub(crate) fn set_vnet_header(tun: BorrowedFd, bytes: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int at this address, which `bytes` is.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
    Errno::result(result).map(drop).map_err(Into::into)
}

/// `TUNSETOFFLOAD`: what the reader of `tun` accepts, as `TUN_F_*`.
pub(crate) fn set_offload(tun: BorrowedFd, offloads: c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number; the kernel touches no memory of ours.
    let result = unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            c_ulong::from(offloads),
        )
    };
    Errno::result(result).map(drop).map_err(Into::into)
}
