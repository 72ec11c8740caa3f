//! The last part of every process's way: from a privileged process in the container to the user's
//! command.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Gid, Mode, Uid, fchown, fstat, makedev};
use rustix::process::{Resource, Rlimit, chdir, getcwd, setrlimit, umask};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::message::{Channel, Message, Stage, Step};
use super::{Io, command};
use crate::namespaces::write_at;
use crate::plan::ProcessPlan;
use crate::seccomp::Filter;
use crate::sys;

/// A process that has everything but its command.
pub(super) struct Prepared {
    path: CString,
    env: Vec<CString>,
    /// Still to be installed: with no_new_privileges it is the very last step, so that a profile
    /// need not allow what happens before.
    filter: Option<Filter>,
}

/// Connects the standard streams; a terminal is connected when there is one.
pub(crate) fn connect(io: &Io) -> Step<()> {
    let Io::Files {
        stdin,
        stdout,
        stderr,
    } = io
    else {
        return Ok(());
    };
    // A source may itself be one of 0 to 2: copies above them cannot be overwritten on the way.
    let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
    let all = || {
        let (stdin, stdout, stderr) = (
            copy(stdin.as_fd())?,
            copy(stdout.as_fd())?,
            copy(stderr.as_fd())?,
        );
        rustix::stdio::dup2_stdin(&stdin)?;
        rustix::stdio::dup2_stdout(&stdout)?;
        rustix::stdio::dup2_stderr(&stderr)
    };
    all().stage(|| "connect the standard streams")
}

/// How much the host gives to a process: what takes the rights, and the /proc, of the host. `pid` is
/// 0 for the calling process. Whoever is `rootless` may not make a process less likely to be killed,
/// and goes on without that.
pub(super) fn set_priorities(
    process: &ProcessPlan,
    proc: BorrowedFd<'_>,
    pid: u32,
    rootless: bool,
) -> Step<()> {
    if let Some(value) = process.oom_score_adj {
        let file = match pid {
            0 => "self/oom_score_adj".to_owned(),
            pid => format!("{pid}/oom_score_adj"),
        };
        match write_at(proc, &file, &value.to_string()) {
            Err(error) if rootless && error.kind() == io::ErrorKind::PermissionDenied => {}
            other => other.stage(|| format!("set oom_score_adj to {value}"))?,
        }
    }
    if let Some(scheduler) = process.scheduler {
        sys::set_scheduler(pid, scheduler).stage(|| "set the scheduler")?;
    }
    if let Some((class, level)) = process.io_priority {
        sys::set_io_priority(pid, class, level).stage(|| "set the io priority")?;
    }
    Ok(())
}

/// What the calling process sets for itself.
pub(super) fn set_own_attributes(process: &ProcessPlan) -> Step<()> {
    if let Some(cpus) = &process.affinity {
        sys::set_affinity(cpus).stage(|| "set the processor affinity")?;
    }
    if let Some(policy) = &process.memory_policy {
        sys::set_memory_policy(policy.mode, &policy.nodes).stage(|| "set the memory policy")?;
    }
    if let Some(domain) = process.personality {
        sys::set_personality(domain).stage(|| "set the personality")?;
    }
    Ok(())
}

/// Security labels for the program that the calling process becomes next, hooks among them. `proc`
/// is the host's.
pub(super) fn set_labels(process: &ProcessPlan, proc: BorrowedFd<'_>) -> Step<()> {
    if let Some(profile) = &process.apparmor_profile {
        let text = format!("exec {profile}");
        write_at(proc, "self/attr/apparmor/exec", &text)
            .or_else(|_| write_at(proc, "self/attr/exec", &text))
            .stage(|| format!("set the AppArmor profile {profile}"))?;
    }
    if let Some(label) = &process.selinux_label {
        write_at(proc, "self/attr/exec", label)
            .stage(|| format!("set the SELinux label {label}"))?;
    }
    Ok(())
}

/// Sets the limits of the calling process itself.
pub(super) fn set_limits(limits: &[(Resource, Rlimit)]) -> Step<()> {
    for &(resource, limit) in limits {
        setrlimit(resource, limit).stage(|| limit_stage(resource, limit))?;
    }
    Ok(())
}

pub(super) fn limit_stage(resource: Resource, limit: Rlimit) -> String {
    let number = |value: Option<u64>| value.map_or("unlimited".to_owned(), |v| v.to_string());
    format!(
        "set the {resource:?} limit to {} (hard limit {})",
        number(limit.current),
        number(limit.maximum)
    )
}

/// Closes every descriptor but the streams, those that the caller hands on and `kept`. Descriptors of
/// the host must not be there when a path of the container is used: one like /proc/self/fd/7/../..
/// would lead to the host's files (CVE-2024-21626). `kept` are closed when the command starts.
pub(super) fn let_go_of_the_host(preserve_fds: u32, kept: &[BorrowedFd<'_>]) -> Step<()> {
    let first = 3 + preserve_fds;
    sys::close_all_from(first, kept).stage(|| "close the descriptors of the host")?;
    // Now, for a profile that is older than the call would refuse it later.
    sys::close_on_exec_from(first).stage(|| "close the descriptors at the command's start")
}

/// Becomes the user of the command, with its rights and no more, and finds the command.
pub(super) fn become_user(
    process: &ProcessPlan,
    filter: Option<Filter>,
    channel: &Channel,
) -> Step<Prepared> {
    let early = filter.as_ref().filter(|_| !process.no_new_privileges);
    process
        .capabilities
        .limit_bounding()
        .stage(|| "limit the bounding set of capabilities")?;
    set_keep_capabilities(true).stage(|| "keep the capabilities")?;
    if process.no_new_privileges {
        set_no_new_privs(true).stage(|| "set no_new_privs")?;
    }
    own_streams(process.uid).stage(|| "hand the standard streams to the user")?;
    let entered = enter_cwd(process);
    if let Some(filter) = early {
        // Without no_new_privs only a privileged process may do this.
        install(filter, channel)?;
    }
    let groups: Vec<Gid> = process
        .groups
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    match set_thread_groups(&groups) {
        // A user namespace may forbid it; then there are none to be had.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        other => other.stage(|| "set the supplementary groups")?,
    }
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    set_thread_res_gid(gid, gid, gid).stage(|| format!("set group {}", process.gid))?;
    set_thread_res_uid(uid, uid, uid).stage(|| format!("set user {}", process.uid))?;
    // The user may be able to enter a directory that root (of a network file system) is not.
    entered.or_else(|_| enter_cwd(process))?;
    set_keep_capabilities(false).stage(|| "drop the capabilities")?;
    process
        .capabilities
        .apply()
        .stage(|| "set the capabilities")?;
    umask(Mode::from_raw_mode(process.umask));

    let mut env = process.env.clone();
    if process.variable("HOME").is_none_or(|home| home.is_empty()) {
        let home = command::home(process.uid).unwrap_or_else(|| "/".to_owned());
        env.retain(|entry| !entry.to_bytes().starts_with(b"HOME="));
        env.extend(CString::new(format!("HOME={home}")));
    }
    Ok(Prepared {
        path: command::find(process)?,
        env,
        filter: filter.filter(|_| process.no_new_privileges),
    })
}

impl Prepared {
    /// Runs the command; returns only when that fails.
    pub(super) fn execute(self, process: &ProcessPlan, channel: &Channel) -> Step<Infallible> {
        channel
            .send(&Message::Executing, None)
            .stage(|| "report to the caller")?;
        if let Some(filter) = &self.filter {
            install(filter, channel)?;
        }
        sys::execute(&self.path, &process.args, &self.env)
            .map_err(|error| command::refused(&self.path, &error))
    }
}

/// Puts the calling process under its filter.
fn install(filter: &Filter, channel: &Channel) -> Step<()> {
    let listener = filter.install().stage(|| "install the seccomp filter")?;
    match listener {
        Some(listener) => channel
            .offer_listener(listener.as_fd())
            .stage(|| "hand over the seccomp filter"),
        None => Ok(()),
    }
}

/// Gives the standard streams to the user, who could otherwise not open /dev/stdout again.
fn own_streams(uid: u32) -> io::Result<()> {
    let null = makedev(1, 3);
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let stat = fstat(stream)?;
        if stat.st_uid == uid || stat.st_rdev == null {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(uid)), None) {
            // Not every kind of file has an owner that can be changed.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM | rustix::io::Errno::ROFS) => {}
            other => other?,
        }
    }
    Ok(())
}

fn enter_cwd(process: &ProcessPlan) -> Step<()> {
    let stage = || format!("change to the directory {}", process.cwd.display());
    chdir(&process.cwd).stage(stage)?;
    // A path such as /proc/self/fd/7 can lead to a directory of the host that is still open. The
    // kernel marks a directory outside the root.
    let cwd = getcwd(Vec::new()).stage(stage)?;
    if cwd.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        let _ = chdir("/");
        Err("it is outside the container").stage(stage)
    }
}
