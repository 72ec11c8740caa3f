//! Adding a process to a container.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Process;

use super::Container;
use crate::cgroup::{Cgroup, CgroupError, Hierarchies};
use crate::error::ExecError;
use crate::plan::{self, NamespaceKind};
use crate::process::{self, Io, Launched, Launching, Place};
use crate::resctrl::Group;
use crate::rootfs::Root;
use crate::state::{Status, is_alive};

/// How a process is added to a container.
#[derive(Debug)]
pub struct ExecOptions {
    /// How it is connected.
    pub io: Io,
    /// As [`LaunchOptions::preserve_fds`].
    pub preserve_fds: u32,
    /// As [`LaunchOptions::keep_keyring`].
    pub keep_keyring: bool,
    /// A cgroup below the container's own for it.
    pub sub_cgroup: Option<PathBuf>,
    /// Whether it is added to a paused container too, where it waits with the others.
    pub even_paused: bool,
}

impl From<Io> for ExecOptions {
    fn from(io: Io) -> Self {
        Self {
            io,
            preserve_fds: 0,
            keep_keyring: false,
            sub_cgroup: None,
            even_paused: false,
        }
    }
}

impl Container {
    /// Adds a process to the container: into its namespaces and its cgroup, under its seccomp
    /// profile. Returns when the process has become its command.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left behind then.
    pub fn exec(
        &self,
        process: &Process,
        options: impl Into<ExecOptions>,
    ) -> Result<Launched, ExecError> {
        self.begin_exec(process, options)?.finish()
    }

    /// As [`Self::exec`], without waiting for the process.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left behind then.
    pub fn begin_exec(
        &self,
        process: &Process,
        options: impl Into<ExecOptions>,
    ) -> Result<Launching, ExecError> {
        let options = options.into();
        let status = self.status();
        let takes = match status {
            Status::Created | Status::Running => true,
            Status::Paused => options.even_paused,
            Status::Stopped => false,
        };
        let Some(first) = self.first.as_ref().filter(|_| takes) else {
            return Err(ExecError::NotRunning {
                id: self.saved.id.clone(),
                status,
            });
        };
        let (process, filter) = plan::join(process, &self.saved.spec)?;
        let cgroup = match &options.sub_cgroup {
            Some(path) => Some(self.sub_cgroup(path)?),
            None => match self.cgroup() {
                Err(CgroupError::None) => None,
                other => Some(other?),
            },
        };
        let mut place = Place {
            first: first.as_fd(),
            namespaces: 0,
            pid: false,
            user: false,
            root: None,
            cgroup: cgroup.as_ref(),
            state: self.state(),
        };
        let namespaces = self
            .saved
            .spec
            .linux()
            .iter()
            .filter_map(|linux| linux.namespaces().as_ref());
        for namespace in namespaces.flatten() {
            match NamespaceKind::from(namespace.typ()) {
                NamespaceKind::Pid => place.pid = true,
                // The kernel refuses to join the user namespace that one is in.
                NamespaceKind::User => {
                    place.user = !NamespaceKind::User.is_shared_with(self.saved.pid);
                }
                kind => place.namespaces |= kind.flag(),
            }
        }
        if self.saved.beneath.is_some() {
            place.root = Some(self.root_of_first(first.as_fd())?);
        }
        let shares = Group::new(&self.saved.spec, &self.saved.id)?;
        let launching =
            process::exec(&process, filter, &place, options, || self.cgroup_of_first())?;
        if let Some(group) = shares {
            group
                .add(launching.pid())
                .map_err(|source| ExecError::System {
                    what: "join the container's resctrl group",
                    source,
                })?;
        }
        Ok(launching)
    }

    /// A cgroup below the container's own, by its path there.
    fn sub_cgroup(&self, path: &Path) -> Result<Cgroup, CgroupError> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let usable = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !inside.components().all(usable) {
            return Err(CgroupError::Outside(path.to_owned()));
        }
        self.cgroup()?.child(inside)
    }

    /// The cgroup that the first process is in now, where it is below the container's.
    fn cgroup_of_first(&self) -> Option<Cgroup> {
        let cgroup = self.cgroup().ok()?;
        let root = Hierarchies::of_host().ok()?.list.first()?.point.clone();
        let table = std::fs::read_to_string(format!("/proc/{}/cgroup", self.saved.pid)).ok()?;
        let path = table.lines().find_map(|line| line.strip_prefix("0::/"))?;
        cgroup.below(&root.join(path))
    }

    /// The root of the first process, `first`.
    fn root_of_first(&self, first: BorrowedFd<'_>) -> Result<Root, ExecError> {
        let root = Root::of_process(self.saved.pid).map_err(|source| ExecError::System {
            what: "open the container's root",
            source,
        })?;
        // If it still lives, the id was not another's when the root was opened.
        if is_alive(first) {
            Ok(root)
        } else {
            Err(ExecError::NotRunning {
                id: self.saved.id.clone(),
                status: Status::Stopped,
            })
        }
    }
}
