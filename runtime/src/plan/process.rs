//! What a process of a container is, whether it is the first one or joins later.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, PosixRlimit, PosixRlimitType, Process, Scheduler,
};
use rustix::process::{Resource, Rlimit};

use super::PlanError;
use crate::capabilities::CapabilitySets;
use crate::process::TerminalSize;
use crate::sys::SchedulerAttributes;

/// A validated process.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPlan {
    /// Command and arguments; not empty.
    pub args: Vec<CString>,
    /// Environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Working directory; absolute.
    pub cwd: PathBuf,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary group ids inside.
    pub groups: Vec<u32>,
    /// File creation mask.
    pub umask: u32,
    /// Capabilities.
    pub capabilities: CapabilitySets,
    /// Limits of the process itself.
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// Whether set-user-id programs give nothing.
    pub no_new_privileges: bool,
    /// How readily the kernel kills it when memory is short; `None` leaves the caller's.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// SELinux label.
    pub selinux_label: Option<String>,
    /// Scheduling policy.
    pub scheduler: Option<SchedulerAttributes>,
    /// Io class and level.
    pub io_priority: Option<(u32, u32)>,
    /// Execution domain.
    pub personality: Option<u32>,
    /// Processors to run on; never of a container's first process.
    pub affinity: Option<Vec<u32>>,
    /// Where memory is taken.
    pub memory_policy: Option<MemoryPolicy>,
    /// The size that the spec gives a terminal.
    pub console_size: Option<TerminalSize>,
}

/// Nodes that memory is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// `MPOL_*`, with its flags.
    pub mode: u32,
    /// The nodes; empty where the mode wants none.
    pub nodes: Vec<u32>,
}

impl ProcessPlan {
    /// Validates a process. What it leaves open is taken from `first`, the container's first
    /// process, when it joins a container. `linux` has what concerns every process.
    pub(super) fn new(
        process: &Process,
        first: Option<&Process>,
        linux: Option<&Linux>,
    ) -> Result<Self, PlanError> {
        let args: Vec<CString> = process
            .args()
            .iter()
            .flatten()
            .map(|arg| text("process.args", arg))
            .collect::<Result<_, _>>()?;
        if args.is_empty() {
            return Err(PlanError::new("process.args", "is empty; give a command"));
        }
        if !process.cwd().is_absolute() {
            return Err(PlanError::new(
                "process.cwd",
                format!("{:?} is not absolute", process.cwd()),
            ));
        }
        let env = environment(process.env().as_deref().unwrap_or_default())?;
        let capabilities = process
            .capabilities()
            .as_ref()
            .or(first.and_then(|first| first.capabilities().as_ref()));
        let own_limits = process.rlimits().as_deref().filter(|list| !list.is_empty());
        let limits = own_limits.or(first.and_then(|first| first.rlimits().as_deref()));
        let label = |own: &Option<String>, inherited: Option<&Option<String>>| {
            own.clone()
                .or_else(|| inherited.cloned().flatten())
                .filter(|label| !label.is_empty())
        };
        let oom_score_adj = process
            .oom_score_adj()
            .or(first.and_then(Process::oom_score_adj));
        if let Some(value) = oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
            return Err(PlanError::new(
                "process.oomScoreAdj",
                format!("{value} is not from -1000 to 1000"),
            ));
        }
        let apparmor_profile = label(
            process.apparmor_profile(),
            first.map(Process::apparmor_profile),
        );
        if apparmor_profile.is_some() && !has_apparmor() {
            return Err(PlanError::new(
                "process.apparmorProfile",
                "this host's kernel has no AppArmor; leave it out",
            ));
        }
        let selinux_label = label(process.selinux_label(), first.map(Process::selinux_label));
        if selinux_label.is_some() && !has_selinux() {
            return Err(PlanError::new(
                "process.selinuxLabel",
                "this host's kernel has no SELinux; leave it out",
            ));
        }
        let user = process.user();
        let groups = user.additional_gids().iter().flatten();
        // To the kernel it means "as it is".
        if groups
            .chain([&user.uid(), &user.gid()])
            .any(|id| *id == u32::MAX)
        {
            return Err(PlanError::new(
                "process.user",
                "4294967295 is no id; they are 0 to 4294967294",
            ));
        }
        Ok(Self {
            args,
            env,
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022) & 0o777,
            capabilities: CapabilitySets::new(capabilities)
                .map_err(|problem| PlanError::new("process.capabilities", problem))?,
            rlimits: rlimits(limits.unwrap_or_default())?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj,
            apparmor_profile,
            selinux_label,
            scheduler: process
                .scheduler()
                .as_ref()
                .or(first.and_then(|first| first.scheduler().as_ref()))
                .map(scheduler)
                .transpose()?,
            io_priority: process
                .io_priority()
                .as_ref()
                .or(first.and_then(|first| first.io_priority().as_ref()))
                .map(io_priority)
                .transpose()?,
            personality: linux
                .and_then(|linux| linux.personality().as_ref())
                .map(domain),
            memory_policy: linux
                .and_then(|linux| linux.memory_policy().as_ref())
                .map(memory_policy)
                .transpose()?,
            affinity: affinity(process, first)?,
            console_size: process.console_size().and_then(|size| {
                let size = TerminalSize {
                    columns: size.width().try_into().ok()?,
                    rows: size.height().try_into().ok()?,
                };
                (size.columns != 0 && size.rows != 0).then_some(size)
            }),
        })
    }

    /// The value of an environment variable.
    pub(crate) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.env.iter().find_map(|entry| {
            let value = entry.to_bytes().strip_prefix(name.as_bytes())?;
            Some(OsStr::from_bytes(value.strip_prefix(b"=")?))
        })
    }
}

/// Whether the kernel confines processes by AppArmor.
fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|value| value.starts_with(b"Y"))
}

/// Whether the kernel confines processes by SELinux.
pub(crate) fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn text(field: &str, value: &str) -> Result<CString, PlanError> {
    CString::new(value)
        .map_err(|_| PlanError::new(field, format!("{value:?} contains a zero byte")))
}

/// The variables, the last of each name.
fn environment(entries: &[String]) -> Result<Vec<CString>, PlanError> {
    let name = |index: usize| {
        let entry = &entries[index];
        match entry.split_once('=') {
            Some((name, _)) if !name.is_empty() => Ok(name),
            _ => Err(PlanError::new(
                format!("process.env[{index}]"),
                format!("{entry:?} is not of the form NAME=value"),
            )),
        }
    };
    let names = (0..entries.len())
        .map(name)
        .collect::<Result<Vec<_>, _>>()?;
    (0..entries.len())
        .filter(|&index| !names[index + 1..].contains(&names[index]))
        .map(|index| text(&format!("process.env[{index}]"), &entries[index]))
        .collect()
}

fn rlimits(limits: &[PosixRlimit]) -> Result<Vec<(Resource, Rlimit)>, PlanError> {
    let mut list: Vec<(Resource, Rlimit)> = Vec::new();
    for limit in limits {
        let resource = resource(limit.typ());
        if list.iter().any(|(other, _)| *other == resource) {
            return Err(PlanError::new(
                "process.rlimits",
                format!("{} is given twice", limit.typ()),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(PlanError::new(
                "process.rlimits",
                format!(
                    "{}: soft limit {} is above the hard limit {}",
                    limit.typ(),
                    limit.soft(),
                    limit.hard()
                ),
            ));
        }
        let value = |value: u64| (value != u64::MAX).then_some(value);
        list.push((
            resource,
            Rlimit {
                current: value(limit.soft()),
                maximum: value(limit.hard()),
            },
        ));
    }
    Ok(list)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

fn scheduler(scheduler: &Scheduler) -> Result<SchedulerAttributes, PlanError> {
    use LinuxSchedulerPolicy as Policy;
    let policy = match scheduler.policy() {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => 4,
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    let fail = |problem: String| PlanError::new("process.scheduler", problem);
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(fail(format!("nice {nice} is not from -20 to 19")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    let real_time = matches!(scheduler.policy(), Policy::SchedFifo | Policy::SchedRr);
    if real_time && !(1..=99).contains(&priority) || !real_time && priority != 0 {
        return Err(fail(format!(
            "priority {priority} does not fit {}: 1 to 99 for SCHED_FIFO and SCHED_RR, else 0",
            scheduler.policy()
        )));
    }
    let (runtime, deadline, period) = (
        scheduler.runtime().unwrap_or(0),
        scheduler.deadline().unwrap_or(0),
        scheduler.period().unwrap_or(0),
    );
    if *scheduler.policy() != Policy::SchedDeadline && (runtime, deadline, period) != (0, 0, 0) {
        return Err(fail(
            "runtime, deadline and period are for SCHED_DEADLINE alone".to_owned(),
        ));
    }
    Ok(SchedulerAttributes {
        policy,
        flags,
        nice,
        priority: priority as u32,
        runtime,
        deadline,
        period,
    })
}

fn io_priority(priority: &LinuxIOPriority) -> Result<(u32, u32), PlanError> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match priority.priority() {
        level @ 0..=7 => Ok((class, level as u32)),
        level => Err(PlanError::new(
            "process.ioPriority",
            format!("priority {level} is not from 0 to 7"),
        )),
    }
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicy, PlanError> {
    use MemoryPolicyModeType as Mode;
    let mode = policy.mode();
    let text = policy.nodes().as_deref().unwrap_or("").trim();
    let nodes = match text {
        "" => Vec::new(),
        text => numbers(text).ok_or_else(|| {
            PlanError::new(
                "linux.memoryPolicy.nodes",
                format!("{text:?} is not a list of nodes, as in 0-2,7"),
            )
        })?,
    };
    let (number, needs) = match mode {
        Mode::MpolDefault => (0, Some(false)),
        Mode::MpolPreferred => (1, None),
        Mode::MpolBind => (2, Some(true)),
        Mode::MpolInterleave => (3, Some(true)),
        Mode::MpolLocal => (4, Some(false)),
        Mode::MpolPreferredMany => (5, Some(true)),
        Mode::MpolWeightedInterleave => (6, Some(true)),
    };
    match (needs, nodes.is_empty()) {
        (Some(true), true) => {
            return Err(PlanError::new(
                "linux.memoryPolicy.nodes",
                format!("is empty; {mode} needs at least one node"),
            ));
        }
        (Some(false), false) => {
            return Err(PlanError::new(
                "linux.memoryPolicy.nodes",
                format!("{text:?} does not fit {mode}, which takes no nodes"),
            ));
        }
        _ => {}
    }
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    Ok(MemoryPolicy {
        mode: flags.fold(number, |mode, flag| mode | flag),
        nodes,
    })
}

fn domain(personality: &LinuxPersonality) -> u32 {
    // The specification names none; runc warns too.
    if let Some(flags) = personality.flags().as_ref().filter(|list| !list.is_empty()) {
        tracing::warn!("linux.personality.flags: {flags:?} is ignored; there are no flags");
    }
    match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }
}

/// The processors for the command, else those for its set-up: the set-up is over so soon that a
/// change on the way would cost more than it gives. A container's first process has none: what it
/// is given is for those that join it (`first`) and do not say themselves.
fn affinity(process: &Process, first: Option<&Process>) -> Result<Option<Vec<u32>>, PlanError> {
    let given = process.exec_cpu_affinity().as_ref();
    let Some(affinity) = given.or(first.and_then(|first| first.exec_cpu_affinity().as_ref()))
    else {
        return Ok(None);
    };
    let list = |name: &str, cpus: &Option<String>| {
        let cpus = cpus.as_ref().filter(|cpus| !cpus.is_empty());
        cpus.map(|cpus| {
            numbers(cpus).ok_or_else(|| {
                PlanError::new(
                    format!("process.execCPUAffinity.{name}"),
                    format!("{cpus:?} is not a list of processors, as in 0-2,7"),
                )
            })
        })
        .transpose()
    };
    let initial = list("initial", affinity.initial())?;
    let last = list("final", affinity.cpu_affinity_final())?;
    Ok(last.or(initial).filter(|_| first.is_some()))
}

/// A list such as `0-2,7`.
fn numbers(list: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 8192;
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!(numbers("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(numbers("2-1"), None);
        assert_eq!(numbers("0-99999999"), None);
        assert_eq!(numbers("x"), None);
    }
}
