//! Which namespaces a container gets.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::fs::{CWD, Mode, OFlags, openat, stat};

use super::{PlanError, id_mappings};
use crate::namespaces::mappings_of;
use crate::sys;

/// A type of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamespaceKind {
    /// Mounts.
    Mount,
    /// The view of the cgroup hierarchy.
    Cgroup,
    /// Host and domain name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// User and group ids, capabilities.
    User,
    /// Process ids.
    Pid,
    /// Network.
    Network,
    /// Offsets of the monotonic and boot-time clocks.
    Time,
}

impl NamespaceKind {
    /// The `CLONE_NEW*` flag.
    pub(crate) fn flag(self) -> u64 {
        (match self {
            Self::Mount => libc::CLONE_NEWNS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Time => libc::CLONE_NEWTIME,
        }) as u64
    }
}

impl NamespaceKind {
    /// Whether the process `pid` is in the caller's own namespace of this kind.
    pub(crate) fn is_shared_with(self, pid: u32) -> bool {
        let directory = Path::new("/proc").join(pid.to_string()).join("ns");
        let theirs = self.own_path().file_name().map(|name| directory.join(name));
        theirs.and_then(|path| self.is_own(&path)) == Some(true)
    }

    /// Whether the namespace at `path` is the caller's own, when both can be seen.
    fn is_own(self, path: &Path) -> Option<bool> {
        let (own, other) = (stat(self.own_path()).ok()?, stat(path).ok()?);
        Some((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
    }

    /// The file of the caller's own namespace of this kind.
    fn own_path(self) -> &'static Path {
        Path::new(match self {
            Self::Mount => "/proc/self/ns/mnt",
            Self::Cgroup => "/proc/self/ns/cgroup",
            Self::Uts => "/proc/self/ns/uts",
            Self::Ipc => "/proc/self/ns/ipc",
            Self::User => "/proc/self/ns/user",
            Self::Pid => "/proc/self/ns/pid",
            Self::Network => "/proc/self/ns/net",
            Self::Time => "/proc/self/ns/time",
        })
    }
}

impl fmt::Display for NamespaceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Network => "network",
            Self::Time => "time",
        })
    }
}

impl From<LinuxNamespaceType> for NamespaceKind {
    fn from(kind: LinuxNamespaceType) -> Self {
        match kind {
            LinuxNamespaceType::Mount => Self::Mount,
            LinuxNamespaceType::Cgroup => Self::Cgroup,
            LinuxNamespaceType::Uts => Self::Uts,
            LinuxNamespaceType::Ipc => Self::Ipc,
            LinuxNamespaceType::User => Self::User,
            LinuxNamespaceType::Pid => Self::Pid,
            LinuxNamespaceType::Network => Self::Network,
            LinuxNamespaceType::Time => Self::Time,
        }
    }
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdMapping {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

/// Which namespaces a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NamespacePlan {
    /// Made for the container.
    pub new: Vec<NamespaceKind>,
    /// Joined: the path of a namespace file, and the field that names it.
    pub join: Vec<(NamespaceKind, PathBuf)>,
    /// User ids of the container's user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of the container's user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// Lines for `timens_offsets` of a new time namespace.
    pub time_offsets: String,
}

impl NamespacePlan {
    pub(super) fn new(linux: &Linux) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let kind = NamespaceKind::from(namespace.typ());
            if plan.is_private(kind) {
                return Err(PlanError::new(
                    "linux.namespaces",
                    format!("there are two {kind} namespaces; give one"),
                ));
            }
            match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    check_joined(kind, path).map_err(|problem| {
                        PlanError::new(format!("linux.namespaces[{index}].path"), problem)
                    })?;
                    plan.join.push((kind, path.clone()));
                }
                _ => plan.new.push(kind),
            }
        }
        if plan.has_user() && !plan.is_private(NamespaceKind::Mount) {
            return Err(PlanError::new(
                "linux.namespaces",
                "a user namespace needs a mount namespace beside it: in the host's it may not \
                 mount",
            ));
        }
        plan.user_mappings(linux)?;
        plan.offsets(linux)?;
        Ok(plan)
    }

    /// Whether the container has its own namespace of this kind, made or joined.
    pub(crate) fn is_private(&self, kind: NamespaceKind) -> bool {
        self.makes(kind) || self.joins(kind)
    }

    /// Whether a namespace of this kind is made.
    pub(crate) fn makes(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind)
    }

    /// Whether a namespace of this kind is joined.
    pub(crate) fn joins(&self, kind: NamespaceKind) -> bool {
        self.join.iter().any(|(other, _)| *other == kind)
    }

    /// Whether a namespace of this kind is joined and is the caller's own, which is as good as none.
    pub(super) fn is_of_the_caller(&self, kind: NamespaceKind) -> bool {
        let joined = self.join.iter().find(|(other, _)| *other == kind);
        joined.is_some_and(|(_, path)| kind.is_own(path) != Some(false))
    }

    /// Whether the container has a user namespace other than the host's.
    pub(crate) fn has_user(&self) -> bool {
        self.is_private(NamespaceKind::User)
    }

    fn user_mappings(&mut self, linux: &Linux) -> Result<(), PlanError> {
        let uids = id_mappings(linux.uid_mappings());
        let gids = id_mappings(linux.gid_mappings());
        if self.makes(NamespaceKind::User) {
            for (field, mappings) in [("linux.uidMappings", &uids), ("linux.gidMappings", &gids)] {
                if mappings.is_empty() {
                    return Err(PlanError::new(
                        field,
                        "is empty; a new user namespace needs at least one range",
                    ));
                }
                check_mappings(field, mappings)?;
            }
            self.uid_mappings = uids;
            self.gid_mappings = gids;
            return Ok(());
        }
        let joined = self
            .join
            .iter()
            .find(|(kind, _)| *kind == NamespaceKind::User);
        let Some((_, path)) = joined else {
            return match [("linux.uidMappings", uids), ("linux.gidMappings", gids)]
                .into_iter()
                .find(|(_, mappings)| !mappings.is_empty())
            {
                Some((field, _)) => Err(PlanError::new(
                    field,
                    "needs a user namespace in linux.namespaces",
                )),
                None => Ok(()),
            };
        };
        (self.uid_mappings, self.gid_mappings) = mappings_of(path).map_err(|error| {
            PlanError::new(
                "linux.namespaces",
                format!("the mappings of user namespace {}: {error}", path.display()),
            )
        })?;
        // Callers give what the namespace has anyway; anything else would not come true.
        for (field, given, actual) in [
            ("linux.uidMappings", uids, &self.uid_mappings),
            ("linux.gidMappings", gids, &self.gid_mappings),
        ] {
            if !given.is_empty() && !same_mappings(&given, actual) {
                return Err(PlanError::new(
                    field,
                    format!(
                        "is not what the joined user namespace {} has; leave it out",
                        path.display()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// A process can only have ids that its user namespace knows.
    pub(super) fn check_user(&self, uid: u32, gid: u32, groups: &[u32]) -> Result<(), PlanError> {
        if !self.has_user() {
            return Ok(());
        }
        let check = |field, id: u32, maps: &[IdMapping]| {
            let known = |map: &IdMapping| id >= map.inside && id - map.inside < map.length;
            if maps.iter().any(known) {
                return Ok(());
            }
            let ranges: Vec<String> = maps
                .iter()
                .map(|map| format!("{}+{}", map.inside, map.length))
                .collect();
            Err(PlanError::new(
                field,
                format!(
                    "{id} is not mapped in the user namespace, which has {}",
                    ranges.join(", ")
                ),
            ))
        };
        check("process.user.uid", uid, &self.uid_mappings)?;
        check("process.user.gid", gid, &self.gid_mappings)?;
        groups
            .iter()
            .try_for_each(|&gid| check("process.user.additionalGids", gid, &self.gid_mappings))
    }

    fn offsets(&mut self, linux: &Linux) -> Result<(), PlanError> {
        let mut offsets: Vec<_> = linux.time_offsets().iter().flatten().collect();
        if offsets.is_empty() {
            return Ok(());
        }
        if !self.makes(NamespaceKind::Time) {
            return Err(PlanError::new(
                "linux.timeOffsets",
                "needs a new time namespace in linux.namespaces",
            ));
        }
        offsets.sort_by_key(|(clock, _)| clock.as_str());
        for (clock, offset) in offsets {
            if clock != "monotonic" && clock != "boottime" {
                return Err(PlanError::new(
                    "linux.timeOffsets",
                    format!("{clock:?} is not one of monotonic, boottime"),
                ));
            }
            if offset.nanosecs().unwrap_or(0) >= 1_000_000_000 {
                return Err(PlanError::new(
                    format!("linux.timeOffsets[{clock}].nanosecs"),
                    "is not below 1000000000; the rest belongs to secs",
                ));
            }
            self.time_offsets.push_str(&format!(
                "{clock} {} {}\n",
                offset.secs().unwrap_or(0),
                offset.nanosecs().unwrap_or(0)
            ));
        }
        Ok(())
    }
}

/// A namespace to be joined must be there and be of the kind that the spec says.
fn check_joined(kind: NamespaceKind, path: &Path) -> Result<(), String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("{shown} is not absolute"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        openat(CWD, path, flags, Mode::empty()).map_err(|error| format!("{shown}: {error}"))?;
    match sys::namespace_type(file.as_fd()) {
        Ok(flag) if flag == kind.flag() => Ok(()),
        Ok(_) => Err(format!(
            "{shown} is a namespace of another type than {kind}"
        )),
        Err(_) => Err(format!("{shown} is not a namespace")),
    }
}

fn same_mappings(one: &[IdMapping], other: &[IdMapping]) -> bool {
    let sorted = |list: &[IdMapping]| {
        let mut list = list.to_vec();
        list.sort_by_key(|mapping| mapping.inside);
        list
    };
    sorted(one) == sorted(other)
}

/// Ranges must have a length and must not overlap, inside or outside.
pub(super) fn check_mappings(field: &str, mappings: &[IdMapping]) -> Result<(), PlanError> {
    for (index, mapping) in mappings.iter().enumerate() {
        let overlap = |first: u32, second: u32, length: u32| {
            u64::from(first) < u64::from(second) + u64::from(length)
                && u64::from(second) < u64::from(first) + u64::from(mapping.length)
        };
        if mapping.length == 0 {
            return Err(PlanError::new(field, "a range has size 0"));
        }
        if mappings[..index].iter().any(|other| {
            overlap(mapping.inside, other.inside, other.length)
                || overlap(mapping.outside, other.outside, other.length)
        }) {
            return Err(PlanError::new(field, "two ranges overlap"));
        }
    }
    Ok(())
}
