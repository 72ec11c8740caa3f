//! `bpf(2)`: the program that decides which devices a cgroup may use.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// How often a program is loaded at most: the verifier gives up with EAGAIN when a signal comes
/// for the thread, as SIGCHLD does for whoever has children.
const MAX_TRIES: u32 = 16;

/// One eBPF instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Offset of a jump or of a memory access.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// The fields of `union bpf_attr` that loading needs.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The fields of `union bpf_attr` that attaching needs.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// The fields of `union bpf_attr` that a query needs.
#[repr(C)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
}

/// Loads a device program; the kernel verifies it.
pub(crate) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license: &CStr = c"Apache-2.0";
    let attributes = LoadAttributes {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: the attributes name `insn_cnt` instructions and a terminated string, all of
        // which outlive the call; fields past the given size count as zero.
        let loaded = check(unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_LOAD,
                &raw const attributes,
                std::mem::size_of::<LoadAttributes>(),
            )
        });
        match loaded {
            // SAFETY: the kernel has just made this descriptor, which nothing else owns.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < MAX_TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

/// Puts a loaded device program on a cgroup's directory, beside any that is there already (all of
/// them must then agree).
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    change_attachment(BPF_PROG_ATTACH, cgroup, program, BPF_F_ALLOW_MULTI)
}

/// Takes a device program off a cgroup's directory.
pub(crate) fn detach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    change_attachment(BPF_PROG_DETACH, cgroup, program, 0)
}

fn change_attachment(
    command: libc::c_int,
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
) -> io::Result<()> {
    let attributes = AttachAttributes {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: flags,
    };
    // SAFETY: the attributes hold integers only and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            std::mem::size_of::<AttachAttributes>(),
        )
    })?;
    Ok(())
}

/// The device programs that are on a cgroup's directory (at most the kernel's limit of 64).
pub(crate) fn attached_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; 64];
    let mut query = QueryAttributes {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        reserved: 0,
    };
    // SAFETY: the kernel writes at most `prog_cnt` ids to `ids` and the counts into `query`; both
    // outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            std::mem::size_of::<QueryAttributes>(),
        )
    })?;
    ids.iter()
        .take(query.prog_cnt as usize)
        .map(|&id| {
            // The union's member for this command is the id and two zero fields.
            let attributes = [id, 0, 0];
            // SAFETY: the attributes hold integers only and outlive the call.
            let fd = check(unsafe {
                libc::syscall(
                    libc::SYS_bpf,
                    BPF_PROG_GET_FD_BY_ID,
                    &raw const attributes,
                    std::mem::size_of_val(&attributes),
                )
            })?;
            // SAFETY: the kernel has just made this descriptor, which nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
        })
        .collect()
}
