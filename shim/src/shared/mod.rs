//! A pod on the host's kernel (`mode = "runc"`): its containers are made by the OCI engine in
//! this very process, which forks without exec. So nothing here may start a thread, and what
//! blocks is short, as in the guest's agent.
//!
//! All that is kept of a container is in its bundle ([`room`]), where [`remains`] finds it
//! when this process was killed.

mod containers;
mod exits;
mod processes;
pub mod remains;
mod rootfs;
mod sandbox;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use guest_agent::oom::OomWatch;
use guest_agent::reaper::Reaper;
use oci_spec::runtime::Process as ProcessSpec;
use runtime::TerminalSize;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::process::Process;

pub use sandbox::{Plan, Request, SharedSandbox};

/// A pod on the host's kernel.
pub struct SharedPod {
    publisher: Publisher,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    reaper: Reaper<Member>,
    oom: OomWatch,
    /// What [`Process`] counts streams with; those here need no ids.
    streams: AtomicU64,
    /// The bundle of what came first, by which all is found again.
    home: OnceLock<PathBuf>,
    /// The sandbox, unless it is one of the containers.
    sandbox: Mutex<Option<Arc<SharedSandbox>>>,
}

/// A container of the pod.
struct Container {
    bundle: PathBuf,
    init: Arc<Member>,
    execs: Mutex<HashMap<String, Arc<Member>>>,
    /// `None` while it is made.
    engine: Mutex<Option<runtime::Container>>,
    /// Its processes end with its first one.
    private_pids: bool,
    /// Held while it is made: whoever deletes it waits for that.
    making: tokio::sync::Mutex<()>,
}

/// A process of a container.
struct Member {
    process: Arc<Process>,
    /// An exec's; the first process's is the container's.
    spec: Option<ProcessSpec>,
    /// What its terminal is to have when it is there.
    size: Mutex<Option<TerminalSize>>,
    /// Once it is there.
    live: OnceLock<Live>,
}

/// What leads to a process that is there.
struct Live {
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl SharedPod {
    /// A pod without containers. From here on this process collects every process that ends
    /// below it.
    ///
    /// # Errors
    /// When it cannot watch for ends.
    pub fn new(publisher: Publisher) -> Result<Arc<Self>> {
        let watch = |error| Error::Failed(format!("cannot watch processes: {error}"));
        let threads = std::fs::read_dir("/proc/self/task").map_err(watch)?.count();
        if threads != 1 {
            return Err(Error::Failed(format!(
                "the shim has {threads} threads, and can only fork with one: start the pod anew"
            )));
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| watch(error.into()))?;
        let mut children = signal(SignalKind::child()).map_err(watch)?;
        let pod = Arc::new(Self {
            publisher,
            containers: Mutex::default(),
            reaper: Reaper::default(),
            oom: OomWatch::new().map_err(watch)?,
            streams: AtomicU64::new(1),
            home: OnceLock::new(),
            sandbox: Mutex::new(None),
        });
        let reaping = pod.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                reaping.reap();
            }
        });
        tokio::spawn(exits::watch_memory(pod.clone()));
        Ok(pod)
    }

    /// Whether containerd has something of the pod that it has not deleted.
    pub fn in_use(&self) -> bool {
        !self.containers().is_empty() || self.sandbox().is_ok()
    }

    /// A process by containerd's pair of ids.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        Ok(self.container(id)?.member(exec)?.process.clone())
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("container {id} does not exist")))
    }

    fn all(&self) -> Vec<Arc<Container>> {
        self.containers().values().cloned().collect()
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    fn id(&self) -> &str {
        &self.init.process.container
    }

    /// One of its processes; an empty `exec` is the first.
    fn member(&self, exec: &str) -> Result<Arc<Member>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs().get(exec).cloned().ok_or_else(|| {
            Error::NotFound(format!(
                "exec {exec} does not exist in container {}",
                self.id()
            ))
        })
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Member>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the engine's container.
    fn with<T>(&self, act: impl FnOnce(&mut runtime::Container) -> Result<T>) -> Result<T> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        match engine.as_mut() {
            Some(engine) => act(engine),
            None => Err(Error::State(format!(
                "container {} is not created yet",
                self.id()
            ))),
        }
    }
}

impl Member {
    fn new(process: Process, spec: Option<ProcessSpec>, size: Option<TerminalSize>) -> Arc<Self> {
        Arc::new(Self {
            process: Arc::new(process),
            spec,
            size: Mutex::new(size),
            live: OnceLock::new(),
        })
    }

    fn size(&self) -> MutexGuard<'_, Option<TerminalSize>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The directory in a bundle that holds what is kept of its container. Beside the engine's
/// directory of the container, names in it have a plus sign, which no id has.
fn room(bundle: &Path) -> PathBuf {
    bundle.join("joey")
}

/// Where a container's root file system is mounted.
fn root(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}
