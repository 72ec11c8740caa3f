//! The system calls that each kind of thread may make. Anything else kills the
//! whole process, which its owner sees at once.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Waits to make and run a vCPU; then it becomes [`ThreadKind::Vcpu`].
    ParkedVcpu,
    /// Everything but CPUs and disks.
    Devices,
    /// The disks.
    Disk,
}

/// A filter cannot be made or installed.
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
}

/// Memory for malloc, never executable.
const MEMORY: [i64; 3] = [libc::SYS_munmap, libc::SYS_brk, libc::SYS_mremap];
/// What every thread does: locks, waking others, time, ending the process.
const COMMON: [i64; 5] = [
    libc::SYS_futex,
    libc::SYS_write,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_exit_group,
];

const DEVICES: [i64; 14] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_getrandom,
    libc::SYS_pread64,
];

const DISK: [i64; 6] = [
    libc::SYS_epoll_wait,
    libc::SYS_read,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
];

/// Confines the calling thread for good.
pub fn install(kind: ThreadKind) -> Result<(), FilterError> {
    let failed = |source| FilterError { kind, source };
    let program = program(kind).map_err(failed)?;
    seccompiler::apply_filter(&program).map_err(failed)
}

/// The filter of a kind of thread, compiled.
fn program(kind: ThreadKind) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut allow = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    allow(&COMMON);
    allow(&MEMORY);
    match kind {
        ThreadKind::Vcpu => {}
        // It confines itself once more when the vCPU is made.
        ThreadKind::ParkedVcpu => allow(&[libc::SYS_seccomp, libc::SYS_prctl]),
        ThreadKind::Devices => allow(&DEVICES),
        ThreadKind::Disk => allow(&DISK),
    }
    let ioctls: &[u32] = match kind {
        ThreadKind::Vcpu => &[kvm::RUN],
        ThreadKind::ParkedVcpu => {
            &[kvm::RUN, kvm::CREATE_VCPU, kvm::SET_MSRS, kvm::SET_CPUID2]
        }
        ThreadKind::Devices | ThreadKind::Disk => &[],
    };
    if !ioctls.is_empty() {
        let rules_of_ioctl = ioctls
            .iter()
            .map(|request| argument(1, SeccompCmpOp::Eq, u64::from(*request)))
            .collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_ioctl, rules_of_ioctl);
    }
    let executable = libc::PROT_EXEC as u64;
    let not_executable = argument(2, SeccompCmpOp::MaskedEq(executable), 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .map_err(seccompiler::Error::Backend)?;
    filter.try_into().map_err(seccompiler::Error::Backend)
}

/// A rule about one 32-bit argument.
fn argument(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
        .map_err(seccompiler::Error::Backend)?;
    SeccompRule::new(vec![condition]).map_err(seccompiler::Error::Backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_compiles() {
        for kind in [
            ThreadKind::Vcpu,
            ThreadKind::ParkedVcpu,
            ThreadKind::Devices,
            ThreadKind::Disk,
        ] {
            assert!(!program(kind).unwrap().is_empty());
        }
    }
}
