//! Control groups: the limits and the counters of a container.
//!
//! Resources of a spec first become settings, without touching the system; a file per controller
//! does that, in [`v1`] and [`v2`] for the two versions that kernels have. Then the cgroup carries
//! them out. It has a directory in each hierarchy: one with version 2, several with version 1.

pub(crate) mod devices;
mod directory;
mod hierarchy;
mod path;
mod setting;
mod stats;
#[cfg(feature = "systemd")]
mod systemd;
mod v1;
mod v2;
mod watch;
mod write;

pub(crate) use directory::Directory;
pub(crate) use hierarchy::{Hierarchies, Version};
pub(crate) use path::{container_path, start_of_relative};
pub(crate) use setting::{Setting, settings};
pub use stats::{
    CgroupStats, CpuStats, HugetlbStats, IoStats, MemoryStats, PidsStats, Pressure, Stall,
};
#[cfg(feature = "systemd")]
pub(crate) use systemd::{Scope, ScopeName, annotated_properties};
pub use watch::MemoryWatch;

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::process;
use devices::Rule;

/// Who makes the cgroup of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The engine itself, in the cgroup file system.
    #[default]
    Cgroupfs,
    /// The system's systemd: a transient scope.
    #[cfg(feature = "systemd")]
    Systemd,
    /// The systemd of the caller's user, for a caller who is not root.
    #[cfg(feature = "systemd")]
    SystemdUser,
}

/// Why a cgroup could not be made, limited, read or removed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No cgroup file system is mounted.
    #[error("no cgroup file system is mounted; mount cgroup2, for example on /sys/fs/cgroup")]
    NotMounted,
    /// The container was made without one, by a caller who may not make any.
    #[error("the container has no cgroup: its caller was not allowed to make one")]
    None,
    /// Limits were asked for by a caller who may not make a cgroup.
    #[error(
        "linux.{setting}: there is no cgroup for it; leave it out, or delegate a cgroup: {source}"
    )]
    Limits {
        /// The first limit.
        setting: String,
        /// Why there is none.
        source: Box<CgroupError>,
    },
    /// A limit needs a controller that the parent cgroup does not offer.
    #[error("{setting}: the {controller} controller is not available in {}", path.display())]
    NoController {
        /// The limit.
        setting: String,
        /// The controller.
        controller: String,
        /// The cgroup.
        path: PathBuf,
    },
    /// Another container has its processes there.
    #[error("cgroup {} has processes already; give the container another cgroupsPath", .0.display())]
    InUse(PathBuf),
    /// A cgroup was asked for that is not below the container's.
    #[error("cgroup {} is not below the container's; give a path inside it", .0.display())]
    Outside(PathBuf),
    /// A value that the kernel's files cannot express.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field of linux.resources.
        field: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// systemd cannot be used, or has refused.
    #[cfg(feature = "systemd")]
    #[error("{0}")]
    Systemd(String),
    /// A file of the cgroup could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// `read`, `write "100" to`, `create`, `remove`.
        action: String,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: Error,
    },
}

impl CgroupError {
    /// Whether the caller is not allowed to do this.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::File { source, .. } if matches!(
            source.kind(),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
        ))
    }

    /// Whether a file is not there, or its cgroup no longer.
    fn is_gone(&self) -> bool {
        matches!(self, Self::File { source, .. }
            if source.kind() == ErrorKind::NotFound
                || source.raw_os_error() == Some(libc::ENODEV))
    }

    /// Whether the kernel does not take a value.
    fn is_refused(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == ErrorKind::InvalidInput)
    }
}

/// How long processes that have been killed may take to leave the cgroup: one that the kernel holds
/// in a call may take any time, and the caller can try again.
pub(crate) const LEAVING: Duration = Duration::from_secs(5);

/// How long processes may take to freeze: one in an uninterruptible wait freezes when that ends;
/// past this the caller is told.
const FREEZING: Duration = Duration::from_secs(5);

/// Where a cgroup is, to find it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Location {
    version: Version,
    /// In each hierarchy: its controllers (none for version 2's) and the directory.
    directories: Vec<(Vec<String>, PathBuf)>,
    /// The unit of systemd that it is.
    #[cfg(feature = "systemd")]
    scope: Option<Scope>,
}

impl Location {
    /// The directory; with version 1, that in the first hierarchy.
    pub(crate) fn path(&self) -> &Path {
        self.directories
            .first()
            .map_or(Path::new(""), |(_, path)| path)
    }

    /// Whether there never was a cgroup.
    pub(crate) fn is_none(&self) -> bool {
        self.directories.is_empty()
    }

    /// Lets go of what is left of it when its directories are gone already.
    pub(crate) fn forget(&self) -> Result<(), CgroupError> {
        #[cfg(feature = "systemd")]
        if let Some(scope) = &self.scope {
            scope.stop()?;
        }
        Ok(())
    }
}

/// The cgroup of a container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    version: Version,
    /// Never empty.
    directories: Vec<Directory>,
    #[cfg(feature = "systemd")]
    scope: Option<Scope>,
    /// What keeps a new scope until the first process is in it.
    #[cfg(feature = "systemd")]
    placeholder: Option<systemd::Placeholder>,
}

impl Cgroup {
    /// Makes the cgroup `path` (relative to the roots of the hierarchies) and those above it, and
    /// hands the controllers down to it. A cgroup that is there already is taken when it has no
    /// process.
    pub(crate) fn create(hierarchies: &Hierarchies, path: &Path) -> Result<Self, CgroupError> {
        let cgroup = Self::make(hierarchies, path)?;
        for directory in &cgroup.directories {
            if !directory.is_new() && !directory.own_pids()?.is_empty() {
                let path = directory.path().to_owned();
                cgroup.undo();
                return Err(CgroupError::InUse(path));
            }
        }
        Ok(cgroup)
    }

    /// Has systemd make the cgroup, with `properties` of the unit beside the usual ones.
    #[cfg(feature = "systemd")]
    pub(crate) fn create_scope(
        hierarchies: &Hierarchies,
        scope: Scope,
        properties: Vec<systemd::Property>,
    ) -> Result<Self, CgroupError> {
        let placeholder = scope.start(hierarchies.version, properties)?;
        let made = placeholder
            .cgroup(hierarchies.version)
            .and_then(|path| Self::make_with(hierarchies, &path, placeholder.pid()));
        match made {
            Ok(cgroup) => Ok(Self {
                scope: Some(scope),
                placeholder: Some(placeholder),
                ..cgroup
            }),
            Err(error) => {
                drop(placeholder);
                let _ = scope.stop();
                Err(error)
            }
        }
    }

    /// Makes what systemd has not made of its scope's cgroup, and puts the scope's first process
    /// into all of it.
    #[cfg(feature = "systemd")]
    fn make_with(hierarchies: &Hierarchies, path: &Path, pid: u32) -> Result<Self, CgroupError> {
        let mut tries = 10;
        loop {
            let cgroup = Self::make(hierarchies, path)?;
            if cgroup.version == Version::V2 {
                return Ok(cgroup);
            }
            match cgroup.add(pid) {
                Ok(()) => return Ok(cgroup),
                // After the start systemd goes through version 1's hierarchies that it does not
                // need, and removes directories without processes.
                Err(error) if error.is_gone() && tries > 0 => tries -= 1,
                Err(error) => {
                    cgroup.undo();
                    return Err(error);
                }
            }
        }
    }

    fn make(hierarchies: &Hierarchies, path: &Path) -> Result<Self, CgroupError> {
        // Whoever owns a cgroup above this one may remove it while it is empty.
        const ATTEMPTS: usize = 5;
        let mut result = Self::make_once(hierarchies, path);
        for _ in 1..ATTEMPTS {
            match result {
                Err(error) if error.is_gone() => result = Self::make_once(hierarchies, path),
                other => return other,
            }
        }
        result
    }

    fn make_once(hierarchies: &Hierarchies, path: &Path) -> Result<Self, CgroupError> {
        let version = hierarchies.version;
        let mut directories: Vec<Directory> = Vec::new();
        for hierarchy in &hierarchies.list {
            let is_cpuset = hierarchy.controllers.iter().any(|name| name == "cpuset");
            let made = Directory::create(hierarchy, path, |parent| {
                if version == Version::V2 {
                    v2::enable_controllers(parent);
                }
                if is_cpuset && parent != hierarchy.point {
                    v1::cpuset::inherit(parent)?;
                }
                Ok(())
            });
            let made = made.and_then(|directory| {
                if is_cpuset {
                    v1::cpuset::inherit(directory.path()).inspect_err(|_| directory.undo())?;
                }
                Ok(directory)
            });
            match made {
                Ok(directory) => directories.push(directory),
                Err(error) => {
                    directories.iter().for_each(Directory::undo);
                    return Err(error);
                }
            }
        }
        Ok(Self {
            version,
            directories,
            #[cfg(feature = "systemd")]
            scope: None,
            #[cfg(feature = "systemd")]
            placeholder: None,
        })
    }

    /// Opens a cgroup that is there. With version 1, directories that are gone are left out, and
    /// it is an error when all are.
    pub(crate) fn open(location: &Location) -> Result<Self, CgroupError> {
        if location.is_none() {
            return Err(CgroupError::None);
        }
        let mut directories = Vec::new();
        let mut gone = None;
        for (controllers, path) in &location.directories {
            match Directory::open(path, controllers) {
                Ok(directory) => directories.push(directory),
                Err(error) if error.is_gone() => gone = Some(error),
                Err(error) => return Err(error),
            }
        }
        if directories.is_empty() {
            return Err(gone.unwrap_or(CgroupError::NotMounted));
        }
        Ok(Self {
            version: location.version,
            directories,
            #[cfg(feature = "systemd")]
            scope: location.scope.clone(),
            #[cfg(feature = "systemd")]
            placeholder: None,
        })
    }

    /// Where it is.
    pub(crate) fn location(&self) -> Location {
        Location {
            version: self.version,
            directories: self
                .directories
                .iter()
                .map(|one| (one.controllers().to_vec(), one.path().to_owned()))
                .collect(),
            #[cfg(feature = "systemd")]
            scope: self.scope.clone(),
        }
    }

    /// The cgroup of version 2 at `path`, when that is this one or below it: a process that was
    /// moved out by the host is no guide.
    pub(crate) fn below(&self, path: &Path) -> Option<Self> {
        let own = self
            .directories
            .iter()
            .find(|directory| directory.is_unified())?;
        if self.version != Version::V2 || !path.starts_with(own.path()) {
            return None;
        }
        Self::open(&Location {
            directories: vec![(Vec::new(), path.to_owned())],
            ..self.location()
        })
        .ok()
    }

    /// The cgroup at a path below this one, in each hierarchy.
    pub(crate) fn child(&self, path: &Path) -> Result<Self, CgroupError> {
        let mut location = self.location();
        for (_, directory) in &mut location.directories {
            directory.push(path);
        }
        Self::open(&location)
    }

    /// Its version.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Its directories, one in each hierarchy.
    pub(crate) fn directories(&self) -> &[Directory] {
        &self.directories
    }

    /// The directory for a controller.
    fn of(&self, controller: &str) -> Option<&Directory> {
        self.directories.iter().find(|directory| {
            self.version == Version::V2
                || directory
                    .controllers()
                    .iter()
                    .any(|name| name == controller)
        })
    }

    /// The directory whose processes can be frozen.
    #[cfg(feature = "criu")]
    pub(crate) fn freezer(&self) -> Option<&Path> {
        self.of("freezer").map(Directory::path)
    }

    /// The directory in version 2's hierarchy, which hosts with version 1 may have too.
    fn unified(&self) -> Option<&Directory> {
        self.directories
            .iter()
            .find(|directory| directory.is_unified())
    }

    /// The directory that a process can be born into: `None` where it has to be put in by
    /// [`Self::add`] before it does anything.
    pub(crate) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(feature = "systemd")]
        if self.placeholder.is_some() || self.scope.as_ref().is_some_and(Scope::is_users) {
            return None;
        }
        match self.version {
            Version::V1 => None,
            Version::V2 => Some(self.directories[0].as_fd()),
        }
    }

    /// Puts a process into it.
    pub(crate) fn add(&self, pid: u32) -> Result<(), CgroupError> {
        #[cfg(feature = "systemd")]
        if let Some(scope) = self.scope.as_ref().filter(|scope| scope.is_users()) {
            // A user may not move a process here from a part of the tree that is not the user's.
            return scope.attach(pid);
        }
        self.directories
            .iter()
            .try_for_each(|directory| directory.add(pid))
    }

    /// Says that the first process is in it.
    pub(crate) fn inhabited(&mut self) {
        #[cfg(feature = "systemd")]
        drop(self.placeholder.take());
    }

    /// Puts device rules in force, in the place of those that this engine has put there before.
    pub(crate) fn set_device_rules(&self, rules: &[Rule]) -> Result<(), CgroupError> {
        match self.version {
            Version::V2 => v2::devices::set(&self.directories[0], rules),
            Version::V1 => match self.of("devices") {
                Some(directory) => {
                    #[cfg(feature = "systemd")]
                    if let Some(scope) = &self.scope {
                        return self.set_devices_of_scope(scope, directory, rules);
                    }
                    v1::devices::set(directory, rules)
                }
                // Without the controller all devices are allowed, which would not be safe.
                None => Err(CgroupError::NoController {
                    setting: "resources.devices".to_owned(),
                    controller: "devices".to_owned(),
                    path: self.directories[0].path().to_owned(),
                }),
            },
        }
    }

    /// systemd writes the list of version 1 too, from the start: meanwhile nobody may look.
    #[cfg(feature = "systemd")]
    fn set_devices_of_scope(
        &self,
        scope: &Scope,
        directory: &Directory,
        rules: &[Rule],
    ) -> Result<(), CgroupError> {
        let stop = self.placeholder.is_none() && !self.is_frozen();
        if stop {
            self.freeze(true)?;
        }
        let set = v1::devices::names(rules)
            .and_then(|allowed| scope.set_devices(allowed.as_deref()))
            .and_then(|()| v1::devices::set(directory, rules));
        if stop {
            self.freeze(false)?;
        }
        set
    }

    /// Processes in it and in the cgroups that the container has made below it.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        self.members().pids()
    }

    /// The directory that tells best who is in it.
    fn members(&self) -> &Directory {
        // With version 1, a process that has left some of the directories has not left this one.
        let own = self
            .unified()
            .or_else(|| self.of("freezer"))
            .or_else(|| self.of("devices"));
        own.unwrap_or(&self.directories[0])
    }

    /// Kills every process in it and below, frozen or not.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        match self.unified() {
            Some(unified) => match unified.write("cgroup.kill", "1") {
                Err(error) if error.is_gone() => {}
                other => other?,
            },
            None => self.kill_one_by_one()?,
        }
        match self.of("freezer") {
            // What version 1's freezer holds dies when it is let go.
            Some(directory) if self.version == Version::V1 => {
                match v1::freezer::freeze(directory, false) {
                    Err(error) if error.is_gone() => Ok(()),
                    other => other,
                }
            }
            _ => Ok(()),
        }
    }

    /// Kills frozen processes, which make no new ones meanwhile.
    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        if let Some(directory) = self.of("freezer") {
            // Those that cannot be frozen now are killed all the same.
            let _ = v1::freezer::freeze(directory, true);
        }
        for pid in self.pids()? {
            // It may have ended meanwhile.
            let _ = process::open(pid)
                .and_then(|process| Ok(pidfd_send_signal(process, Signal::KILL)?));
        }
        Ok(())
    }

    /// Waits until no process is in it or below. False when it took too long.
    pub(crate) fn wait_empty(&self) -> Result<bool, CgroupError> {
        match self.unified() {
            // systemd removes the directory itself, with the last process.
            Some(unified) => match unified.wait_for_event("populated", 0, LEAVING) {
                Err(error) if error.is_gone() => Ok(true),
                other => other,
            },
            None => v1::wait_empty(self.members(), LEAVING),
        }
    }

    /// Freezes or thaws all processes, and returns when they are.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        match self.of("freezer") {
            Some(directory) if self.version == Version::V1 => {
                v1::freezer::freeze(directory, frozen)
            }
            _ => v2::freezer::freeze(self.unified_or_first(), frozen),
        }
    }

    /// Whether its processes are meant to be frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        match self.of("freezer") {
            Some(directory) if self.version == Version::V1 => v1::freezer::is_frozen(directory),
            _ => v2::freezer::is_frozen(self.unified_or_first()),
        }
    }

    fn unified_or_first(&self) -> &Directory {
        self.unified().unwrap_or(&self.directories[0])
    }

    /// What its processes use and have used.
    pub(crate) fn stats(&self) -> Result<CgroupStats, CgroupError> {
        match self.version {
            Version::V1 => v1::stats::stats(|controller| self.of(controller)),
            Version::V2 => v2::stats::stats(&self.directories[0]),
        }
    }

    /// How often a limit of memory was met; `None` without the controller.
    pub(crate) fn memory_events(&self) -> Result<Option<BTreeMap<String, u64>>, CgroupError> {
        match self.version {
            Version::V1 => self.of("memory").map(v1::stats::memory_events).transpose(),
            Version::V2 => v2::stats::memory_events(&self.directories[0]),
        }
    }

    /// Removes it with the cgroups below it, which must have no process (see `wait_empty`).
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        #[cfg(feature = "systemd")]
        if let Some(scope) = &self.scope {
            scope.stop()?;
        }
        self.directories.iter().try_for_each(Directory::remove)
    }

    /// Removes what `create` has made, as far as it is not in use: for a failed create.
    pub(crate) fn undo(&self) {
        self.directories.iter().for_each(Directory::undo);
    }
}
