//! Starting, signalling and looking at processes.

use std::sync::Arc;

use containerd_shim_protos::api::{
    DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, StartRequest, StatsRequest, StatsResponse,
    UpdateTaskRequest,
};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::ttrpc;
use nix::sys::signal::Signal;

use super::patience::Outcome;
use super::{By, Container, Sandbox, limits};
use crate::error::{Error, Result};
use crate::guest;
use crate::guest_spec;
use crate::metrics;
use crate::process::{KILLED, Process, step};
use crate::streams::{Stdio, Streams};
use crate::task_state::TaskState;

const SIGKILL: u32 = Signal::SIGKILL as u32;

/// Most processes of a container that a guest is believed to have: each costs containerd
/// memory when it asks.
const MAX_PIDS: usize = 1 << 16;

impl Sandbox {
    /// A process by containerd's pair of ids: of the sandbox, of a container, or
    /// an exec.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        match &self.process {
            Some(process) if id == self.id && self.listed() => {
                if exec.is_empty() {
                    Ok(process.clone())
                } else {
                    Err(Error::NotFound(format!("exec {exec} does not exist")))
                }
            }
            _ => self.container(id)?.process(exec),
        }
    }

    /// Starts a container, or an exec in it. Returns its pid in the guest.
    ///
    /// # Errors
    /// When it is not to be started, or the agent cannot.
    pub async fn start_process(&self, request: &StartRequest) -> Result<u32> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if !process.exec.is_empty() && container.init.state().exit().is_some() {
            return Err(Error::State(format!(
                "container {} is not running",
                request.id
            )));
        }
        step(&process, TaskState::start)?;
        let answer = async {
            if process.exec.is_empty() {
                // What strangers wrote runs from here on.
                tokio::join!(self.grown(), self.adopted());
            } else {
                // Those of a container are there since it was created.
                let streams = Streams::open(&process.stdio, &process.stream_ids, &self.guest.vsock)
                    .await
                    .map_err(Error::failed)?;
                *process.streams() = Some(streams);
            }
            Ok::<_, Error>(self.awake()?.task.start(guest::bounded(), request).await?)
        };
        match answer.await {
            Ok(answer) => {
                let pid = match answer.pid {
                    0 => process.state().pid(),
                    pid => pid,
                };
                let early = step(&process, |state| state.started(pid))?;
                process.tell_started(pid, &self.publisher);
                if let Some(exit) = early {
                    process.finish(exit, &self.publisher);
                }
                Ok(pid)
            }
            Err(error) => {
                if let Some(exit) = step(&process, TaskState::start_failed)? {
                    process.finish(exit, &self.publisher);
                }
                Err(error)
            }
        }
    }

    /// The sandbox's own start, as containerd counts it: the VM runs already.
    ///
    /// # Errors
    /// When it was started before or has ended.
    pub fn start_sandbox(&self, process: &Process) -> Result<u32> {
        let pid = self.vm.pid();
        step(process, TaskState::start)?;
        let early = step(process, |state| state.started(pid))?;
        if self.by != By::Sandbox {
            process.tell_started(pid, &self.publisher);
        }
        if let Some(exit) = early {
            self.finish_itself(process, exit);
        }
        self.afterwards();
        Ok(pid)
    }

    /// Adds an exec to a container.
    ///
    /// # Errors
    /// When the id is taken, the process is not valid, or the agent cannot.
    pub async fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        let mut spec = request.spec.clone();
        let spec = spec
            .as_mut()
            .ok_or_else(|| Error::Invalid("the exec has no process".into()))?;
        spec.value = guest_spec::process(&spec.value).map_err(Error::invalid)?;
        guest::check_size(spec.value.len(), "the process to be run")?;

        let exec = Arc::new(Process::new(
            &request.id,
            &request.exec_id,
            &container.init.bundle,
            &self.streams,
            Stdio {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            },
            TaskState::Creating { early: None },
        ));
        reserve(&container, &exec)?;
        let added = async {
            let message = ExecProcessRequest {
                stdin: exec.stream_ids.stdin.clone(),
                stdout: exec.stream_ids.stdout.clone(),
                stderr: exec.stream_ids.stderr.clone(),
                spec: MessageField::some(spec.clone()),
                ..request.clone()
            };
            self.awake()?.task.exec(guest::bounded(), &message).await?;
            step(&exec, |state| state.created(0))
        };
        let early = match added.await {
            Ok(early) => early,
            Err(error) => {
                container.execs().remove(&request.exec_id);
                return Err(error);
            }
        };
        self.publisher.publish(&TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..Default::default()
        });
        if let Some(exit) = early {
            exec.finish(exit, &self.publisher);
        }
        Ok(())
    }

    /// Removes an exec that has ended or never started.
    ///
    /// # Errors
    /// While it runs, or when the agent cannot remove it.
    pub async fn delete_exec(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        step(&process, |state| state.deletable())?;
        if self.running() {
            self.forward_delete(id, exec).await?;
        }
        process.drain().await;
        container.execs().remove(exec);
        Ok(process.delete_response())
    }

    /// Signals a process. To the sandbox, SIGKILL and SIGTERM mean the end of
    /// the pod; there is no process that could take others.
    ///
    /// # Errors
    /// When it has ended already, or the agent cannot.
    pub async fn kill(&self, request: &KillRequest) -> Result<()> {
        let process = self.find(&request.id, &request.exec_id)?;
        if process.state().exit().is_some() {
            return Err(Error::NotFound(format!(
                "process {} has finished already",
                process.id()
            )));
        }
        if !self.is_itself(&request.id) {
            if self.is_paused() {
                // As a frozen process that is killed: somebody wants it to end. Of two who
                // do, one comes too late.
                if let Err(error) = self.thaw().await
                    && self.is_paused()
                {
                    return Err(error);
                }
            }
            let _answering = process.answering().await;
            return self.signal(request).await;
        }
        const SIGTERM: u32 = Signal::SIGTERM as u32;
        const SIGINT: u32 = Signal::SIGINT as u32;
        match request.signal {
            SIGKILL => self.stop(KILLED).await,
            // The pause container, whose part this is, ends well on these.
            SIGTERM | SIGINT => self.stop(0).await,
            signal => tracing::debug!(signal, "a sandbox has no process to signal"),
        }
        Ok(())
    }

    /// Signals a container's process. One that is to be killed is gone after this even
    /// if its guest hangs; any other signal is on its way, as signals are.
    async fn signal(&self, request: &KillRequest) -> Result<()> {
        let (task, message) = (self.guest.task.clone(), request.clone());
        // Goes on though nobody waits: a slow guest still gets it.
        let call = tokio::spawn(async move { task.kill(guest::bounded(), &message).await });
        let call = async {
            call.await
                .unwrap_or_else(|error| Err(ttrpc::Error::Others(error.to_string())))
        };
        let outcome = if request.signal == SIGKILL {
            self.insist(call).await
        } else {
            self.suggest(call).await
        };
        match outcome {
            Outcome::Refused(error) => Err(error.into()),
            Outcome::Silent => {
                tracing::warn!(
                    container = request.id,
                    signal = request.signal,
                    "the guest does not answer; if it hangs, the next SIGKILL ends it"
                );
                Ok(())
            }
            Outcome::Answered(_) | Outcome::Ended => Ok(()),
        }
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// Unless it runs, or when the agent cannot.
    pub async fn pause(&self, request: &PauseRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        step(&container.init, |state| {
            // Looks only; the step is taken when the agent has done it.
            state.clone().pause()
        })?;
        self.awake()?.task.pause(guest::bounded(), request).await?;
        step(&container.init, TaskState::pause)?;
        self.publisher.publish(&TaskPaused {
            container_id: request.id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// Unless it is paused, or when the agent cannot.
    pub async fn resume(&self, request: &ResumeRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        step(&container.init, |state| state.clone().resume())?;
        self.awake()?.task.resume(guest::bounded(), request).await?;
        step(&container.init, TaskState::resume)?;
        self.publisher.publish(&TaskResumed {
            container_id: request.id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When it is not there, or the agent cannot.
    pub async fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        self.container(&request.id)?.process(&request.exec_id)?;
        self.awake()?
            .task
            .resize_pty(guest::bounded(), request)
            .await?;
        Ok(())
    }

    /// Changes a container's limits, or the whole pod's, which are its VM's size.
    ///
    /// # Errors
    /// When they are not valid, or the agent cannot.
    pub async fn update(&self, request: &UpdateTaskRequest) -> Result<()> {
        if self.is_itself(&request.id) {
            if let Some(resources) = request.resources.as_ref() {
                let limits =
                    guest_spec::parse_resources(&resources.value).map_err(Error::invalid)?;
                self.growth.update(&limits, self.vm.config());
                self.grow();
            }
            return Ok(());
        }
        let container = self.container(&request.id)?;
        let mut message = UpdateTaskRequest {
            id: request.id.clone(),
            resources: request.resources.clone(),
            ..Default::default()
        };
        let mut cpus = String::new();
        let before = *container.share();
        let mut share = before;
        if let Some(resources) = message.resources.as_mut() {
            let host = guest_spec::parse_resources(&resources.value).map_err(Error::invalid)?;
            resources.value = guest_spec::resources(&host).map_err(Error::invalid)?;
            self.warn_of_limits(&request.id, &host);
            cpus = limits::cpus(Some(&host));
            share = share.with(&host);
        }
        self.awake()?
            .task
            .update(guest::bounded(), &message)
            .await?;
        *container.share() = share;
        self.growth.lowered(before, share);
        self.grow();
        // An update says only what it changes.
        if !cpus.is_empty() {
            container.standing().cpus = cpus;
            self.settle();
        }
        Ok(())
    }

    /// A container's processes, by their pids in the guest; of the sandbox: the
    /// VMM, by its pid on the host.
    ///
    /// # Errors
    /// When it is not there, or the agent cannot.
    pub async fn pids(&self, request: &PidsRequest) -> Result<PidsResponse> {
        if self.is_itself(&request.id) {
            return Ok(PidsResponse {
                processes: vec![ProcessInfo {
                    pid: self.vm.pid(),
                    ..Default::default()
                }],
                ..Default::default()
            });
        }
        let container = self.container(&request.id)?;
        let state = container.init.state().clone();
        if state.exit().is_some() {
            // Like a process that nobody has waited for. A containerd that was
            // started anew throws away, with its exit, a task that has none.
            return Ok(PidsResponse {
                processes: vec![ProcessInfo {
                    pid: state.pid(),
                    ..Default::default()
                }],
                ..Default::default()
            });
        }
        let call = self.awake()?.task.pids(guest::question(), request);
        let answer = self.question(call).await?;
        if answer.processes.len() > MAX_PIDS {
            return Err(Error::Failed(format!(
                "the agent reports {} processes",
                answer.processes.len()
            )));
        }
        // Their pids alone: `info` is for runtimes that know more.
        Ok(PidsResponse {
            processes: answer
                .processes
                .iter()
                .map(|process| ProcessInfo {
                    pid: process.pid,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }

    /// What a container uses of the guest, or the sandbox of the host.
    ///
    /// # Errors
    /// When it is not there, or the agent cannot.
    pub async fn stats(&self, request: &StatsRequest) -> Result<StatsResponse> {
        if self.is_itself(&request.id) {
            let stats = metrics::stats(self.vm.cgroup().dir()).map_err(Error::failed)?;
            return Ok(StatsResponse {
                stats: MessageField::some(stats),
                ..Default::default()
            });
        }
        self.container(&request.id)?;
        let call = self.awake()?.task.stats(guest::question(), request);
        let answer = self.question(call).await?;
        let stats = metrics::checked(&answer.stats)
            .map_err(|error| Error::Failed(format!("the agent's statistics: {error}")))?;
        Ok(StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }
}

fn reserve(container: &Container, exec: &Arc<Process>) -> Result<()> {
    let mut execs = container.execs();
    if execs.contains_key(&exec.exec) {
        return Err(Error::Exists(format!("exec {} exists already", exec.exec)));
    }
    execs.insert(exec.exec.clone(), exec.clone());
    Ok(())
}
