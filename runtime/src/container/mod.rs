//! Containers: making one ([`create`]), finding one again, adding processes to it ([`exec`]), and
//! everything else that can be done with it.

mod create;
mod exec;

pub use create::{CreateOptions, LaunchOptions};
#[cfg(feature = "criu")]
pub(crate) use create::{Making, keep, limit};
pub use exec::ExecOptions;

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::SystemTime;

use oci_spec::runtime::{ContainerState, LinuxResources, Spec, State};

use crate::cgroup::{Cgroup, CgroupError, CgroupStats, LEAVING, MemoryWatch};
use crate::error::{DeleteError, KillError, StartError};
use crate::hooks;
use crate::plan::ResourcePlan;
use crate::process::{
    self,
    message::{Channel, Message},
};
use crate::resctrl::Group;
use crate::rootfs::uncover;
use crate::starting::Starting;
use crate::state::{Saved, StateDir, StateError, Status, ends_within, is_alive, open_process};
use crate::sys;

/// A container. Dropping this leaves the container as it is.
#[derive(Debug)]
pub struct Container {
    saved: Saved,
    dir: StateDir,
    /// The first process; `None` when it was gone already when the container was loaded.
    first: Option<OwnedFd>,
}

impl Container {
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
            let sent = process::open(pid).and_then(|pidfd| sys::send_signal(pidfd.as_fd(), signal));
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
    pub(crate) fn freezer(&self) -> Option<std::path::PathBuf> {
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
