//! The few calls that no safe wrapper has: ioctls on block and random devices,
//! signals by descriptor, descriptors on the event loop, sessions.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use tokio::io::unix::AsyncFd;

/// `BLKPG` of linux/blkpg.h.
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_DEL_PARTITION: libc::c_int = 2;
/// `BLKRASET` of linux/fs.h.
const BLKRASET: libc::c_ulong = 0x1262;
/// Its unit in bytes.
const SECTOR: u32 = 512;
/// `RNDADDENTROPY` of linux/random.h: `_IOW('R', 3, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `RNDRESEEDCRNG` of linux/random.h: `_IO('R', 7)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut BlkpgPartition,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// Says how many bytes of a disk are read when fewer are asked for. Its file in /sys makes the
/// disk stand still first, which takes tens of milliseconds.
pub fn set_read_ahead(disk: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    // SAFETY: BLKRASET takes a number.
    match unsafe {
        libc::ioctl(
            disk.as_raw_fd(),
            BLKRASET,
            libc::c_ulong::from(bytes / SECTOR),
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn blkpg(
    disk: BorrowedFd<'_>,
    operation: libc::c_int,
    start: i64,
    length: i64,
    number: u8,
) -> io::Result<()> {
    let mut partition = BlkpgPartition {
        start,
        length,
        number: number.into(),
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation,
        flags: 0,
        length: size_of::<BlkpgPartition>() as libc::c_int,
        data: &raw mut partition,
    };
    // SAFETY: BLKPG reads one blkpg_ioctl_arg and the blkpg_partition that it points
    // to; both have the kernel's layout and outlive the call.
    match unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes partition `number` of `disk` from `length` bytes at byte `start`; its
/// device node is there when this returns.
pub fn add_partition(disk: impl AsFd, number: u8, start: i64, length: i64) -> io::Result<()> {
    blkpg(disk.as_fd(), BLKPG_ADD_PARTITION, start, length, number)
}

/// Removes partition `number` of `disk`; `EBUSY` while it is mounted or open.
pub fn delete_partition(disk: impl AsFd, number: u8) -> io::Result<()> {
    blkpg(disk.as_fd(), BLKPG_DEL_PARTITION, 0, 0, number)
}

/// Mixes `entropy` into the generator behind `random` (/dev/random), credits all of
/// its bits and has the generator take a new key at once.
pub fn add_entropy(random: impl AsFd, entropy: &[u8]) -> io::Result<()> {
    let bytes = libc::c_int::try_from(entropy.len()).map_err(io::Error::other)?;
    let bits = bytes.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
    // struct rand_pool_info: bits, bytes, then the data in whole words.
    let mut pool = vec![bits, bytes];
    pool.extend(entropy.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        libc::c_int::from_ne_bytes(word)
    }));
    let fd = random.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the two words of the header and then `bytes` bytes,
    // which `pool` holds after the header.
    if unsafe { libc::ioctl(fd, RNDADDENTROPY, pool.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    match unsafe { libc::ioctl(fd, RNDRESEEDCRNG) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends signal number `signal`, real-time ones included, to the process behind
/// `pidfd`; `ESRCH` when it has ended.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: with a null siginfo the kernel reads no memory of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts `command` as the leader of a session of its own and in the cgroup whose
/// `cgroup.procs` is `processes`; with `terminal` its standard input becomes the
/// session's terminal.
pub fn lead_session(
    command: &mut Command,
    processes: OwnedFd,
    terminal: bool,
) -> io::Result<Child> {
    let lead = move || {
        // 0 is the writer itself.
        rustix::io::write(&processes, b"0")?;
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls on what it owns and
    // on standard input; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(lead) };
    command.spawn()
}

/// Puts a descriptor on the event loop; whoever uses it must not wait in the kernel.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and AsyncFd
    // takes it off the event loop before it drops it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
