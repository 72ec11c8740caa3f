//! System call filters: a profile is compiled before the container's process is made, and
//! installed in it.

use std::cell::RefCell;
use std::io::{Read, Seek};
use std::rc::Rc;

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;

use crate::sys;

/// Why a profile cannot be used.
#[derive(Debug, Error)]
pub(crate) enum FilterError {
    /// Something in the profile that this engine does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The library refused a part of the profile.
    #[error("{what}: {source}")]
    Library {
        /// Which part.
        what: String,
        /// Why.
        source: SeccompError,
    },
    /// The compiled filter could not be read back.
    #[error("cannot compile the filter: {0}")]
    Io(#[from] std::io::Error),
}

/// A compiled profile.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Rc<[u8]>,
    flags: u64,
}

thread_local! {
    /// The profile that was compiled last. Containers of a pod, and processes that join one, mostly
    /// share a profile, and compiling takes longer than most other steps of making a process.
    static LAST: RefCell<Option<(LinuxSeccomp, Filter)>> = const { RefCell::new(None) };
}

impl Filter {
    /// Compiles a profile; `None` when it allows everything.
    pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Option<Self>, FilterError> {
        let no_rule = profile.syscalls().as_ref().is_none_or(Vec::is_empty);
        if profile.default_action() == LinuxSeccompAction::ScmpActAllow && no_rule {
            return Ok(None);
        }
        let known = LAST.with_borrow(|last| match last {
            Some((known, filter)) if known == profile => Some(filter.clone()),
            _ => None,
        });
        if let Some(filter) = known {
            return Ok(Some(filter));
        }
        let filter = Self {
            program: program(profile)?.into(),
            flags: flags(profile),
        };
        LAST.replace(Some((profile.clone(), filter.clone())));
        Ok(Some(filter))
    }

    /// Puts the calling process under the filter, for good.
    pub(crate) fn install(&self) -> std::io::Result<()> {
        sys::install_filter(&self.program, self.flags)
    }
}

fn program(profile: &LinuxSeccomp) -> Result<Vec<u8>, FilterError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context =
        ScmpFilterContext::new(default).map_err(|source| library("defaultAction", source))?;
    for arch in profile.architectures().iter().flatten() {
        let known = architecture(*arch);
        // The native one is in every filter from the start.
        if !context.is_arch_present(known).unwrap_or(false) {
            context
                .add_arch(known)
                .map_err(|source| library(arch.to_string(), source))?;
        }
    }
    // A binary tree instead of a list: every system call of the container passes through this.
    context
        .set_ctl_optimize(2)
        .map_err(|source| library("optimisation", source))?;
    let mut newest = 0;
    for rule in profile.syscalls().iter().flatten() {
        let rule_action = action(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            // A profile names the calls of many kernels; one that this library does not know
            // cannot be named in a filter and falls under the default action.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            newest = newest.max(call.as_raw_syscall());
            if rule_action != default {
                add_rule(&mut context, rule_action, call, rule)
                    .map_err(|source| library(name, source))?;
            }
        }
    }
    let mut file = std::fs::File::from(
        memfd_create("filter", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?,
    );
    context
        .export_bpf(&file)
        .map_err(|source| library("export", source))?;
    let mut program = unknown_calls(profile, newest);
    file.rewind()?;
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn library(what: impl Into<String>, source: SeccompError) -> FilterError {
    FilterError::Library {
        what: what.into(),
        source,
    }
}

fn add_rule(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    rule: &LinuxSyscall,
) -> Result<(), SeccompError> {
    let args: Vec<&LinuxSeccompArg> = rule.args().iter().flatten().collect();
    let compares: Vec<ScmpArgCompare> = args.iter().map(|arg| compare(arg)).collect();
    let repeated = args
        .iter()
        .enumerate()
        .any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    if compares.is_empty() {
        context.add_rule(action, call)?;
    } else if repeated {
        // The library takes one condition for each argument; several mean "one of them".
        for compare in compares {
            context.add_rule_conditional(action, call, &[compare])?;
        }
    } else {
        context.add_rule_conditional(action, call, &compares)?;
    }
    Ok(())
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // Here the first value is the mask and the second what must be left.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    ScmpArgCompare::new(arg.index() as u32, operator, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    let code = u16::try_from(errno)
        .map_err(|_| FilterError::Unsupported(format!("errnoRet {errno} is above 65535")))?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(code.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(code),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(FilterError::Unsupported(
                "SCMP_ACT_NOTIFY is not supported; use another action".to_owned(),
            ));
        }
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

fn flags(profile: &LinuxSeccomp) -> u64 {
    profile
        .flags()
        .iter()
        .flatten()
        .map(|flag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // Concerns notifications, which no filter here makes.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        })
        .fold(0, |flags, flag| flags | flag as u64)
}

/// The kernel's name of the native architecture (`AUDIT_ARCH_*`).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// A head for the program: calls newer than every call that the profile knows fail with ENOSYS,
/// because a C library tries a new call first and falls back to an old one only on that error, not
/// on the EPERM that most profiles give by default.
fn unknown_calls(profile: &LinuxSeccomp, newest: i32) -> Vec<u8> {
    let refuses = match profile.default_action() {
        LinuxSeccompAction::ScmpActErrno => {
            profile.default_errno_ret() != Some(libc::ENOSYS as u32)
        }
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap => true,
        _ => false,
    };
    if !refuses || newest <= 0 {
        return Vec::new();
    }
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const NUMBER_OFFSET: u32 = 0;
    const ARCH_OFFSET: u32 = 4;
    /// Marks the calls of x32, which share the architecture of x86-64.
    const X32: u32 = 0x4000_0000;
    let head = [
        (LOAD, 0, 0, ARCH_OFFSET),
        (JUMP_EQUAL, 0, 4, NATIVE),
        (LOAD, 0, 0, NUMBER_OFFSET),
        (JUMP_AT_LEAST, 2, 0, X32),
        (JUMP_GREATER, 0, 1, newest as u32),
        (RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    head.iter()
        .flat_map(|&(code, yes, no, value): &(u16, u8, u8, u32)| {
            let mut bytes = code.to_ne_bytes().to_vec();
            bytes.extend([yes, no]);
            bytes.extend(value.to_ne_bytes());
            bytes
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxSeccompBuilder, LinuxSyscallBuilder};

    fn profile(default: LinuxSeccompAction, names: &[&str]) -> LinuxSeccomp {
        let rule = LinuxSyscallBuilder::default()
            .names(
                names
                    .iter()
                    .map(|name| name.to_string())
                    .collect::<Vec<_>>(),
            )
            .action(LinuxSeccompAction::ScmpActAllow)
            .build()
            .unwrap();
        LinuxSeccompBuilder::default()
            .default_action(default)
            .syscalls(vec![rule])
            .build()
            .unwrap()
    }

    #[test]
    fn an_unknown_call_is_left_out() {
        let with = profile(LinuxSeccompAction::ScmpActErrno, &["read", "no_such_call"]);
        let without = profile(LinuxSeccompAction::ScmpActErrno, &["read"]);
        let program = |profile| Filter::compile(profile).unwrap().unwrap().program;
        assert_eq!(program(&with), program(&without));
    }

    #[test]
    fn allowing_everything_is_no_filter() {
        let profile = LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActAllow)
            .build()
            .unwrap();
        assert!(Filter::compile(&profile).unwrap().is_none());
    }

    #[test]
    fn the_head_is_for_profiles_that_refuse() {
        let refusing = profile(LinuxSeccompAction::ScmpActErrno, &["read"]);
        assert_eq!(unknown_calls(&refusing, 400).len(), 6 * 8);
        let logging = profile(LinuxSeccompAction::ScmpActLog, &["read"]);
        assert!(unknown_calls(&logging, 400).is_empty());
    }
}
