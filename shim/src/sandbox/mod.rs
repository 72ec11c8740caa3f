//! A pod's sandbox: its VM, its agent, its containers. One task owns its end:
//! whatever kills the VM, containers and sandbox are reported stopped in order
//! and everything that the pod had on the host goes.

mod console;
mod containers;
mod growth;
mod limits;
pub mod next;
mod patience;
mod pause;
mod processes;
mod start;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use protocol::shim::Description;
use tokio::sync::watch as channel;

use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::forward::Forwarder;
use crate::guest::Guest;
use crate::images::blobs::BlobStore;
use crate::images::window::Window;
use crate::pod::Etc;
use crate::process::{KILLED, Process, publish_oom, step};
use crate::stages::Stages;
use crate::task_state::{Exit, TaskState};
use crate::vm::Vm;
use crate::volumes::Volumes;

pub use start::Request;

/// By which of its services containerd asked for a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The Task API: the sandbox is a task (podsandbox).
    Task,
    /// The Sandbox API.
    Sandbox,
    /// The Task API, for a container without a pod: containerd does not know of
    /// the sandbox.
    Container,
}

/// A pod's sandbox.
pub struct Sandbox {
    id: String,
    by: By,
    created: SystemTime,
    /// What containers find in /etc, where that is left to us.
    etc: Option<Etc>,
    vm: Arc<Vm>,
    /// Of its first VMM. When the VM was saved and restored podsandbox still knows the sandbox
    /// by it, the Sandbox API's by that of the new one.
    first_pid: u32,
    guest: Guest,
    stages: Arc<Stages>,
    publisher: Publisher,
    blobs: BlobStore,
    /// What containerd sees as the sandbox's process; `None` when the sandbox
    /// belongs to a single container and containerd does not know of it.
    process: Option<Arc<Process>>,
    /// Whether containerd still has the sandbox's process on its list of tasks.
    listed: AtomicBool,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Held while an image is shown, so that nobody uses a place whose image is
    /// not there yet.
    window: tokio::sync::Mutex<Window>,
    volumes: Volumes,
    /// What the VMM got of its containers' limits.
    standing: Mutex<limits::Standing>,
    growth: growth::Growth,
    /// Gives each stream its id.
    streams: AtomicU64,
    /// Takes the connections to the pod's localhost; `None` without a network of its
    /// own, and after the end.
    forwarder: Mutex<Option<Forwarder>>,
    /// The status that a stop on request ends with.
    requested: Mutex<Option<u32>>,
    /// Since when the agent has left a call of a stop unanswered.
    silent: Mutex<Option<Instant>>,
    /// When the agent has left a question of containerd's unanswered.
    unanswered: Mutex<Option<Instant>>,
    /// Held while the VM is paused or resumed.
    pausing: tokio::sync::Mutex<()>,
    /// Becomes true when nothing of the pod is left on the host.
    ended: channel::Sender<bool>,
}

/// A container in the pod.
pub struct Container {
    /// Its first process.
    pub init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// Files of the host that get what the container leaves in its copies, by index.
    given_back: Mutex<HashMap<u32, std::fs::File>>,
    /// Whether the agent has reported its end.
    ending: AtomicBool,
    /// What it wants of the host.
    standing: Mutex<limits::Standing>,
    /// What it may use of the guest.
    share: Mutex<growth::Share>,
    /// Held while it is made: whoever deletes it waits for that.
    making: tokio::sync::Mutex<()>,
}

impl Sandbox {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Its agent.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// How long its start took.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// What there is in it.
    pub fn describe(&self) -> Description {
        let state = if !self.running() {
            "ended"
        } else if self.vm.hibernates() {
            "saved"
        } else if self.is_paused() {
            "paused"
        } else if self.silent_since().is_some() {
            "unresponsive"
        } else {
            "running"
        };
        let mut containers: Vec<_> = self
            .containers()
            .values()
            .map(|container| {
                let state = container.init.state();
                protocol::shim::Container {
                    id: container.init.container.clone(),
                    state: format!("{:?}", state.status()).to_lowercase(),
                    pid: state.pid(),
                    ..Default::default()
                }
            })
            .collect();
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        Description {
            state: state.into(),
            containers,
            ..Default::default()
        }
    }

    /// Whether containerd means the sandbox itself by this id.
    pub fn is_itself(&self, id: &str) -> bool {
        id == self.id && !self.alone()
    }

    /// Whether it belongs to one container and ends with it.
    pub fn alone(&self) -> bool {
        self.by == By::Container
    }

    /// Which of containerd's services it belongs to.
    pub fn by(&self) -> By {
        self.by
    }

    /// When its VM was ready.
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// What containerd sees as its process.
    ///
    /// # Errors
    /// When the sandbox is not containerd's.
    pub fn process(&self) -> Result<&Arc<Process>> {
        self.process
            .as_ref()
            .ok_or_else(|| Error::NotFound(format!("sandbox {} does not exist", self.id)))
    }

    /// Whether the VM is still there.
    pub fn running(&self) -> bool {
        !*self.ended.borrow()
    }

    /// A container by its id.
    ///
    /// # Errors
    /// When the pod has none of that id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("container {id} does not exist")))
    }

    /// Whether containerd has something of the pod that it has not deleted.
    pub fn in_use(&self) -> bool {
        self.listed() || self.by == By::Sandbox || !self.containers().is_empty()
    }

    fn listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// Removes the sandbox's own process, which must have ended or never been
    /// started, and the VM with it.
    ///
    /// # Errors
    /// While it runs.
    pub async fn delete(&self) -> Result<DeleteResponse> {
        let process = self.find(&self.id, "")?;
        step(&process, |state| state.deletable())?;
        self.stop(KILLED).await;
        self.listed.store(false, Ordering::Relaxed);
        Ok(process.tell_deleted(&self.publisher))
    }

    /// Stops the VM, and the pod with it; the sandbox is reported to have ended
    /// with `status`. Returns when nothing of it is left on the host.
    pub async fn stop(&self, status: u32) {
        self.requested().get_or_insert(status);
        self.vm.kill();
        self.wait_ended().await;
    }

    /// Waits until nothing of the pod is left on the host.
    pub async fn wait_ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender is a field of ours, so waiting cannot fail.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// The VM is gone: everything ends, in the order in which containerd expects
    /// to hear of it.
    async fn end(&self) {
        let status = self.requested().unwrap_or(KILLED);
        let starved = !self.stopping() && self.vm.cgroup().oom_kills() > 0;
        if starved {
            tracing::error!(
                sandbox = self.id,
                "the host killed the VM for want of memory: raise the pod's memory limit, or \
                 the overhead of its RuntimeClass"
            );
        }
        let containers: Vec<_> = self.containers().values().cloned().collect();
        for container in containers {
            if starved && container.init.state().exit().is_none() {
                publish_oom(&self.publisher, &container.init.container).await;
            }
            for exec in container.execs().values() {
                end_process(exec, &self.publisher);
            }
            end_process(&container.init, &self.publisher);
        }
        self.volumes.end().await;
        // It keeps the pod's network namespace.
        let forwarder = self
            .forwarder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(forwarder) = forwarder {
            forwarder.stop().await;
        }
        self.vm.release().await;
        if let Some(process) = &self.process {
            self.finish_itself(process, Exit::now(status));
        }
        self.ended.send_replace(true);
    }

    /// The sandbox's own process has ended.
    fn finish_itself(&self, process: &Process, exit: Exit) {
        match self.by {
            By::Sandbox => process.finish_silently(exit),
            By::Task | By::Container => process.finish(exit, &self.publisher),
        }
    }

    /// Whether the VM was asked to stop.
    fn stopping(&self) -> bool {
        self.requested().is_some()
    }

    fn requested(&self) -> MutexGuard<'_, Option<u32>> {
        self.requested
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exec that never ran has nothing to report; all else was killed.
fn end_process(process: &Process, publisher: &Publisher) {
    let never_ran =
        !process.exec.is_empty() && matches!(*process.state(), TaskState::Created { .. });
    if !never_ran {
        process.finish(Exit::now(KILLED), publisher);
    }
}

impl Container {
    /// One of its processes; an empty `exec` is the first.
    ///
    /// # Errors
    /// When there is no such exec.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs().get(exec).cloned().ok_or_else(|| {
            Error::NotFound(format!(
                "exec {exec} does not exist in container {}",
                self.init.container
            ))
        })
    }

    fn standing(&self) -> MutexGuard<'_, limits::Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share(&self) -> MutexGuard<'_, growth::Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
