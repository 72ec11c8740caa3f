//! Namespaces of a process: which ones it is born into, which it enters or makes itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::plan::{IdMapping, NamespaceKind, NamespacePlan, PlanError};
use crate::process::message::{Stage, Step};
use crate::sys;

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

/// Maps the ids of the new user namespace that `pid` is in.
pub(crate) fn write_mappings(pid: u32, plan: &NamespacePlan) -> io::Result<()> {
    let lines = |mappings: &[IdMapping]| -> String {
        mappings
            .iter()
            .map(|map| format!("{} {} {}\n", map.inside, map.outside, map.length))
            .collect()
    };
    // The kernel takes each map in one write.
    std::fs::write(format!("/proc/{pid}/uid_map"), lines(&plan.uid_mappings))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), lines(&plan.gid_mappings))
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
