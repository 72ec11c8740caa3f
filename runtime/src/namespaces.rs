//! Namespaces of a process: which ones it is born into, which it enters or makes itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::pause;
use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};

use crate::plan::{IdMapping, NamespaceKind, NamespacePlan, PlanError};
use crate::process::message::{Stage, Step};
use crate::process::reap;
use crate::sys::{self, NewProcess};

/// How `statfs` tells a proc file system.
pub(crate) const PROC_MAGIC: u64 = 0x9fa0;

/// Namespaces to be joined, open.
#[derive(Debug, Default)]
pub(crate) struct Joined(Vec<(NamespaceKind, OwnedFd)>);

impl Joined {
    /// Opens the namespace files that a plan names.
    pub(crate) fn open(plan: &NamespacePlan) -> Result<Self, PlanError> {
        let mut joined = Vec::new();
        for (kind, path) in &plan.join {
            let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
                |error| {
                    PlanError::new(
                        "linux.namespaces",
                        format!("{kind} namespace {}: {error}", path.display()),
                    )
                },
            )?;
            joined.push((*kind, file));
        }
        Ok(Self(joined))
    }

    /// The open namespace of a kind.
    pub(crate) fn get(&self, kind: NamespaceKind) -> Option<BorrowedFd<'_>> {
        self.0
            .iter()
            .find(|(other, _)| *other == kind)
            .map(|(_, file)| file.as_fd())
    }

    /// Enters all of them except the kinds in `without`; the user namespace last, because entering
    /// it gives up the rights over the others.
    pub(crate) fn enter(&self, without: &[NamespaceKind]) -> Step<()> {
        let (user, others): (Vec<_>, Vec<_>) = self
            .0
            .iter()
            .filter(|(kind, _)| !without.contains(kind))
            .partition(|(kind, _)| *kind == NamespaceKind::User);
        for (kind, file) in others.into_iter().chain(user) {
            sys::set_namespace(file.as_fd(), kind.flag())
                .stage(|| format!("join {kind} namespace"))?;
        }
        Ok(())
    }
}

/// The flags of the namespaces that a process is born into. The cgroup namespace is made later,
/// from within the container's cgroup, because its root is the cgroup of the process that makes
/// it; the time namespace too, because its clocks are set before the first process is in it.
pub(crate) fn birth_flags(plan: &NamespacePlan) -> u64 {
    plan.new
        .iter()
        .filter(|kind| !matches!(kind, NamespaceKind::Cgroup | NamespaceKind::Time))
        .fold(0, |flags, kind| flags | kind.flag())
}

/// Makes the namespaces that are left out at birth. `proc` is the host's /proc.
pub(crate) fn make_late(plan: &NamespacePlan, proc: BorrowedFd<'_>) -> Step<()> {
    if plan.makes(NamespaceKind::Cgroup) {
        sys::unshare(NamespaceKind::Cgroup.flag()).stage(|| "make cgroup namespace")?;
    }
    if plan.makes(NamespaceKind::Time) {
        make_time(&plan.time_offsets, proc).stage(|| "make time namespace")?;
    }
    Ok(())
}

fn make_time(offsets: &str, proc: BorrowedFd<'_>) -> io::Result<()> {
    let flag = NamespaceKind::Time.flag();
    sys::unshare(flag)?;
    if !offsets.is_empty() {
        write_at(proc, "self/timens_offsets", offsets)?;
    }
    // Unsharing concerns children only; this process has to enter too.
    let namespace = openat(
        proc,
        "self/ns/time_for_children",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    sys::set_namespace(namespace.as_fd(), flag)
}

/// The mappings of the user namespace at `path`: user ids and group ids, with the outside as the
/// caller sees it. They are told of processes only, so one is made in the namespace for a moment.
pub(crate) fn mappings_of(path: &Path) -> io::Result<(Vec<IdMapping>, Vec<IdMapping>)> {
    let namespace = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (entered, inside) = pipe_with(PipeFlags::CLOEXEC)?;
    let (pid, holder) = sys::spawn(NewProcess::default(), move || {
        // Killed below, or with the caller.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        let told = sys::set_namespace(namespace.as_fd(), NamespaceKind::User.flag())
            .and_then(|()| Ok(rustix::io::write(&inside, b"y")?));
        if told.is_ok() {
            loop {
                pause();
            }
        }
        1
    })?;
    let read = || {
        if rustix::io::read(&entered, &mut [0u8; 1])? == 0 {
            return Err(io::Error::other("it cannot be entered"));
        }
        let table = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        Ok((mappings(&table("uid_map")?), mappings(&table("gid_map")?)))
    };
    let result = read();
    pidfd_send_signal(&holder, Signal::KILL)?;
    reap(holder.as_fd())?;
    result
}

/// The lines of a `uid_map` or `gid_map`.
fn mappings(table: &str) -> Vec<IdMapping> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse().ok());
            Some(IdMapping {
                inside: fields.next()??,
                outside: fields.next()??,
                length: fields.next()??,
            })
        })
        .collect()
}

/// The host's /proc. Opened before anything of the container's is mounted, it is what nothing there
/// can pass for.
pub(crate) fn open_proc() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, "/proc", flags, Mode::empty())?;
    match fstatfs(&proc)?.f_type as u64 {
        PROC_MAGIC => Ok(proc),
        _ => Err(io::Error::other("it is not a proc file system")),
    }
}

/// Whether the calling process is not root, and so has rights over its own user namespaces alone. To
/// be asked on the host.
pub(crate) fn is_rootless() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Whether the caller is root, and not only of a user namespace, in which the tools for rootless
/// containers start runtimes: there the host's directories and cgroups are somebody else's.
pub fn is_root_of_the_host() -> bool {
    let all = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").map_or(true, all)
}

/// Maps the ids of the new user namespace that `pid` is in. A caller who is not root may map its own
/// ids; for others there are newuidmap and newgidmap, which know what `/etc/subuid` and
/// `/etc/subgid` give to whom.
pub(crate) fn write_mappings(pid: u32, plan: &NamespacePlan) -> io::Result<()> {
    let own = |mappings: &[IdMapping], id: u32| matches!(mappings, [one] if one.length == 1 && one.outside == id);
    if !is_rootless() {
        write_map(pid, "uid_map", &plan.uid_mappings)?;
        return write_map(pid, "gid_map", &plan.gid_mappings);
    }
    if own(&plan.uid_mappings, rustix::process::geteuid().as_raw()) {
        write_map(pid, "uid_map", &plan.uid_mappings)?;
    } else {
        run_mapper("newuidmap", pid, &plan.uid_mappings)?;
    }
    if own(&plan.gid_mappings, rustix::process::getegid().as_raw()) {
        // Or the namespace's root could leave a group that keeps it out of something.
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        write_map(pid, "gid_map", &plan.gid_mappings)
    } else {
        run_mapper("newgidmap", pid, &plan.gid_mappings)
    }
}

fn write_map(pid: u32, name: &str, mappings: &[IdMapping]) -> io::Result<()> {
    let lines: String = mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.inside, map.outside, map.length))
        .collect();
    // The kernel takes each map in one write.
    std::fs::write(format!("/proc/{pid}/{name}"), lines)
}

fn run_mapper(program: &str, pid: u32, mappings: &[IdMapping]) -> io::Result<()> {
    let mut command = std::process::Command::new(program);
    command.arg(pid.to_string());
    for map in mappings {
        command.args([map.inside, map.outside, map.length].map(|number| number.to_string()));
    }
    let output = command.output().map_err(|error| {
        let hint = "install the package uidmap, or map your own ids alone";
        io::Error::other(format!("{program}: {error}; {hint}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program}: {}; your ranges are in /etc/subuid and /etc/subgid",
        said.trim()
    )))
}

/// The caller's children are born into another pid namespace as long as this lives.
#[derive(Debug)]
pub(crate) struct ChildrenIn {
    own: OwnedFd,
    dumpable: bool,
}

impl ChildrenIn {
    /// `namespace` is a pid namespace's file or a descriptor of a process in it. The caller's
    /// memory, of which the child is a copy, is closed to the processes there meanwhile.
    pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let own = openat(
            CWD,
            Path::new("/proc/self/ns/pid"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let dumpable = sys::is_dumpable();
        sys::set_dumpable(false)?;
        let guard = Self { own, dumpable };
        sys::set_namespace(namespace, NamespaceKind::Pid.flag())?;
        Ok(guard)
    }
}

impl Drop for ChildrenIn {
    fn drop(&mut self) {
        // Going back to one's own namespace cannot be refused; were it, later children would be
        // born into the container, so the process must not go on.
        if let Err(error) = sys::set_namespace(self.own.as_fd(), NamespaceKind::Pid.flag()) {
            panic!("cannot return to the own pid namespace: {error}");
        }
        let _ = sys::set_dumpable(self.dumpable);
    }
}

/// Writes a file below an open directory.
pub(crate) fn write_at(directory: BorrowedFd<'_>, path: &str, text: &str) -> io::Result<()> {
    let file = openat(
        directory,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let written = rustix::io::write(&file, text.as_bytes())?;
    if written == text.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
