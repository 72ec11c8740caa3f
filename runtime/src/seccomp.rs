//! System call filters: a profile is compiled before the container's process is made, and
//! installed in it.

mod listener;
mod program;

pub(crate) use listener::Listener;
pub(crate) use program::Instruction;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use crate::plan::PlanError;
use crate::sys;
use program::{Architecture, Comparison, Condition, Rule};

/// A compiled profile.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Rc<[Instruction]>,
    flags: u64,
    listener: Option<Listener>,
}

impl Filter {
    /// Compiles a profile; `None` when it allows everything.
    pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Option<Self>, PlanError> {
        let no_rule = profile.syscalls().as_ref().is_none_or(Vec::is_empty);
        if profile.default_action() == LinuxSeccompAction::ScmpActAllow && no_rule {
            return Ok(None);
        }
        let listener = Listener::new(profile)?;
        Ok(Some(Self {
            program: compile(profile)?.into(),
            flags: flags(profile, listener.is_some()),
            listener,
        }))
    }

    /// Who answers the calls that the filter leaves to an agent; `None` when there are none.
    pub(crate) fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// Puts the calling process under the filter, for good. With a listener, the descriptor for it
    /// is returned.
    pub(crate) fn install(&self) -> std::io::Result<Option<OwnedFd>> {
        sys::install_filter(&self.program, self.flags)
    }
}

#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = Arch::ScmpArchX86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = Arch::ScmpArchAarch64;

/// Marks the numbers of x32, which to the kernel are calls of x86-64.
const X32: u32 = 0x4000_0000;

fn compile(profile: &LinuxSeccomp) -> Result<Vec<Instruction>, PlanError> {
    let default = action(
        "linux.seccomp.defaultErrnoRet",
        profile.default_action(),
        profile.default_errno_ret(),
    )?;
    // The native one is in every filter.
    let mut asked = vec![NATIVE];
    for &arch in profile.architectures().iter().flatten() {
        if arch != Arch::ScmpArchNative && !asked.contains(&arch) {
            asked.push(arch);
        }
    }
    let mut architectures = Vec::new();
    for &arch in asked.iter().filter(|arch| **arch != Arch::ScmpArchX32) {
        let mut calls = Calls::default();
        calls.add_profile(profile, arch, default)?;
        let mut otherwise = BTreeMap::from([(0, default)]);
        unknown(profile, &calls, &mut otherwise);
        if arch == Arch::ScmpArchX86_64 {
            if asked.contains(&Arch::ScmpArchX32) {
                otherwise.insert(X32, default);
                let mut second = Calls::default();
                second.add_profile(profile, Arch::ScmpArchX32, default)?;
                unknown(profile, &second, &mut otherwise);
                calls.rules.append(&mut second.rules);
            } else {
                otherwise.insert(X32, libc::SECCOMP_RET_KILL_THREAD);
            }
        }
        architectures.push(Architecture {
            audit: arch as u32,
            calls: calls.rules,
            otherwise,
        });
    }
    // A call of an architecture that the profile does not know cannot be judged.
    Ok(program::compile(
        &architectures,
        libc::SECCOMP_RET_KILL_THREAD,
    ))
}

/// The rules of one architecture.
#[derive(Debug, Default)]
struct Calls {
    rules: BTreeMap<u32, Vec<Rule>>,
    /// The highest number that the profile has a rule for, whatever the rule.
    newest: Option<u32>,
}

impl Calls {
    fn add_profile(
        &mut self,
        profile: &LinuxSeccomp,
        arch: Arch,
        default: u32,
    ) -> Result<(), PlanError> {
        // Numbers of 32 bit architectures, and of x32, come with arguments of 32 bits.
        let wide = arch as u32 & 0x8000_0000 != 0 && arch != Arch::ScmpArchX32;
        for (index, call) in profile.syscalls().iter().flatten().enumerate() {
            let field = |name| format!("linux.seccomp.syscalls[{index}].{name}");
            let action = action(&field("errnoRet"), call.action(), call.errno_ret())?;
            let rules = rules(&field("args"), call, action, wide)?;
            for name in call.names() {
                if name.is_empty() {
                    return Err(PlanError::new(field("names"), "has an empty name"));
                }
                // A profile names the calls of many kernels and architectures: one that is not
                // known here cannot be filtered and falls under the default action.
                if let Some(number) = number(name, arch) {
                    self.newest = self.newest.max(Some(number));
                    if action != default {
                        self.rules.entry(number).or_default().extend(rules.clone());
                    }
                }
                if action != default && arch == Arch::ScmpArchX86 {
                    self.add_multiplexed(name, action, default, &rules);
                }
            }
        }
        Ok(())
    }

    /// The second way into the kernel that some calls of 32 bit x86 have: a call for many, whose
    /// first argument tells which is meant. The others lie behind a pointer there, which a filter
    /// cannot follow: a rule that depends on them holds always if it is stricter than the default,
    /// and never if it is not.
    fn add_multiplexed(&mut self, name: &str, action: u32, default: u32, rules: &[Rule]) {
        let Some(&(_, call, value, _)) = multiplexed(name) else {
            return;
        };
        let depends = rules.iter().all(|rule| !rule.conditions.is_empty());
        if depends && strictness(action) <= strictness(default) {
            return;
        }
        // The upper half of what tells the call is a version for one of the two.
        let mask = if call == IPC { 0xffff } else { u32::MAX.into() };
        self.rules.entry(call).or_default().push(Rule {
            conditions: vec![Condition {
                argument: 0,
                comparison: Comparison::Masked(mask),
                value,
            }],
            wide: false,
            action,
        });
    }
}

/// Calls on 32 bit x86 that have two ways into the kernel.
fn multiplexed(name: &str) -> Option<&'static (&'static str, u32, u64, Option<u32>)> {
    MULTIPLEXED.iter().find(|(other, ..)| *other == name)
}

const SOCKETCALL: u32 = 102;
const IPC: u32 = 117;

/// Name, the call for many and what tells this one there, and the number of its own that it was
/// given later.
const MULTIPLEXED: &[(&str, u32, u64, Option<u32>)] = &[
    ("socket", SOCKETCALL, 1, Some(359)),
    ("bind", SOCKETCALL, 2, Some(361)),
    ("connect", SOCKETCALL, 3, Some(362)),
    ("listen", SOCKETCALL, 4, Some(363)),
    ("accept", SOCKETCALL, 5, None),
    ("getsockname", SOCKETCALL, 6, Some(367)),
    ("getpeername", SOCKETCALL, 7, Some(368)),
    ("socketpair", SOCKETCALL, 8, Some(360)),
    ("send", SOCKETCALL, 9, None),
    ("recv", SOCKETCALL, 10, None),
    ("sendto", SOCKETCALL, 11, Some(369)),
    ("recvfrom", SOCKETCALL, 12, Some(371)),
    ("shutdown", SOCKETCALL, 13, Some(373)),
    ("setsockopt", SOCKETCALL, 14, Some(366)),
    ("getsockopt", SOCKETCALL, 15, Some(365)),
    ("sendmsg", SOCKETCALL, 16, Some(370)),
    ("recvmsg", SOCKETCALL, 17, Some(372)),
    ("accept4", SOCKETCALL, 18, Some(364)),
    ("recvmmsg", SOCKETCALL, 19, Some(337)),
    ("sendmmsg", SOCKETCALL, 20, Some(345)),
    ("semop", IPC, 1, None),
    ("semget", IPC, 2, Some(393)),
    ("semctl", IPC, 3, Some(394)),
    ("semtimedop", IPC, 4, None),
    ("msgsnd", IPC, 11, Some(400)),
    ("msgrcv", IPC, 12, Some(401)),
    ("msgget", IPC, 13, Some(399)),
    ("msgctl", IPC, 14, Some(402)),
    ("shmat", IPC, 21, Some(397)),
    ("shmdt", IPC, 22, Some(398)),
    ("shmget", IPC, 23, Some(395)),
    ("shmctl", IPC, 24, Some(396)),
];

/// How much an action takes away: the order in which the kernel lets one of several filters win.
fn strictness(action: u32) -> u32 {
    match action & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_KILL_PROCESS => 7,
        libc::SECCOMP_RET_KILL_THREAD => 6,
        libc::SECCOMP_RET_TRAP => 5,
        libc::SECCOMP_RET_ERRNO => 4,
        libc::SECCOMP_RET_USER_NOTIF => 3,
        libc::SECCOMP_RET_TRACE => 2,
        libc::SECCOMP_RET_LOG => 1,
        _ => 0,
    }
}

/// The number of a call; `None` when the architecture does not have it.
fn number(name: &str, arch: Arch) -> Option<u32> {
    if let Some((_, _, _, own)) = multiplexed(name).filter(|_| arch == Arch::ScmpArchX86) {
        // The library answers with a number that stands for both ways.
        return *own;
    }
    let call = ScmpSyscall::from_name_by_arch(name, architecture(arch)).ok()?;
    // Calls that exist elsewhere have numbers below 0.
    let number = u32::try_from(call.as_raw_syscall()).ok()?;
    Some(match arch {
        Arch::ScmpArchX32 => number | X32,
        _ => number,
    })
}

/// The rules that one entry of a profile means: one, or one for each condition when an argument
/// occurs more than once, which means "any of them".
fn rules(
    field: &str,
    call: &LinuxSyscall,
    action: u32,
    wide: bool,
) -> Result<Vec<Rule>, PlanError> {
    let args: Vec<&LinuxSeccompArg> = call.args().iter().flatten().collect();
    let conditions: Vec<Condition> = args
        .iter()
        .map(|arg| condition(field, arg))
        .collect::<Result<_, _>>()?;
    let repeated = args
        .iter()
        .enumerate()
        .any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    let rule = |conditions| Rule {
        conditions,
        wide,
        action,
    };
    Ok(if repeated {
        conditions.into_iter().map(|one| rule(vec![one])).collect()
    } else {
        vec![rule(conditions)]
    })
}

fn condition(field: &str, arg: &LinuxSeccompArg) -> Result<Condition, PlanError> {
    if arg.index() > 5 {
        return Err(PlanError::new(
            field,
            format!(
                "a system call has no argument {}; they are 0 to 5",
                arg.index()
            ),
        ));
    }
    let (comparison, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Comparison::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Comparison::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Comparison::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Comparison::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Comparison::GreaterOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater, arg.value()),
        // Here the first value is the mask and the second what must be left.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            Comparison::Masked(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok(Condition {
        argument: arg.index() as u32,
        comparison,
        value,
    })
}

fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, PlanError> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    if errno > libc::SECCOMP_RET_DATA {
        return Err(PlanError::new(field, format!("{errno} is above 65535")));
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | errno,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | errno,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
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

fn flags(profile: &LinuxSeccomp, listens: bool) -> u64 {
    // As runc does: without a word about flags, a filter changes nothing about speculation.
    let Some(asked) = profile.flags() else {
        return listener_flag(listens) | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    };
    asked
        .iter()
        .map(|flag| kernel_flag(*flag, listens))
        .fold(listener_flag(listens), |flags, flag| flags | flag)
}

fn kernel_flag(flag: LinuxSeccompFilterFlag, listens: bool) -> u64 {
    /// Once an agent has a call, only a fatal signal ends the wait for its answer (since Linux
    /// 5.19; the libc crate does not have it).
    const WAIT_KILLABLE_RECV: u64 = 1 << 5;
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        // There are no other threads.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => WAIT_KILLABLE_RECV,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    }
}

/// Whether this kernel has what a flag of a profile asks for.
pub fn has_filter_flag(flag: LinuxSeccompFilterFlag) -> bool {
    sys::knows_filter_flags(kernel_flag(flag, true) | listener_flag(true))
}

fn listener_flag(listens: bool) -> u64 {
    match listens {
        true => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        false => 0,
    }
}

/// Calls newer than every call that the profile knows fail with ENOSYS if the default is to refuse:
/// a C library tries a new call first and falls back to an old one only on that error, not on the
/// EPERM that most profiles give by default.
fn unknown(profile: &LinuxSeccomp, calls: &Calls, otherwise: &mut BTreeMap<u32, u32>) {
    let refuses = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActErrno
            | LinuxSeccompAction::ScmpActKill
            | LinuxSeccompAction::ScmpActKillThread
            | LinuxSeccompAction::ScmpActKillProcess
            | LinuxSeccompAction::ScmpActTrap
    );
    if let Some(newest) = calls.newest.filter(|_| refuses) {
        otherwise.insert(newest + 1, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }
}

#[cfg(test)]
mod tests;
