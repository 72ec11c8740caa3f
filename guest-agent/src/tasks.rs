//! Containers and their processes: what containerd's Task service acts on.
//!
//! Nothing here waits except for the end of a process, and everything else runs in
//! one step of the event loop. So requests do not see each other half done, and a
//! request whose client goes away is done or not begun.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process as ProcessSpec, Spec};
use protocol::guest::{self, GivenBack, Oom, event::Kind};
use protocol::ids;
use runtime::{CgroupDriver, CgroupStats, Container, TerminalSize};
use thiserror::Error;
use tokio::sync::Notify;

use crate::events::EventLog;
use crate::oom::OomWatch;
use crate::process::{Ending, Exit, Process};
use crate::reaper::Reaper;
use crate::spec::{self, Place, SpecError};
use crate::stdio::{self, Stdio, StdioError};
use crate::storage::{RootFs, Storage, StorageError};
use crate::streams::Streams;
use crate::volumes::{Node, PLATFORM, VolumeError, Volumes};

/// Status of a process that was never started because its start failed.
const FAILED_START: u32 = 255;
/// Signals of Linux: 1 to 64.
const SIGNALS: std::ops::RangeInclusive<u32> = 1..=64;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub enum TaskError {
    /// An id that containerd would not make.
    #[error("{0:?} is not a valid id")]
    InvalidId(String),
    /// There is no such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// There is no such process.
    #[error("container {0} has no process {1}")]
    NoProcess(String, String),
    /// The id is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// The process has ended.
    #[error("process already finished")]
    Finished,
    /// The process is in a state that does not allow it.
    #[error("{0}")]
    NotNow(String),
    /// A number or a message that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The spec cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The streams cannot be used.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The root file system could not be made.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A volume could not be had.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What the engine said.
    #[error("{0}")]
    Engine(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Keeps the engine's own words.
fn engine<E: std::error::Error>(error: E) -> TaskError {
    TaskError::Engine(error.to_string())
}

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

/// A container to make.
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// The bundle's path on the host, only to be shown again.
    pub bundle: String,
    /// What its root file system is made of.
    pub rootfs: Vec<containerd_shim_protos::api::Mount>,
    /// Spec and files.
    pub options: guest::CreateOptions,
    /// Its first process's streams.
    pub stdio: Stdio,
}

/// A process added to a container.
struct Exec {
    spec: ProcessSpec,
    stdio: Stdio,
    size: Option<TerminalSize>,
    ending: Ending,
    process: Option<Arc<Process>>,
}

struct Task {
    container: Container,
    bundle: String,
    stdio: Stdio,
    init: Arc<Process>,
    execs: HashMap<String, Exec>,
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

    /// The process, if it was ever started.
    fn process(&self, exec_id: &str) -> Result<Option<&Arc<Process>>, TaskError> {
        if exec_id.is_empty() {
            return Ok(Some(&self.init));
        }
        Ok(self.exec(exec_id)?.process.as_ref())
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

    /// Makes a container; answers with its first process's id. After an error nothing
    /// of it is left.
    pub fn create(&self, new: NewContainer) -> Result<u32, TaskError> {
        if !ids::is_valid(&new.id) {
            return Err(TaskError::InvalidId(new.id));
        }
        if self.tasks().contains_key(&new.id) {
            return Err(TaskError::Exists(format!("container {}", new.id)));
        }
        let directory = self.base.join("containers").join(&new.id);
        let spec = spec::parse(&new.options.spec)?;
        let rootfs = self.storage().mount(
            &new.rootfs,
            &directory.join("rootfs"),
            spec::user_namespace(&spec),
        )?;
        match self.launch_with_volumes(&new, spec, &directory, &rootfs) {
            Ok(mut task) => {
                let pid = task.init.pid;
                task.rootfs = Some(rootfs);
                self.tasks().insert(new.id, task);
                Ok(pid)
            }
            Err(error) => {
                self.storage().unmount(rootfs);
                remove_directory(&directory);
                Err(error)
            }
        }
    }

    fn launch_with_volumes(
        &self,
        new: &NewContainer,
        spec: Spec,
        directory: &Path,
        rootfs: &RootFs,
    ) -> Result<Task, TaskError> {
        let prepared = self.volumes().prepare(&new.options, &mut self.storage())?;
        let place = Place {
            id: &new.id,
            rootfs: &rootfs.path,
            files: &[],
            volumes: &prepared.sources,
            nodes: &prepared.nodes,
            terminal: new.stdio.terminal,
        };
        match self.launch(new, spec, directory, place) {
            Ok(mut task) => {
                task.disks = prepared.nodes;
                Ok(task)
            }
            Err(error) => {
                self.volumes().release(&prepared.nodes);
                Err(error)
            }
        }
    }

    fn launch(
        &self,
        new: &NewContainer,
        mut spec: Spec,
        directory: &Path,
        place: Place<'_>,
    ) -> Result<Task, TaskError> {
        let files = spec::write_files(&directory.join("files"), &new.options.files)?;
        let place = Place {
            files: &files,
            ..place
        };
        spec::adapt(&mut spec, &place)?;
        let private_pids = spec::has_namespace(&spec, LinuxNamespaceType::Pid);
        let size = spec.process().as_ref().and_then(console_size);
        let (prepared, io) = stdio::prepare(&self.streams, &new.stdio, size)?;
        let (mut container, launched) = Container::create(runtime::CreateOptions {
            id: new.id.clone(),
            bundle: directory.into(),
            spec,
            state_dir: self.base.join("state"),
            io,
            cgroup: CgroupDriver::Cgroupfs,
        })
        .map_err(engine)?;
        let attached = match prepared.attach(launched.terminal) {
            Ok(attached) => attached,
            Err(error) => {
                // The process is an orphan now: killed here, collected like any other.
                if let Err(error) = container.delete(true) {
                    log::warn!("cannot delete container {}: {error}", new.id);
                }
                return Err(error.into());
            }
        };
        let init = Process::new(
            &new.id,
            "",
            launched.pid,
            launched.pidfd,
            Ending::default(),
            attached,
        );
        let init = Arc::new(init);
        self.reaper.register(Arc::clone(&init));
        if let Err(error) = self.oom.watch(&new.id, container.cgroup_path()) {
            log::warn!(
                "container {}: cannot watch for lack of memory: {error}",
                new.id
            );
        }
        Ok(Task {
            container,
            bundle: new.bundle.clone(),
            stdio: new.stdio.clone(),
            init,
            execs: HashMap::new(),
            started: false,
            paused: false,
            private_pids,
            rootfs: None,
            disks: Vec::new(),
            give_back: give_back(&new.options.files, files),
        })
    }

    /// Adds a process to a container; [`Tasks::start`] starts it.
    pub fn exec(
        &self,
        id: &str,
        exec_id: &str,
        spec: &[u8],
        stdio: Stdio,
    ) -> Result<(), TaskError> {
        if !ids::is_valid(exec_id) {
            return Err(TaskError::InvalidId(exec_id.into()));
        }
        let mut spec: ProcessSpec = serde_json::from_slice(spec).map_err(|error| {
            TaskError::Invalid(format!("the process's spec is not valid: {error}"))
        })?;
        spec.set_terminal(Some(stdio.terminal));
        self.with(id, |task| {
            if task.status() == Status::Stopped {
                return Err(TaskError::NotNow(format!(
                    "container {id} has stopped; it can take no process"
                )));
            }
            if task.execs.contains_key(exec_id) {
                return Err(TaskError::Exists(format!(
                    "process {exec_id} of container {id}"
                )));
            }
            let exec = Exec {
                size: console_size(&spec),
                spec,
                stdio,
                ending: Ending::default(),
                process: None,
            };
            task.execs.insert(exec_id.into(), exec);
            Ok(())
        })
    }

    /// Starts a process; answers with its id.
    pub fn start(&self, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        self.with(id, |task| {
            if exec_id.is_empty() {
                if task.status() != Status::Created {
                    return Err(TaskError::NotNow(format!(
                        "container {id} was started already"
                    )));
                }
                task.container.start().map_err(engine)?;
                task.started = true;
                return Ok(task.init.pid);
            }
            let exec = task.exec(exec_id)?;
            if exec.process.is_some() || exec.ending.get().is_some() {
                return Err(TaskError::NotNow(format!(
                    "process {exec_id} of container {id} was started already"
                )));
            }
            match self.start_exec(task, exec_id) {
                Ok(process) => {
                    let pid = process.pid;
                    if let Some(exec) = task.execs.get_mut(exec_id) {
                        exec.process = Some(process);
                    }
                    Ok(pid)
                }
                Err(error) => {
                    // Whoever waits for it must not wait for ever.
                    task.ending(exec_id)?.set(Exit::now(FAILED_START));
                    Err(error)
                }
            }
        })
    }

    fn start_exec(&self, task: &Task, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        let exec = task.exec(exec_id)?;
        let (prepared, io) = stdio::prepare(&self.streams, &exec.stdio, exec.size)?;
        let launched = task.container.exec(&exec.spec, io).map_err(engine)?;
        let attached = prepared.attach(launched.terminal)?;
        let id = &task.init.container_id;
        let ending = exec.ending.clone();
        let process = Process::new(id, exec_id, launched.pid, launched.pidfd, ending, attached);
        let process = Arc::new(process);
        self.reaper.register(Arc::clone(&process));
        Ok(process)
    }

    /// Collects what has ended and reports it. For every SIGCHLD.
    pub fn reap(&self) {
        for (process, exit) in self.reaper.reap() {
            if process.container_id.is_empty() {
                // A console's: nothing of containerd's.
                process.ending.set(exit);
                continue;
            }
            self.report_oom(&process.container_id);
            process.ending.set(exit);
            self.events.push(Kind::Exit(guest::Exit {
                container_id: process.container_id.clone(),
                exec_id: process.exec_id.clone(),
                pid: process.pid,
                status: exit.status,
                exited_at_ns: exit.at_ns,
                files: self.given_back(&process),
                ..Default::default()
            }));
            if process.exec_id.is_empty() {
                self.end_siblings(&process.container_id);
            }
        }
    }

    /// The files that a container gives back when its first process ends.
    fn given_back(&self, process: &Process) -> Vec<GivenBack> {
        if !process.exec_id.is_empty() {
            return Vec::new();
        }
        let files = self.with(&process.container_id, |task| {
            Ok(std::mem::take(&mut task.give_back))
        });
        let read = |(index, path): (u32, PathBuf)| match file_end(&path) {
            Ok(data) => Some(GivenBack {
                index,
                data,
                ..Default::default()
            }),
            Err(error) => {
                log::warn!("cannot give back {}: {error}", path.display());
                None
            }
        };
        files
            .unwrap_or_default()
            .into_iter()
            .filter_map(read)
            .collect()
    }

    /// In a pid namespace of its own the kernel ends a container's processes with the
    /// first one; without one that is ours to do.
    fn end_siblings(&self, id: &str) {
        let killed = self.with(id, |task| {
            if task.private_pids {
                return Ok(());
            }
            task.container.kill_all(libc::SIGKILL).map_err(engine)
        });
        if let Err(error) = killed {
            log::warn!("container {id}: cannot kill what is left of it: {error}");
        }
    }

    fn report_oom(&self, id: &str) {
        if self.oom.check(id) {
            self.push_oom(id.into());
        }
    }

    fn push_oom(&self, container_id: String) {
        self.events.push(Kind::Oom(Oom {
            container_id,
            ..Default::default()
        }));
    }

    /// Reports containers that lose processes to lack of memory, for ever.
    pub async fn watch_memory(&self) {
        loop {
            match self.oom.next().await {
                Ok(containers) => containers.into_iter().for_each(|id| self.push_oom(id)),
                Err(error) => {
                    return log::error!("cannot watch for lack of memory any more: {error}");
                }
            }
        }
    }

    /// Removes a process that has ended or was never started, and with a container's
    /// first process the container. Answers with its process id and its end.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), TaskError> {
        if !exec_id.is_empty() {
            return self.with(id, |task| {
                let exec = task.exec(exec_id)?;
                let pid = exec.process.as_ref().map_or(0, |process| process.pid);
                let exit = match exec.ending.get() {
                    Some(exit) => exit,
                    None if pid == 0 => Exit::now(0),
                    None => {
                        return Err(still_running(&format!(
                            "process {exec_id} of container {id}"
                        )));
                    }
                };
                task.execs.remove(exec_id);
                Ok((pid, exit))
            });
        }
        let init = self.with(id, |task| match task.status() {
            Status::Stopped => Ok(Arc::clone(&task.init)),
            Status::Created => {
                task.container.kill(libc::SIGKILL).map_err(engine)?;
                Ok(Arc::clone(&task.init))
            }
            Status::Running | Status::Paused => Err(still_running(&format!("container {id}"))),
        })?;
        let exit = init.ending.wait().await;
        self.remove(id)?;
        Ok((init.pid, exit))
    }

    fn remove(&self, id: &str) -> Result<(), TaskError> {
        let (rootfs, disks) = self.with(id, |task| {
            task.container.delete(true).map_err(engine)?;
            Ok((task.rootfs.take(), std::mem::take(&mut task.disks)))
        })?;
        self.tasks().remove(id);
        self.volumes().release(&disks);
        self.oom.forget(id);
        if let Some(rootfs) = rootfs {
            self.storage().unmount(rootfs);
        }
        remove_directory(&self.base.join("containers").join(id));
        Ok(())
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
            let Some(process) = task.process(exec_id)? else {
                return Err(TaskError::NotNow(format!(
                    "process {exec_id} of container {id} was not started yet"
                )));
            };
            process
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
                pid: exec.process.as_ref().map_or(0, |process| process.pid),
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
            if let Some(exec) = task.execs.get_mut(exec_id) {
                exec.size = Some(size);
            }
            Ok(())
        })
    }

    /// Ends a process's input.
    pub fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), TaskError> {
        self.with(id, |task| {
            match task.process(exec_id)? {
                Some(process) => process.close_stdin(),
                None => {
                    return Err(TaskError::NotNow(format!(
                        "process {exec_id} of container {id} was not started yet"
                    )));
                }
            }
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

fn still_running(what: &str) -> TaskError {
    TaskError::NotNow(format!("{what} is running: stop it before deleting it"))
}

fn console_size(spec: &ProcessSpec) -> Option<TerminalSize> {
    let size = spec.console_size()?;
    Some(TerminalSize {
        columns: u16::try_from(size.width()).ok()?,
        rows: u16::try_from(size.height()).ok()?,
    })
}

/// The request's files that are to be given back.
fn give_back(files: &[guest::File], paths: Vec<PathBuf>) -> Vec<(u32, PathBuf)> {
    (0..)
        .zip(files.iter().zip(paths))
        .filter(|(_, (file, _))| file.give_back)
        .map(|(index, (_, path))| (index, path))
        .collect()
}

/// The end of a file, as much as is given back.
fn file_end(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let most = length.min(ids::MAX_GIVEN_BACK as u64);
    let mut data = vec![0; usize::try_from(most).map_err(io::Error::other)?];
    file.read_exact_at(&mut data, length - most)?;
    Ok(data)
}

/// Removes what the agent keeps of a container. The root file system's mount point is
/// gone by then; were it not, nothing below it may be touched.
fn remove_directory(directory: &Path) {
    let files = directory.join("files");
    let removed = if files.exists() {
        fs::remove_dir_all(&files)
    } else {
        Ok(())
    };
    if let Err(error) = removed.and_then(|()| fs::remove_dir(directory)) {
        log::warn!("cannot remove {}: {error}", directory.display());
    }
}
