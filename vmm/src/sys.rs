//! System calls that no safe wrapper offers. One of the few places with `unsafe`.
#![allow(unsafe_code)]

pub mod jail;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::sys::socket::{ControlMessageOwned, RecvMsg};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The child's program: environment and arguments.
pub struct Program<'a> {
    /// Path of the executable.
    pub path: &'a CStr,
    /// Arguments, the first being the program's name.
    pub arguments: &'a [&'a CStr],
    /// Environment, `NAME=value`.
    pub environment: &'a [&'a CStr],
}

/// How a child is born.
#[derive(Clone, Copy, Default)]
pub struct Birth<'a> {
    /// The directory of its cgroup; `None`: its parent's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// As the first process of a pid namespace of its own.
    pub own_pids: bool,
}

/// A child process that was started by [`spawn`].
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: i32,
    /// Readable when it has exited; stays the same process for ever.
    pub pidfd: OwnedFd,
}

/// First descriptor number that [`spawn`] moves its descriptors to, so that no
/// source is overwritten while the targets 0, 1, 2, ... are filled.
const SPARE_FD: RawFd = 64;
/// Stack of the child between clone and exec; its only frames are `child_main`'s.
const CHILD_STACK: usize = 32 * 1024;

/// What the child needs; made before the clone since it must not allocate.
struct Plan {
    path: *const libc::c_char,
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    sources: *const RawFd,
    sources_len: usize,
    /// errno of the step that failed, written by the child.
    error: i32,
}

/// The arguments of clone3(2), as of Linux 5.7 (CLONE_ARGS_SIZE_VER2).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// clone3's flag to start the child in the cgroup of `CloneArgs::cgroup`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts a program with exactly the descriptors given, as 0, 1, 2, .... Like vfork: the caller's thread waits until the child has
/// executed the program, and no page table is copied. The child is born in its
/// cgroup because moving a process there later waits for an RCU grace period.
pub fn spawn(
    program: &Program<'_>,
    files: &[BorrowedFd<'_>],
    birth: Birth<'_>,
) -> io::Result<Child> {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (arguments, environment) = (pointers(program.arguments), pointers(program.environment));
    let moved = files
        .iter()
        .map(|file| {
            // SAFETY: fcntl with F_DUPFD_CLOEXEC makes a new descriptor; no memory is involved.
            let fd = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, SPARE_FD) };
            owned(fd)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let sources: Vec<RawFd> = moved.iter().map(AsRawFd::as_raw_fd).collect();
    let mut stack = vec![0u128; CHILD_STACK / size_of::<u128>()];
    let mut plan = Plan {
        path: program.path.as_ptr(),
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        sources: sources.as_ptr(),
        sources_len: sources.len(),
        error: 0,
    };
    let mut pidfd: RawFd = -1;
    let mut clone = CloneArgs {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: CHILD_STACK as u64,
        ..CloneArgs::default()
    };
    if birth.own_pids {
        clone.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(cgroup) = birth.cgroup {
        clone.flags |= CLONE_INTO_CGROUP;
        clone.cgroup = cgroup.as_raw_fd() as u64;
    }

    // A handler that ran in the child would run on this process's memory.
    let mask = block_signals()?;
    // SAFETY: `clone`, `plan` and `stack` outlive the call, since CLONE_VFORK holds
    // this thread until the child has executed or exited; the stack is used by the
    // child alone and is aligned to 16 bytes.
    let pid = unsafe { clone3(&clone, &mut plan) };
    restore_signals(&mask);
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(-pid as i32));
    }
    let pidfd = owned(pidfd)?;
    // SAFETY: `plan` is a local, and the child that wrote to it has executed or
    // exited. Volatile, as the compiler does not see that the child wrote.
    let error = unsafe { ptr::read_volatile(&raw const plan.error) };
    if error != 0 {
        // SAFETY: waits for our own child; a null status pointer is allowed.
        unsafe { libc::waitpid(pid as i32, ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(Child {
        pid: pid as i32,
        pidfd,
    })
}

/// clone3(2) with a stack of the child's own.
///
/// # Safety
/// `clone.flags` has CLONE_VM and CLONE_VFORK, `clone.stack` is valid memory that
/// nothing else uses, and `plan`'s pointers are valid.
unsafe fn clone3(clone: &CloneArgs, plan: &mut Plan) -> i64 {
    let result: i64;
    // SAFETY: in the parent the block only changes the registers named. The child
    // runs on its own stack, calls `child_main`, and never comes back here.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") clone,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") plan,
            in("r13") child_main as unsafe extern "C" fn(*mut Plan) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// What the child does: system calls only, no allocation, no locks.
///
/// # Safety
/// `plan` and everything it points to are valid; runs in the child of [`clone3`].
unsafe extern "C" fn child_main(plan: *mut Plan) -> ! {
    // SAFETY: the parent keeps `plan` and its arrays alive and is stopped meanwhile;
    // every call takes descriptors or those pointers.
    unsafe {
        let plan = &mut *plan;
        let mut done = true;
        for target in 0..plan.sources_len {
            done = done && libc::dup2(*plan.sources.add(target), target as RawFd) >= 0;
        }
        done = done && libc::syscall(libc::SYS_close_range, plan.sources_len, u32::MAX, 0) == 0;
        if done {
            libc::execve(plan.path, plan.arguments, plan.environment);
        }
        ptr::write_volatile(&raw mut plan.error, *libc::__errno_location());
        libc::_exit(127)
    }
}

/// Blocks every signal of this thread and returns the mask that was.
fn block_signals() -> io::Result<nix::sys::signal::SigSet> {
    use nix::sys::signal::{SigSet, SigmaskHow};
    Ok(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?)
}

/// Sets a mask that [`block_signals`] returned.
fn restore_signals(mask: &nix::sys::signal::SigSet) {
    mask.thread_set_mask()
        .expect("a mask that the kernel gave is valid");
}

/// What takes a vCPU's thread out of the guest.
pub const KICK: i32 = libc::SIGUSR1;

/// Lets [`KICK`] interrupt system calls, and do nothing else.
pub fn prepare_kicks() -> io::Result<()> {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a zeroed sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as libc::sighandler_t;
    // SAFETY: the action is valid, and its handler does nothing.
    check(unsafe { libc::sigaction(KICK, &raw const action, ptr::null_mut()) })
}

/// Sends a signal to a thread of this process.
pub fn signal_thread(thread: nix::unistd::Pid, signal: i32) -> io::Result<()> {
    // SAFETY: tgkill takes no memory.
    let result =
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw(), signal) };
    check(result as i32)
}

/// Sends a signal to exactly the process behind `pidfd`.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; no other memory is involved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Descriptors that came with a message, owned.
pub fn received_files<S>(message: &RecvMsg<'_, '_, S>) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(list) = part {
            for fd in list {
                files.push(owned(fd)?);
            }
        }
    }
    Ok(files)
}

/// The inherited descriptor `fd`, if it is open. Call once per number.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes no memory; it fails for a descriptor that is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    owned(fd)
}

/// Takes a connection off a listening socket; the connection does not block.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<UnixStream> {
    accept_with(listener, libc::SOCK_NONBLOCK).map(UnixStream::from)
}

/// Takes a connection off a listening socket; `flags`: of the connection.
pub fn accept_with(listener: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    let flags = flags | libc::SOCK_CLOEXEC;
    // SAFETY: the address is not asked for, so no memory is involved.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            ptr::null_mut(),
            ptr::null_mut(),
            flags,
        )
    };
    owned(fd)
}

/// Lets no call on a descriptor block any more, whoever else has it.
pub fn set_nonblocking(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: neither call takes memory.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        check(flags)?;
        check(libc::fcntl(
            file.as_raw_fd(),
            libc::F_SETFL,
            flags | libc::O_NONBLOCK,
        ))
    }
}

/// Makes a file this process's standard error.
pub fn replace_stderr(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: dup3 takes no memory, and nothing here owns descriptor 2.
    check(unsafe { libc::dup3(file.as_raw_fd(), libc::STDERR_FILENO, 0) })
}

/// Fills a buffer from the kernel's random number generator.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => done += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// An event that never blocks.
pub fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK)
}

/// A descriptor that came from [`from_event`], in this process or another.
pub fn to_event(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is handed over, so nothing else owns it.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// An event as a plain descriptor.
pub fn from_event(event: EventFd) -> OwnedFd {
    // SAFETY: the descriptor is handed over, so nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}

/// An anonymous file in memory.
pub fn memory_file(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a C string.
    owned(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })
}

/// An anonymous file in memory of a length that nobody can change any more.
pub fn sealed_memory_file(name: &CStr, length: u64) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: `name` is a C string.
    let file = owned(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: neither call takes memory.
    unsafe {
        check(libc::ftruncate(file.as_raw_fd(), to_offset(length)?))?;
        check(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals))?;
    }
    Ok(file)
}

/// Frees the blocks of `length` bytes at `offset`; they read as zeros from then on.
pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (to_offset(offset)?, to_offset(length)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes no memory.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets which offloaded packets a TAP's reader takes (TUN_F_*).
pub fn tap_set_offload(tap: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    if unsafe {
        libc::ioctl(
            tap.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            offload as libc::c_ulong,
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the length of the header before each packet of a TAP, in bytes.
pub fn tap_set_header_length(tap: BorrowedFd<'_>, length: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `length` is.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ends the process at once, without the runtime's own cleaning up, for which a
/// confined thread lacks the system calls.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Keeps all threads on one malloc arena: a second one would reserve and touch
/// memory of its own for every thread.
pub fn single_malloc_arena() {
    // SAFETY: called before any thread is made; mallopt only sets parameters.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Turns the -1 of a system call into its error.
fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes a descriptor that a system call has just made, or its error.
fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new or handed over, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A file offset as the kernel takes it.
fn to_offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn child_has_exactly_the_descriptors_given() {
        let null = File::open("/dev/null").unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = spawn(
            &Program {
                path: c"/bin/sh",
                arguments: &[c"sh", c"-c", c"for n in 0 1 2 3 4 5 9 10 64 65; do [ -e /proc/$$/fd/$n ] && echo $n; done; echo $A; read x; echo got $x; exit 7"],
                environment: &[c"A=b"],
            },
            &[theirs.as_fd(), theirs.as_fd(), null.as_fd(), theirs.as_fd()],
            Birth::default(),
        )
        .unwrap();
        drop(theirs);
        ours.write_all(b"word\n").unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "0\n1\n2\n3\nb\ngot word\n");
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
        assert!(matches!(status, nix::sys::wait::WaitStatus::Exited(_, 7)));
    }

    #[test]
    fn a_missing_program_is_an_error_here() {
        let program = Program {
            path: c"/nonexistent/program",
            arguments: &[c"program"],
            environment: &[],
        };
        let error = spawn(&program, &[], Birth::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn holes_read_as_zeros() {
        let mut file = File::from(memory_file(c"hole").unwrap());
        file.write_all(&[1; 8192]).unwrap();
        punch_hole(&file, 4096, 4096).unwrap();
        let mut byte = [9];
        std::os::unix::fs::FileExt::read_at(&file, &mut byte, 4095).unwrap();
        assert_eq!(byte, [1]);
        std::os::unix::fs::FileExt::read_at(&file, &mut byte, 4096).unwrap();
        assert_eq!(byte, [0]);
    }
}
