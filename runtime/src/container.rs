//! Containers: making one, finding one again, and everything that can be done with it.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::{ContainerState, LinuxResources, Process, Spec, State};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::{
    Cgroup, CgroupDriver, CgroupError, CgroupStats, Hierarchies, LEAVING, Location, MemoryWatch,
};
use crate::error::{CreateError, DeleteError, ExecError, KillError, StartError};
use crate::hooks;
use crate::mounts::Shown;
use crate::notify;
use crate::plan::{self, NamespaceKind, Plan, ResourcePlan};
use crate::process::message::{Channel, Message};
use crate::process::{self, Io, Launched, Launching, Place};
use crate::resctrl::Group;
use crate::rootfs::{Root, mount_at, uncover};
use crate::starting::Starting;
use crate::state::{
    Saved, StateDir, StateError, Status, born, ends_within, is_alive, open_process,
};
use crate::sys;

/// What [`Container::create`] needs.
#[derive(Debug)]
pub struct CreateOptions {
    /// The container's id: unique in `state_dir`.
    pub id: String,
    /// The bundle's directory, absolute: a relative `root.path` starts here.
    pub bundle: PathBuf,
    /// The spec.
    pub spec: Spec,
    /// The root of the state, one directory per container.
    pub state_dir: PathBuf,
    /// How the container's first process is connected.
    pub io: Io,
    /// Who makes the cgroup.
    pub cgroup: CgroupDriver,
    /// What a caller may choose beside the spec.
    pub launch: LaunchOptions,
}

/// What a caller may choose for a container's first process beside its spec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// How many descriptors of the caller the command gets beside its streams: those from 3 on,
    /// which must be open.
    pub preserve_fds: u32,
    /// Whether the root file system is mounted over the old root instead of taking its place: for
    /// callers whose own root is in an initramfs.
    pub no_pivot: bool,
    /// Whether the command stays in the caller's session keyring.
    pub keep_keyring: bool,
    /// Whether the container does without a cgroup of its own where the caller may not make one and
    /// the spec asks for neither limits nor a cgroup: for callers who are not root.
    pub cgroup_optional: bool,
    /// Whether the container gets a socket on which it says that it is ready
    /// ([`Container::notify_socket`]).
    pub notify: bool,
}

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

/// A container. Dropping this leaves the container as it is.
#[derive(Debug)]
pub struct Container {
    saved: Saved,
    dir: StateDir,
    /// The first process; `None` when it was gone already when the container was loaded.
    first: Option<OwnedFd>,
}

impl Container {
    /// Makes the container up to the point where its command can be started: namespaces, cgroup,
    /// root file system, rights and limits are in place, the command has been found, and its
    /// process waits.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left behind then.
    pub fn create(options: CreateOptions) -> Result<(Self, Launched), CreateError> {
        Self::make(options, launch)
    }

    /// Makes the container, with what `begin` makes for its first process.
    pub(crate) fn make(
        options: CreateOptions,
        begin: impl FnOnce(Making<'_>) -> Result<(OwnedFd, Launched), CreateError>,
    ) -> Result<(Self, Launched), CreateError> {
        let CreateOptions {
            id,
            bundle,
            mut spec,
            state_dir,
            io,
            cgroup,
            launch,
        } = options;
        if launch.notify {
            let system = |source| CreateError::System {
                what: "find the state directory",
                source,
            };
            let dir = std::path::absolute(&state_dir).map_err(system)?;
            notify::add(&mut spec, dir.join(&id).join(notify::DIR));
        }
        let plan = Plan::new(&spec, &bundle, &id)?;
        if !plan.namespaces.has_user() {
            let missing = plan.process.capabilities.missing();
            if !missing.is_empty() {
                tracing::warn!("container {id}: cannot be given {}", missing.join(", "));
            }
        }
        let dir = StateDir::create(&state_dir, &id)?;
        let mut saved = Saved {
            id,
            bundle,
            pid: 0,
            born: 0,
            cgroup: Location::default(),
            created: SystemTime::now(),
            beneath: None,
            spec,
        };
        if !plan.namespaces.is_private(NamespaceKind::Mount) {
            tracing::warn!(
                "container {}: without a mount namespace it is mounted on the host, and its root \
                 can be left by a process with CAP_SYS_CHROOT",
                saved.id
            );
            let covered = mount_at(&plan.rootfs).map_err(|source| CreateError::System {
                what: "look at the root file system",
                source,
            })?;
            saved.beneath = Some((plan.rootfs.clone(), covered));
        }
        // Each of these functions takes back what it has made itself. The error is what the caller
        // must learn; should something resist being taken back, there is nothing better to do.
        match make(&plan, &dir, &mut saved, io, cgroup, launch, begin) {
            Ok((first, launched)) => {
                let first = Some(first);
                Ok((Self { saved, dir, first }, launched))
            }
            Err(error) => {
                let _ = dir.remove();
                Err(error)
            }
        }
    }

    /// Finds a container that this or another process has made.
    ///
    /// # Errors
    /// [`StateError::NotFound`] when there is none, others when its state cannot be read.
    pub fn load(state_dir: &Path, id: &str) -> Result<Self, StateError> {
        let dir = StateDir::open(state_dir, id)?;
        let saved = dir.read(id)?;
        let first = open_process(saved.pid, saved.born);
        Ok(Self { saved, dir, first })
    }

    /// Removes what is known of a container whose creation was cut off
    /// ([`StateError::Unfinished`]).
    ///
    /// # Errors
    /// [`StateError`] when its directory cannot be removed.
    pub fn forget(state_dir: &Path, id: &str) -> Result<(), StateError> {
        let dir = StateDir::open(state_dir, id)?;
        for directory in dir.noted_cgroup() {
            // It has no process yet. One that is in use is not this container's.
            let _ = std::fs::remove_dir(directory);
        }
        dir.remove()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.saved.id
    }

    /// The id of its first process, as the creator saw it.
    pub fn pid(&self) -> u32 {
        self.saved.pid
    }

    /// Its first process: readable when that has ended. `None` when it had before the container was
    /// loaded.
    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        self.first.as_ref().map(OwnedFd::as_fd)
    }

    /// Its bundle's directory.
    pub fn bundle(&self) -> &Path {
        &self.saved.bundle
    }

    /// Its spec.
    pub fn spec(&self) -> &Spec {
        &self.saved.spec
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        self.saved.created
    }

    /// The directory of its cgroup; with cgroup version 1, which has several, the first.
    pub fn cgroup_path(&self) -> &Path {
        self.saved.cgroup.path()
    }

    /// Where it is in its life.
    pub fn status(&self) -> Status {
        if !self
            .first
            .as_ref()
            .is_some_and(|first| is_alive(first.as_fd()))
        {
            Status::Stopped
        } else if self.cgroup().is_ok_and(|cgroup| cgroup.is_frozen()) {
            Status::Paused
        } else if self.dir.waits_for_start() {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Its state as the specification describes it, which knows no paused container: it is running
    /// there.
    pub fn state(&self) -> State {
        self.saved.state(match self.status() {
            Status::Created => ContainerState::Created,
            Status::Running | Status::Paused => ContainerState::Running,
            Status::Stopped => ContainerState::Stopped,
        })
    }

    /// Makes the socket on which the container says that it is ready (`sd_notify(3)`). `None` when
    /// it was made without [`LaunchOptions::notify`] or was started already.
    ///
    /// # Errors
    /// [`StateError`] when the socket cannot be made.
    pub fn notify_socket(&self) -> Result<Option<UnixDatagram>, StateError> {
        match self.status() {
            Status::Created => self.dir.bind_notify(),
            _ => Ok(None),
        }
    }

    /// Runs the user's command and returns when the kernel has taken it.
    ///
    /// # Errors
    /// [`StartError`]; when the command could not be run, the first process has ended.
    pub fn start(&mut self) -> Result<(), StartError> {
        self.begin_start()?.finish()
    }

    /// As [`Self::start`], without waiting for the first process.
    ///
    /// # Errors
    /// [`StartError`] when it cannot be told.
    pub fn begin_start(&mut self) -> Result<Starting, StartError> {
        let status = self.status();
        if status != Status::Created {
            return Err(StartError::NotCreated {
                id: self.saved.id.clone(),
                status,
            });
        }
        let unreachable = |source| StartError::Unreachable {
            id: self.saved.id.clone(),
            source,
        };
        let first = self
            .first
            .as_ref()
            .ok_or_else(|| ErrorKind::NotFound.into());
        let first = first.and_then(OwnedFd::try_clone).map_err(unreachable)?;
        let channel = Channel::from(self.dir.connect().map_err(unreachable)?);
        channel.send(&Message::Start, None).map_err(unreachable)?;
        Ok(Starting::new(
            channel,
            first,
            &self.saved.spec,
            self.saved.state(ContainerState::Running),
        ))
    }

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
                NamespaceKind::User => place.user = !self.shares_users(),
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

    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// [`KillError::NotRunning`] when it has ended.
    pub fn kill(&self, signal: i32) -> Result<(), KillError> {
        let not_running = || KillError::NotRunning(self.saved.id.clone());
        let first = self.first.as_ref().ok_or_else(not_running)?;
        if !is_alive(first.as_fd()) {
            return Err(not_running());
        }
        match sys::send_signal(first.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(not_running()),
            other => other.map_err(|source| self.signal_error(signal, source)),
        }
    }

    /// Sends a signal to every process in the container's cgroup. Without any process it does
    /// nothing.
    ///
    /// # Errors
    /// [`KillError`] when the cgroup cannot be read or a process refuses the signal.
    pub fn kill_all(&self, signal: i32) -> Result<(), KillError> {
        let Some(cgroup) = self.cgroup_if_there()? else {
            return Ok(());
        };
        if signal == libc::SIGKILL {
            return Ok(cgroup.kill()?);
        }
        for pid in cgroup.pids()? {
            let sent = Pid::from_raw(pid as i32)
                .ok_or(rustix::io::Errno::SRCH)
                .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
                .map_err(std::io::Error::from)
                .and_then(|pidfd| sys::send_signal(pidfd.as_fd(), signal));
            match sent {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.map_err(|source| self.signal_error(signal, source))?,
            }
        }
        Ok(())
    }

    fn signal_error(&self, signal: i32, source: std::io::Error) -> KillError {
        KillError::Signal {
            id: self.saved.id.clone(),
            signal,
            source,
        }
    }

    /// Freezes all processes, and returns when they are.
    ///
    /// # Errors
    /// [`CgroupError`] when that takes longer than five seconds: nothing is frozen then.
    pub fn pause(&self) -> Result<(), CgroupError> {
        self.cgroup()?.freeze(true)
    }

    /// Lets all processes go on.
    ///
    /// # Errors
    /// [`CgroupError`] when the cgroup cannot be used.
    pub fn resume(&self) -> Result<(), CgroupError> {
        self.cgroup()?.freeze(false)
    }

    /// Changes limits. Resources that are not given stay as they are; of device rules, which only
    /// make sense together, the given ones replace all.
    ///
    /// # Errors
    /// [`CgroupError`]; limits before the refused one have been changed.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let cgroup = self.cgroup()?;
        let plan = ResourcePlan::new(Some(resources), cgroup.version())?;
        cgroup.apply(&plan.settings)?;
        if resources
            .devices()
            .as_ref()
            .is_some_and(|rules| !rules.is_empty())
        {
            cgroup.set_device_rules(&plan.devices)?;
        }
        Ok(())
    }

    /// What the container uses.
    ///
    /// # Errors
    /// [`CgroupError`] when the cgroup cannot be read.
    pub fn stats(&self) -> Result<CgroupStats, CgroupError> {
        self.cgroup()?.stats()
    }

    /// Watches for processes that are killed because the container is out of memory. `None` where
    /// that cannot be watched: with cgroups of version 1.
    ///
    /// # Errors
    /// [`CgroupError`] when the cgroup has no limits of memory, or is gone.
    pub fn watch_memory(&self) -> Result<Option<MemoryWatch>, CgroupError> {
        self.cgroup()?.watch_memory()
    }

    /// The ids of its processes, as the caller sees them.
    ///
    /// # Errors
    /// [`CgroupError`] when the cgroup cannot be read.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        if self.saved.cgroup.is_none() {
            return Err(CgroupError::None);
        }
        match self.cgroup_if_there()? {
            Some(cgroup) => cgroup.pids(),
            None => Ok(Vec::new()),
        }
    }

    /// Removes the container: kills what is left of its processes, removes its cgroup, runs its
    /// poststop hooks and forgets its state. Its first process stays the creator's to reap. A
    /// running container is only deleted with `force`.
    ///
    /// # Errors
    /// [`DeleteError`]; the container is still known then and can be deleted again.
    pub fn delete(&mut self, force: bool) -> Result<(), DeleteError> {
        let status = self.status();
        if !force && matches!(status, Status::Running | Status::Paused) {
            return Err(DeleteError::Running {
                id: self.saved.id.clone(),
                status,
            });
        }
        match self.cgroup_if_there()? {
            Some(cgroup) => {
                cgroup.kill()?;
                cgroup.wait_empty()?;
                cgroup.remove()?;
            }
            None => {
                self.saved.cgroup.forget()?;
                self.end_first().map_err(|source| KillError::Signal {
                    id: self.saved.id.clone(),
                    signal: libc::SIGKILL,
                    source,
                })?;
            }
        }
        // Without the file system there is no group of it any more.
        if let Ok(Some(group)) = Group::new(&self.saved.spec, &self.saved.id)
            && let Err(error) = group.remove()
        {
            tracing::warn!("container {}: its resctrl group stays: {error}", self.id());
        }
        self.saved.uncover().map_err(|source| StateError::File {
            action: "unmount the root of",
            path: self.saved.bundle.clone(),
            source,
        })?;
        if let Some(hooks) = self.saved.spec.hooks() {
            let state = self.saved.state(ContainerState::Stopped);
            hooks::run_all("poststop", hooks.poststop(), &state);
        }
        Ok(self.dir.remove()?)
    }

    /// The directory by which its processes can be frozen.
    #[cfg(feature = "criu")]
    pub(crate) fn freezer(&self) -> Option<PathBuf> {
        let cgroup = self.cgroup().ok()?;
        cgroup.freezer().map(Path::to_owned)
    }

    fn cgroup(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::open(&self.saved.cgroup)
    }

    /// Kills the first process, whose pid namespace goes with it, and waits for its end.
    fn end_first(&self) -> std::io::Result<()> {
        let Some(first) = self.first.as_ref().filter(|first| is_alive(first.as_fd())) else {
            return Ok(());
        };
        match sys::send_signal(first.as_fd(), libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(error) => Err(error),
            Ok(()) if ends_within(first.as_fd(), Some(LEAVING))? => Ok(()),
            Ok(()) => Err(ErrorKind::TimedOut.into()),
        }
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

    fn cgroup_if_there(&self) -> Result<Option<Cgroup>, CgroupError> {
        match self.cgroup() {
            Err(CgroupError::None) => Ok(None),
            Err(CgroupError::File { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
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

    /// Whether the first process is in the caller's user namespace.
    fn shares_users(&self) -> bool {
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        link("self") == link(&self.saved.pid.to_string())
    }
}

/// What a container's first process is made with.
pub(crate) struct Making<'a> {
    /// What it is to be.
    pub plan: &'a Plan,
    /// Where it is remembered.
    pub dir: &'a StateDir,
    /// What is known of it.
    pub saved: &'a mut Saved,
    /// How its first process is connected.
    pub io: Io,
    /// What the caller has chosen.
    pub options: LaunchOptions,
    /// Its cgroup.
    pub cgroup: &'a mut Option<Cgroup>,
    /// What it sees of that.
    pub shown: Shown,
}

/// Makes the cgroup and all that is in it.
fn make(
    plan: &Plan,
    dir: &StateDir,
    saved: &mut Saved,
    io: Io,
    driver: CgroupDriver,
    options: LaunchOptions,
    begin: impl FnOnce(Making<'_>) -> Result<(OwnedFd, Launched), CreateError>,
) -> Result<(OwnedFd, Launched), CreateError> {
    if options.notify {
        dir.make_notify()?;
    }
    let hierarchies = Hierarchies::of_host()?;
    if driver == CgroupDriver::Cgroupfs {
        let points = hierarchies.list.iter();
        let directories: Vec<PathBuf> = points
            .map(|hierarchy| hierarchy.point.join(&plan.cgroup))
            .filter(|directory| !directory.exists())
            .collect();
        dir.note_cgroup(&directories)?;
    }
    // One that is asked for by name is meant.
    let named = saved
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref())
        .is_some_and(|path| !path.as_os_str().is_empty());
    let optional = options.cgroup_optional && !named;
    let mut cgroup = match make_cgroup(&hierarchies, plan, saved, driver) {
        Err(CreateError::Cgroup(error)) if optional && error.is_denied() => {
            if let Some(setting) = plan.resources.settings.first() {
                return Err(CgroupError::Limits {
                    setting: setting.field.clone(),
                    source: Box::new(error),
                }
                .into());
            }
            tracing::debug!("container {}: it has no cgroup: {error}", saved.id);
            None
        }
        other => Some(other?),
    };
    let shown = match &cgroup {
        Some(cgroup) => Shown::new(&hierarchies, cgroup),
        None => Shown::of_caller(&hierarchies),
    };
    saved.cgroup = cgroup.as_ref().map(Cgroup::location).unwrap_or_default();
    // Before there is a process: should this one be killed now, delete knows where to look.
    let kept = dir.save(saved).map_err(CreateError::from);
    let made = kept.and_then(|()| {
        begin(Making {
            plan,
            dir,
            saved,
            io,
            options,
            cgroup: &mut cgroup,
            shown,
        })
    });
    if made.is_err() {
        let _ = saved.uncover();
        if let Some(cgroup) = &mut cgroup {
            cgroup.inhabited();
            let _ = cgroup.kill().and_then(|()| cgroup.wait_empty());
            let _ = cgroup.remove();
            cgroup.undo();
        }
    }
    made
}

#[cfg(not(feature = "systemd"))]
fn make_cgroup(
    hierarchies: &Hierarchies,
    plan: &Plan,
    _: &Saved,
    CgroupDriver::Cgroupfs: CgroupDriver,
) -> Result<Cgroup, CreateError> {
    Ok(Cgroup::create(hierarchies, &plan.cgroup)?)
}

#[cfg(feature = "systemd")]
fn make_cgroup(
    hierarchies: &Hierarchies,
    plan: &Plan,
    saved: &Saved,
    driver: CgroupDriver,
) -> Result<Cgroup, CreateError> {
    use crate::cgroup::{Scope, ScopeName, annotated_properties};
    use crate::plan::PlanError;
    let Some(user) = driver.user_manager() else {
        return Ok(Cgroup::create(hierarchies, &plan.cgroup)?);
    };
    let path = saved
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref());
    let name = ScopeName::new(path, &saved.id, user)
        .map_err(|problem| PlanError::new("linux.cgroupsPath", problem))?;
    let properties = saved
        .spec
        .annotations()
        .as_ref()
        .map(annotated_properties)
        .transpose();
    let properties = properties.map_err(|(field, problem)| PlanError::new(field, problem))?;
    let scope = Scope::new(name, user);
    Ok(Cgroup::create_scope(
        hierarchies,
        scope,
        properties.unwrap_or_default(),
    )?)
}

/// Limits the cgroup.
pub(crate) fn limit(
    plan: &Plan,
    options: LaunchOptions,
    cgroup: &Option<Cgroup>,
) -> Result<(), CgroupError> {
    let Some(cgroup) = cgroup else {
        return Ok(());
    };
    cgroup.apply(&plan.resources.settings)?;
    match cgroup.set_device_rules(&plan.resources.devices) {
        // Who may not load the program may not make a device node either.
        Err(error) if options.cgroup_optional && error.is_denied() => Ok(()),
        other => other,
    }
}

/// Limits the cgroup, makes the first process in it and writes the state. Returns a second
/// descriptor of the process.
fn launch(making: Making<'_>) -> Result<(OwnedFd, Launched), CreateError> {
    let Making {
        plan,
        dir,
        saved,
        io,
        options,
        cgroup,
        shown,
    } = making;
    limit(plan, options, cgroup)?;
    let listener = dir.listen()?;
    let state = saved.state(ContainerState::Creating);
    let launched = process::create(
        plan,
        cgroup.as_mut(),
        shown,
        listener,
        io,
        options,
        state.clone(),
    )
    .inspect_err(|_| {
        // Hooks that have run may have something to take back.
        let state = saved.state(ContainerState::Stopped);
        hooks::run_all("poststop", plan.hooks.poststop(), &state);
    });
    let launched = launched.map_err(|error| {
        let killed = cgroup
            .as_ref()
            .and_then(|cgroup| killed_by_limit(cgroup, saved));
        killed.unwrap_or(error)
    })?;
    match keep(dir, saved, &launched) {
        Ok(first) => Ok((first, launched)),
        Err(error) => {
            // It is this process's child and waits to be started: nobody else ends or collects it.
            let _ = sys::send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
            let _ = process::reap(launched.pidfd.as_fd());
            Err(error)
        }
    }
}

/// The better error when the first process did not survive its own limit of memory.
fn killed_by_limit(cgroup: &Cgroup, saved: &Saved) -> Option<CreateError> {
    let events = cgroup.memory_events().ok()??;
    // Not every allocation ends in a kill: some of the kernel's own just fail.
    let killed = ["oom", "oom_kill"]
        .iter()
        .any(|event| events.get(*event).is_some_and(|count| *count > 0));
    let resources = saved.spec.linux().as_ref()?.resources().as_ref()?;
    let limit = resources.memory().and_then(|memory| memory.limit())?;
    killed.then_some(CreateError::Memory { limit })
}

/// Writes the state of a container whose first process is there.
pub(crate) fn keep(
    dir: &StateDir,
    saved: &mut Saved,
    launched: &Launched,
) -> Result<OwnedFd, CreateError> {
    let system = |what| move |source| CreateError::System { what, source };
    saved.pid = launched.pid;
    saved.born = born(launched.pid).map_err(system("read the age of the first process"))?;
    dir.save(saved)?;
    launched
        .pidfd
        .try_clone()
        .map_err(system("keep the first process"))
}

impl Saved {
    /// Takes away what a container without a mount namespace has mounted on the host.
    fn uncover(&self) -> std::io::Result<()> {
        match &self.beneath {
            Some((rootfs, covered)) => uncover(rootfs, *covered),
            None => Ok(()),
        }
    }

    pub(crate) fn state(&self, status: ContainerState) -> State {
        let mut state = State::default();
        state
            .set_version(self.spec.version().clone())
            .set_id(self.id.clone())
            .set_status(status)
            .set_pid(
                (self.pid != 0 && status != ContainerState::Stopped).then_some(self.pid as i32),
            )
            .set_bundle(self.bundle.clone())
            .set_annotations(self.spec.annotations().clone());
        state
    }
}
