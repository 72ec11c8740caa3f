//! The system calls that each kind of thread may make. Anything else kills the
//! whole process, which its owner sees at once.
//!
//! The filters are written here as binary searches: when one is installed the
//! kernel runs it once for every system call that exists, and a chain of
//! comparisons made that the dearest step of starting a VM.

use seccompiler::{BpfProgram, sock_filter};

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Makes vCPUs and threads for them, which become [`ThreadKind::Vcpu`].
    Cpus,
    /// Guest memory that comes and goes.
    Memory,
    /// Everything but CPUs and disks.
    Devices,
    /// The disks.
    Disk,
    /// The disks of volumes, which come and go.
    Volumes,
    /// The file system device.
    Fs,
}

/// A filter cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("seccomp filter of a {kind:?} thread: {source}")]
pub struct FilterError {
    kind: ThreadKind,
    source: seccompiler::Error,
}

/// KVM calls by which a vCPU runs and is made (linux/kvm.h).
mod kvm {
    pub const RUN: u32 = 0xae80;
    pub const CREATE_VCPU: u32 = 0xae41;
    pub const SET_MSRS: u32 = 0x4008_ae89;
    pub const SET_CPUID2: u32 = 0x4008_ae90;
    pub const SET_LAPIC: u32 = 0x4400_ae8f;
    /// What a vCPU's own thread may ask of it.
    pub const VCPU: [u32; 10] = [
        RUN,
        0x8090_ae81, // GET_REGS
        0x8138_ae83, // GET_SREGS
        0xc008_ae88, // GET_MSRS
        0x8400_ae8e, // GET_LAPIC
        0x8004_ae98, // GET_MP_STATE
        0x8040_ae9f, // GET_VCPU_EVENTS
        0x8080_aea1, // GET_DEBUGREGS
        0x9000_aea4, // GET_XSAVE
        0x8188_aea6, // GET_XCRS
    ];
    /// How the interrupt controllers and the clock are saved, and what is written after that
    /// is remembered.
    pub const SAVE: [u32; 4] = [
        0xc208_ae62, // GET_IRQCHIP
        0x8030_ae7c, // GET_CLOCK
        SET_USER_MEMORY_REGION,
        0x4010_ae42, // GET_DIRTY_LOG
    ];
    /// What the thread that makes vCPUs does, and, as they inherit its filter, theirs.
    pub const MAKE: [u32; 4 + VCPU.len()] = {
        let mut calls = [CREATE_VCPU; 4 + VCPU.len()];
        calls[1] = SET_MSRS;
        calls[2] = SET_CPUID2;
        calls[3] = SET_LAPIC;
        let mut index = 0;
        while index < VCPU.len() {
            calls[4 + index] = VCPU[index];
            index += 1;
        }
        calls
    };
    pub const SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
}

/// What every thread does: locks, waking others, memory, time, ending the process.
const COMMON: [i64; 8] = [
    libc::SYS_write,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_exit_group,
];

/// What a thread does that is stopped by a signal.
const STOPPABLE: [i64; 2] = [libc::SYS_rt_sigreturn, libc::SYS_gettid];

const DEVICES: [i64; 18] = [
    libc::SYS_dup3,
    libc::SYS_read,
    libc::SYS_pwritev,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_pread64,
    libc::SYS_close,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_getrandom,
];

const DISK: [i64; 6] = [
    libc::SYS_read,
    libc::SYS_fdatasync,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_preadv,
    libc::SYS_pwritev,
];

const VOLUMES: [i64; 7] = [
    libc::SYS_read,
    libc::SYS_close,
    libc::SYS_fdatasync,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_preadv,
    libc::SYS_pwritev,
];

const MEMORY: [i64; 2] = [libc::SYS_read, libc::SYS_epoll_wait];

/// What it takes to make a thread, and for a new thread to confine itself.
const THREADS: [i64; 9] = [
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_seccomp,
    libc::SYS_prctl,
];

/// MADV_GUARD_INSTALL and MADV_GUARD_REMOVE: how glibc 2.42 guards a thread's stack.
const GUARD: [u32; 2] = [102, 103];

const FS: [i64; 2] = [libc::SYS_read, libc::SYS_epoll_wait];

/// When a system call is allowed.
#[derive(Clone, Debug)]
enum Rule {
    Always,
    /// The 32-bit argument with this index is one of these.
    OneOf(u32, &'static [u32]),
    /// The 32-bit argument with this index has none of these bits.
    Without(u32, u32),
    /// It has this bit.
    With(u32, u32),
    /// As if the kernel had no such call.
    Missing,
}

/// Confines the calling thread for good.
pub fn install(kind: ThreadKind) -> Result<(), FilterError> {
    seccompiler::apply_filter(&program(kind)).map_err(|source| FilterError { kind, source })
}

/// The rules of a kind of thread, by number of the system call.
fn rules(kind: ThreadKind) -> Vec<(u32, Rule)> {
    let mut rules = Vec::new();
    let mut allow = |calls: &[i64], rule: Rule| {
        // Numbers of system calls are small.
        rules.extend(calls.iter().map(|call| (*call as u32, rule.clone())));
    };
    allow(&COMMON, Rule::Always);
    // Memory for malloc, never executable.
    let executable = libc::PROT_EXEC as u32;
    allow(&[libc::SYS_mmap], Rule::Without(2, executable));
    match kind {
        ThreadKind::Vcpu => {
            allow(&STOPPABLE, Rule::Always);
            allow(&[libc::SYS_ioctl], Rule::OneOf(1, &kvm::VCPU));
        }
        ThreadKind::Cpus => {
            // Its threads inherit this and confine themselves once more.
            let calls = &kvm::MAKE;
            allow(&[libc::SYS_ioctl], Rule::OneOf(1, calls));
            allow(&[libc::SYS_mprotect], Rule::Without(2, executable));
            allow(&[libc::SYS_madvise], Rule::OneOf(2, &GUARD));
            allow(&THREADS, Rule::Always);
            // Threads, no processes. The flags of clone3 are out of a filter's sight; libc
            // makes do with clone.
            let thread = libc::CLONE_THREAD as u32;
            allow(&[libc::SYS_clone], Rule::With(0, thread));
            allow(&[libc::SYS_clone3], Rule::Missing);
        }
        ThreadKind::Memory => {
            let calls = &[kvm::SET_USER_MEMORY_REGION];
            allow(&[libc::SYS_ioctl], Rule::OneOf(1, calls));
            let advice = &[libc::MADV_DONTNEED as u32];
            allow(&[libc::SYS_madvise], Rule::OneOf(2, advice));
            allow(&[libc::SYS_mprotect], Rule::Without(2, executable));
            allow(&MEMORY, Rule::Always);
        }
        ThreadKind::Devices => {
            allow(&DEVICES, Rule::Always);
            allow(&[libc::SYS_ioctl], Rule::OneOf(1, &kvm::SAVE));
        }
        ThreadKind::Disk => allow(&DISK, Rule::Always),
        ThreadKind::Volumes => allow(&VOLUMES, Rule::Always),
        ThreadKind::Fs => allow(&FS, Rule::Always),
    }
    rules.sort_by_key(|(call, _)| *call);
    rules
}

/// Offsets in the kernel's `struct seccomp_data`.
const DATA_CALL: u32 = 0;
const DATA_ARCHITECTURE: u32 = 4;
const DATA_ARGUMENTS: u32 = 16;
/// AUDIT_ARCH_X86_64.
const ARCHITECTURE: u32 = 0xc000_003e;

/// BPF instruction codes.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: sock_filter = statement(RETURN, libc::SECCOMP_RET_ALLOW);
const MISSING: sock_filter = statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
const KILL: sock_filter = statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS);

const fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// `jt` and `jf`: instructions to skip when the comparison is true, or false.
const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// The filter of a kind of thread.
fn program(kind: ThreadKind) -> BpfProgram {
    let mut program = vec![
        statement(LOAD, DATA_ARCHITECTURE),
        jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
        KILL,
        statement(LOAD, DATA_CALL),
    ];
    program.extend(search(&rules(kind)));
    program
}

/// Finds the call among sorted rules; every way through it ends in a return.
fn search(rules: &[(u32, Rule)]) -> BpfProgram {
    if let [(call, rule)] = rules {
        let body = body(rule);
        let mut program = vec![jump(JUMP_EQUAL, *call, 0, skip(&body))];
        program.extend(body);
        program.push(KILL);
        return program;
    }
    let (lower, upper) = rules.split_at(rules.len() / 2);
    let (low, high) = (search(lower), search(upper));
    let mut program = vec![jump(JUMP_GREATER_OR_EQUAL, upper[0].0, skip(&low), 0)];
    program.extend(low);
    program.extend(high);
    program
}

/// What decides once the call is known.
fn body(rule: &Rule) -> BpfProgram {
    let load = |argument: u32| statement(LOAD, DATA_ARGUMENTS + 8 * argument);
    match rule {
        Rule::Always => vec![ALLOW],
        Rule::OneOf(argument, values) => {
            let mut body = vec![load(*argument)];
            for value in *values {
                body.extend([jump(JUMP_EQUAL, *value, 0, 1), ALLOW]);
            }
            body.push(KILL);
            body
        }
        Rule::Without(argument, bits) => {
            vec![load(*argument), jump(JUMP_BITS, *bits, 0, 1), KILL, ALLOW]
        }
        Rule::With(argument, bit) => {
            vec![load(*argument), jump(JUMP_BITS, *bit, 0, 1), ALLOW, KILL]
        }
        Rule::Missing => vec![MISSING],
    }
}

/// The jump over a piece of program.
fn skip(piece: &[sock_filter]) -> u8 {
    u8::try_from(piece.len()).expect("our filters are short")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ThreadKind; 7] = [
        ThreadKind::Vcpu,
        ThreadKind::Cpus,
        ThreadKind::Memory,
        ThreadKind::Devices,
        ThreadKind::Disk,
        ThreadKind::Volumes,
        ThreadKind::Fs,
    ];

    /// What a filter says to a system call, as the kernel would run it.
    fn verdict(program: &BpfProgram, architecture: u32, call: u32, arguments: [u32; 6]) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let jump = |condition: bool| usize::from(if condition { jt } else { jf });
            at += 1;
            match code {
                LOAD if k == DATA_CALL => accumulator = call,
                LOAD if k == DATA_ARCHITECTURE => accumulator = architecture,
                LOAD => accumulator = arguments[((k - DATA_ARGUMENTS) / 8) as usize],
                JUMP_EQUAL => at += jump(accumulator == k),
                JUMP_GREATER_OR_EQUAL => at += jump(accumulator >= k),
                JUMP_BITS => at += jump(accumulator & k != 0),
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn exactly_the_calls_with_rules_are_allowed() {
        for kind in KINDS {
            let program = program(kind);
            let rules = rules(kind);
            for call in 0..600 {
                let allowed = rules.iter().find(|(number, _)| *number == call);
                let expected = match allowed {
                    Some((_, Rule::OneOf(..) | Rule::With(..))) | None => {
                        libc::SECCOMP_RET_KILL_PROCESS
                    }
                    Some((_, Rule::Missing)) => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
                    Some(_) => libc::SECCOMP_RET_ALLOW,
                };
                let verdict = verdict(&program, ARCHITECTURE, call, [0; 6]);
                assert_eq!(verdict, expected, "{kind:?} {call}");
            }
        }
    }

    #[test]
    fn arguments_count() {
        let cpus = program(ThreadKind::Cpus);
        let vcpu = program(ThreadKind::Vcpu);
        let ioctl = |program: &BpfProgram, request: u32| {
            let arguments = [5, request, 0, 0, 0, 0];
            verdict(program, ARCHITECTURE, libc::SYS_ioctl as u32, arguments)
        };
        assert_eq!(ioctl(&vcpu, kvm::RUN), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ioctl(&cpus, kvm::SET_MSRS), libc::SECCOMP_RET_ALLOW);
        for request in [kvm::SET_MSRS, kvm::CREATE_VCPU, 0, 0x5401] {
            assert_eq!(ioctl(&vcpu, request), libc::SECCOMP_RET_KILL_PROCESS);
        }
        let clone = |flags: i32| {
            let arguments = [flags as u32, 0, 0, 0, 0, 0];
            verdict(&cpus, ARCHITECTURE, libc::SYS_clone as u32, arguments)
        };
        let thread = libc::CLONE_THREAD | libc::CLONE_VM;
        assert_eq!(clone(thread), libc::SECCOMP_RET_ALLOW);
        assert_eq!(clone(libc::CLONE_VM), libc::SECCOMP_RET_KILL_PROCESS);
        for kind in KINDS {
            let mmap = |protection: i32| {
                let arguments = [0, 4096, protection as u32, 0, 0, 0];
                let call = libc::SYS_mmap as u32;
                verdict(&program(kind), ARCHITECTURE, call, arguments)
            };
            assert_eq!(mmap(libc::PROT_READ), libc::SECCOMP_RET_ALLOW);
            assert_eq!(
                mmap(libc::PROT_READ | libc::PROT_EXEC),
                libc::SECCOMP_RET_KILL_PROCESS
            );
        }
    }

    #[test]
    fn other_architectures_are_killed() {
        const I386: u32 = 0x4000_0003;
        for kind in KINDS {
            for call in 0..600 {
                let verdict = verdict(&program(kind), I386, call, [0; 6]);
                assert_eq!(verdict, libc::SECCOMP_RET_KILL_PROCESS);
            }
        }
    }
}
