//! Containers and their processes: what containerd's Task service acts on.
//!
//! Nothing here waits except for a process: for its end, and for its way to its command.
//! Everything else runs in one step of the event loop. So requests do not see each other
//! half done, and a request whose client goes away is done or not begun.

mod create;
mod delete;
mod error;
mod exits;
mod processes;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use runtime::{CgroupStats, Container, TerminalSize};
use tokio::sync::Notify;

use crate::events::EventLog;
use crate::oom::OomWatch;
use crate::process::{Ending, Exit, Process, SIGNALS};
use crate::reaper::Reaper;
use crate::stdio::Stdio;
use crate::storage::{RootFs, Storage};
use crate::streams::Streams;
use crate::volumes::{Node, PLATFORM, Volumes};
use error::engine;

pub use create::NewContainer;
pub use error::TaskError;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Known, its command not started.
    Created,
    /// Its command runs.
    Running,
    /// Frozen with its container.
    Paused,
    /// Ended.
    Stopped,
}

/// A process as `state` shows it.
#[derive(Debug)]
pub struct State {
    /// The container's bundle as the request named it.
    pub bundle: String,
    /// 0 before it is started.
    pub pid: u32,
    /// Where it is in its life.
    pub status: Status,
    /// Its streams as the request named them.
    pub stdio: Stdio,
    /// Its end, when it has ended.
    pub exit: Option<Exit>,
}

/// A process added to a container.
struct Exec {
    spec: ProcessSpec,
    stdio: Stdio,
    size: Option<TerminalSize>,
    ending: Ending,
    /// On its way to its command.
    starting: bool,
    process: Option<Arc<Process>>,
}

/// A container, its first process and those added.
struct Task {
    container: Container,
    bundle: String,
    stdio: Stdio,
    init: Arc<Process>,
    execs: HashMap<String, Exec>,
    /// Its first process is on its way to its command.
    starting: bool,
    started: bool,
    paused: bool,
    /// Its processes end with its first one.
    private_pids: bool,
    rootfs: Option<RootFs>,
    /// Its disks.
    disks: Vec<Node>,
    /// Files that go back to the host with its end: their indices, and where they are.
    give_back: Vec<(u32, PathBuf)>,
}

impl Exec {
    /// 0 before it is started.
    fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.pid)
    }
}

impl Task {
    fn status(&self) -> Status {
        match () {
            () if self.init.ending.get().is_some() => Status::Stopped,
            () if self.paused => Status::Paused,
            () if self.started => Status::Running,
            () => Status::Created,
        }
    }

    fn exec(&self, exec_id: &str) -> Result<&Exec, TaskError> {
        self.execs
            .get(exec_id)
            .ok_or_else(|| TaskError::NoProcess(self.init.container_id.clone(), exec_id.into()))
    }

    fn exec_mut(&mut self, exec_id: &str) -> Result<&mut Exec, TaskError> {
        self.execs
            .get_mut(exec_id)
            .ok_or_else(|| TaskError::NoProcess(self.init.container_id.clone(), exec_id.into()))
    }

    /// The process, if it was ever started.
    fn process(&self, exec_id: &str) -> Result<Option<&Arc<Process>>, TaskError> {
        if exec_id.is_empty() {
            return Ok(Some(&self.init));
        }
        Ok(self.exec(exec_id)?.process.as_ref())
    }

    /// The process, which must have been started.
    fn started_process(&self, exec_id: &str) -> Result<&Arc<Process>, TaskError> {
        self.process(exec_id)?.ok_or_else(|| {
            TaskError::NotNow(format!(
                "process {exec_id} of container {} was not started yet",
                self.init.container_id
            ))
        })
    }

    fn ending(&self, exec_id: &str) -> Result<&Ending, TaskError> {
        if exec_id.is_empty() {
            return Ok(&self.init.ending);
        }
        Ok(&self.exec(exec_id)?.ending)
    }
}

/// All containers, and what they share.
pub struct Tasks {
    /// Directory of everything that the agent keeps in the file system.
    base: PathBuf,
    tasks: Mutex<HashMap<String, Task>>,
    /// Watches for the ends of processes.
    pub reaper: Reaper,
    oom: OomWatch,
    storage: Mutex<Storage>,
    volumes: Mutex<Volumes>,
    /// Streams that the host has connected.
    pub streams: Streams,
    /// What the host is told.
    pub events: EventLog,
    /// Told when the host wants the machine off.
    pub power_off: Notify,
}

impl Tasks {
    /// No containers yet; everything is kept below `base`.
    pub fn new(base: PathBuf, storage: Storage) -> io::Result<Self> {
        Ok(Self {
            volumes: Mutex::new(Volumes::new(PLATFORM.into(), &base)),
            base,
            tasks: Mutex::default(),
            reaper: Reaper::default(),
            oom: OomWatch::new()?,
            storage: Mutex::new(storage),
            streams: Streams::default(),
            events: EventLog::default(),
            power_off: Notify::new(),
        })
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disks.
    pub fn storage(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What containers mount beside their root file systems.
    pub fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        id: &str,
        act: impl FnOnce(&mut Task) -> Result<T, TaskError>,
    ) -> Result<T, TaskError> {
        let mut tasks = self.tasks();
        act(tasks
            .get_mut(id)
            .ok_or_else(|| TaskError::NoContainer(id.into()))?)
    }

    /// Waits for the end of a process, started or not.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit, TaskError> {
        let ending = self.with(id, |task| task.ending(exec_id).cloned())?;
        Ok(ending.wait().await)
    }

    /// Sends a signal to a process, or to all of a container.
    pub fn kill(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        if !SIGNALS.contains(&signal) {
            return Err(TaskError::Invalid(format!(
                "{signal} is not a signal: signals are 1 to 64"
            )));
        }
        let signal = signal.cast_signed();
        self.with(id, |task| {
            if task.ending(exec_id)?.get().is_some() {
                return Err(TaskError::Finished);
            }
            if all && exec_id.is_empty() {
                return task.container.kill_all(signal).map_err(engine);
            }
            task.started_process(exec_id)?
                .signal(signal)
                .map_err(|source| match source.raw_os_error() {
                    // Ended, and not collected yet.
                    Some(libc::ESRCH) => TaskError::Finished,
                    _ => TaskError::System {
                        what: "send a signal",
                        source,
                    },
                })
        })
    }

    /// What a process is and how it is.
    pub fn state(&self, id: &str, exec_id: &str) -> Result<State, TaskError> {
        self.with(id, |task| {
            let bundle = task.bundle.clone();
            if exec_id.is_empty() {
                return Ok(State {
                    bundle,
                    pid: task.init.pid,
                    status: task.status(),
                    stdio: task.stdio.clone(),
                    exit: task.init.ending.get(),
                });
            }
            let exec = task.exec(exec_id)?;
            let exit = exec.ending.get();
            Ok(State {
                bundle,
                pid: exec.pid(),
                status: match () {
                    () if exit.is_some() => Status::Stopped,
                    () if exec.process.is_none() => Status::Created,
                    () if task.paused => Status::Paused,
                    () => Status::Running,
                },
                stdio: exec.stdio.clone(),
                exit,
            })
        })
    }

    /// The process ids of a container, each with the exec id that it was started by.
    pub fn pids(&self, id: &str) -> Result<Vec<(u32, Option<String>)>, TaskError> {
        self.with(id, |task| {
            let exec_id = |pid: u32| {
                let started = |exec: &Exec| {
                    exec.process
                        .as_ref()
                        .is_some_and(|process| process.pid == pid)
                };
                let found = task.execs.iter().find(|(_, exec)| started(exec));
                found.map(|(exec_id, _)| exec_id.clone())
            };
            let pids = task.container.pids().map_err(engine)?;
            Ok(pids.into_iter().map(|pid| (pid, exec_id(pid))).collect())
        })
    }

    /// Gives a process's terminal a size, now or when it is started.
    pub fn resize(&self, id: &str, exec_id: &str, size: TerminalSize) -> Result<(), TaskError> {
        self.with(id, |task| {
            if let Some(process) = task.process(exec_id)? {
                return process.resize(size).map_err(|source| TaskError::System {
                    what: "resize a terminal",
                    source,
                });
            }
            task.exec_mut(exec_id)?.size = Some(size);
            Ok(())
        })
    }

    /// Ends a process's input.
    pub fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), TaskError> {
        self.with(id, |task| {
            task.started_process(exec_id)?.close_stdin();
            Ok(())
        })
    }

    /// Changes a container's limits.
    pub fn update(&self, id: &str, resources: &[u8]) -> Result<(), TaskError> {
        let resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|error| TaskError::Invalid(format!("the resources are not valid: {error}")))?;
        self.with(id, |task| task.container.update(&resources).map_err(engine))
    }

    /// What a container uses.
    pub fn stats(&self, id: &str) -> Result<CgroupStats, TaskError> {
        self.with(id, |task| task.container.stats().map_err(engine))
    }

    /// Freezes a container.
    pub fn pause(&self, id: &str) -> Result<(), TaskError> {
        self.with(id, |task| {
            if task.status() != Status::Running {
                return Err(TaskError::NotNow(format!(
                    "container {id} is not running; it cannot be paused"
                )));
            }
            task.container.pause().map_err(engine)?;
            task.paused = true;
            Ok(())
        })
    }

    /// Thaws a container.
    pub fn resume(&self, id: &str) -> Result<(), TaskError> {
        self.with(id, |task| {
            if task.status() != Status::Paused {
                return Err(TaskError::NotNow(format!(
                    "container {id} is not paused; it cannot be resumed"
                )));
            }
            task.container.resume().map_err(engine)?;
            task.paused = false;
            Ok(())
        })
    }
}
