//! Starting, signalling and looking at processes.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use containerd_shim_protos::api::{
    DeleteResponse, ExecProcessRequest, KillRequest, PidsResponse, ProcessInfo, ResizePtyRequest,
    StatsResponse, UpdateTaskRequest,
};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use guest_agent::metrics;
use guest_agent::process::{SIGNALS, console_size, follow, signal};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use runtime::TerminalSize;

use super::{Container, Live, Member, SharedPod};
use crate::error::{Error, Result};
use crate::metrics::TYPE_URL;
use crate::process::{Process, step};
use crate::streams::Stdio;
use crate::streams::host::prepare;
use crate::task_state::{Exit, TaskState};

/// Name of the message that says which exec a process id belongs to.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// Status of a process that was never started because its start failed.
const FAILED_START: u32 = 255;

impl SharedPod {
    /// Starts a container, or an exec in it; answers with its pid when it has become its
    /// command. Others are served until then.
    ///
    /// # Errors
    /// When it is not to be started, or the engine cannot.
    pub async fn start(&self, id: &str, exec: &str) -> Result<u32> {
        let container = self.container(id)?;
        let member = container.member(exec)?;
        let process = &member.process;
        if !exec.is_empty() && container.init.process.state().exit().is_some() {
            return Err(Error::State(format!("container {id} is not running")));
        }
        step(process, TaskState::start)?;
        let started = if exec.is_empty() {
            start_first(&container).await
        } else {
            self.start_exec(&container, &member).await
        };
        match started {
            Ok(pid) => {
                let early = step(process, |state| state.started(pid))?;
                process.tell_started(pid, &self.publisher);
                if let Some(exit) = early {
                    process.finish(exit, &self.publisher);
                }
                Ok(pid)
            }
            Err(error) => {
                let early = step(process, TaskState::start_failed)?;
                if exec.is_empty() {
                    if let Some(exit) = early {
                        process.finish(exit, &self.publisher);
                    }
                } else {
                    // Whoever waits for it must not wait for ever. Its start was not told,
                    // so its end is not either.
                    process.finish_silently(Exit::now(FAILED_START));
                }
                Err(error)
            }
        }
    }

    async fn start_exec(&self, container: &Container, member: &Arc<Member>) -> Result<u32> {
        let spec = member
            .spec
            .as_ref()
            .ok_or_else(|| Error::Failed("an exec has no process".into()))?;
        let size = *member.size();
        let (prepared, io) = prepare(&member.process.stdio, size)
            .await
            .map_err(Error::failed)?;
        let mut launching = container.with(|engine| {
            let launching = engine.begin_exec(spec, io).map_err(Error::failed)?;
            self.reaper.expect(launching.pid());
            Ok(launching)
        })?;
        let pid = launching.pid();
        let watched = launching.as_fd().try_clone_to_owned();
        let launched = follow(watched, unwatched, || {
            launching.advance().map_err(Error::failed)
        })
        .await;
        let attached = launched.and_then(|launched| {
            let streams = prepared.attach(launched.terminal.as_ref());
            Ok((streams.map_err(Error::failed)?, launched))
        });
        let (streams, launched) = attached.inspect_err(|_| self.reaper.give_up(pid))?;
        *member.process.streams() = Some(streams);
        let live = Live {
            pidfd: launched.pidfd,
            terminal: launched.terminal,
        };
        // Nobody else sets it: it is started once.
        let _ = member.live.set(live);
        if let Some(now) = *member.size()
            && Some(now) != size
            && let Err(error) = member.resize(now)
        {
            tracing::debug!(%error, "an exec's terminal cannot be resized");
        }
        if let Some(exit) = self.reaper.register_expected(pid, member) {
            // Held until the start is told.
            self.ended(member, exit);
        }
        Ok(pid)
    }

    /// Adds an exec to a container.
    ///
    /// # Errors
    /// When the id is taken or the process is not valid.
    pub fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        let mut spec: ProcessSpec = serde_json::from_slice(&request.spec.value)
            .map_err(|error| Error::Invalid(format!("the process's spec is not valid: {error}")))?;
        spec.set_terminal(Some(request.terminal));
        let size = console_size(&spec);
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let process = Process::new(
            &request.id,
            &request.exec_id,
            &container.init.process.bundle,
            &self.streams,
            stdio,
            TaskState::Created { pid: 0 },
        );
        let mut execs = container.execs();
        if execs.contains_key(&request.exec_id) {
            return Err(Error::Exists(format!(
                "exec {} exists already",
                request.exec_id
            )));
        }
        execs.insert(
            request.exec_id.clone(),
            Member::new(process, Some(spec), size),
        );
        self.publisher.publish(&TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Removes an exec that has ended or never started.
    ///
    /// # Errors
    /// While it runs.
    pub async fn delete_exec(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        let container = self.container(id)?;
        let process = container.member(exec)?.process.clone();
        step(&process, |state| state.deletable())?;
        process.drain().await;
        container.execs().remove(exec);
        Ok(process.delete_response())
    }

    /// Signals a process, or all of a container.
    ///
    /// # Errors
    /// When it has ended already or was never started.
    pub fn kill(&self, request: &KillRequest) -> Result<()> {
        if !SIGNALS.contains(&request.signal) {
            return Err(Error::Invalid(format!(
                "{} is not a signal: signals are 1 to 64",
                request.signal
            )));
        }
        let number = request.signal.cast_signed();
        let container = self.container(&request.id)?;
        let member = container.member(&request.exec_id)?;
        let finished = || {
            Error::NotFound(format!(
                "process {} has finished already",
                member.process.id()
            ))
        };
        if member.process.state().exit().is_some() {
            return Err(finished());
        }
        if request.all && request.exec_id.is_empty() {
            return container.with(|engine| engine.kill_all(number).map_err(Error::failed));
        }
        let live = member.live.get().ok_or_else(|| {
            Error::State(format!(
                "process {} was not started yet",
                member.process.id()
            ))
        })?;
        signal(&live.pidfd, number).map_err(|error| match error.raw_os_error() {
            // Ended, and not collected yet.
            Some(libc::ESRCH) => finished(),
            _ => Error::Failed(format!("cannot send signal {number}: {error}")),
        })
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// Unless it runs, or when the kernel refuses.
    pub fn pause(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let init = &container.init.process;
        // Looks only; the step is taken when it is done.
        step(init, |state| state.clone().pause())?;
        container.with(|engine| engine.pause().map_err(Error::failed))?;
        step(init, TaskState::pause)?;
        self.publisher.publish(&TaskPaused {
            container_id: id.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// Unless it is paused, or when the kernel refuses.
    pub fn resume(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let init = &container.init.process;
        step(init, |state| state.clone().resume())?;
        container.with(|engine| engine.resume().map_err(Error::failed))?;
        step(init, TaskState::resume)?;
        self.publisher.publish(&TaskResumed {
            container_id: id.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Gives a process's terminal a size, now or when it is started.
    ///
    /// # Errors
    /// When there is no such process, or the kernel refuses.
    pub fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = TerminalSize {
            columns: cells(request.width),
            rows: cells(request.height),
        };
        let member = self.container(&request.id)?.member(&request.exec_id)?;
        *member.size() = Some(size);
        member
            .resize(size)
            .map_err(|error| Error::Failed(format!("cannot resize a terminal: {error}")))
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// When they are not valid, or the kernel refuses.
    pub fn update(&self, request: &UpdateTaskRequest) -> Result<()> {
        let resources: LinuxResources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| Error::Invalid(format!("the resources are not valid: {error}")))?;
        self.container(&request.id)?
            .with(|engine| engine.update(&resources).map_err(Error::failed))
    }

    /// A container's processes.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn pids(&self, id: &str) -> Result<PidsResponse> {
        let container = self.container(id)?;
        let state = container.init.process.state().clone();
        let pids = if state.exit().is_some() {
            // Like a process that nobody has waited for. A containerd that was started anew
            // throws away, with its exit, a task that has none.
            vec![state.pid()]
        } else {
            container.with(|engine| engine.pids().map_err(Error::failed))?
        };
        let execs: Vec<(u32, String)> = container
            .execs()
            .iter()
            .map(|(exec, member)| (member.process.state().pid(), exec.clone()))
            .collect();
        let processes = pids.into_iter().map(|pid| {
            let exec = execs.iter().find(|(of, _)| *of == pid);
            Ok(ProcessInfo {
                pid,
                info: exec.map(|(_, exec)| details(exec)).transpose()?.into(),
                ..Default::default()
            })
        });
        Ok(PidsResponse {
            processes: processes.collect::<Result<_>>()?,
            ..Default::default()
        })
    }

    /// What a container uses.
    ///
    /// # Errors
    /// When there is no such container, or its cgroup cannot be read.
    pub fn stats(&self, id: &str) -> Result<StatsResponse> {
        let stats = self
            .container(id)?
            .with(|engine| engine.stats().map_err(Error::failed))?;
        let value = metrics::from_cgroup(stats)
            .write_to_bytes()
            .map_err(Error::failed)?;
        Ok(StatsResponse {
            stats: MessageField::some(Any {
                type_url: TYPE_URL.to_owned(),
                value,
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

async fn start_first(container: &Container) -> Result<u32> {
    let mut starting = container.with(|engine| engine.begin_start().map_err(Error::failed))?;
    let watched = starting.as_fd().try_clone_to_owned();
    follow(watched, unwatched, || {
        starting.advance().map_err(Error::failed)
    })
    .await?;
    container.with(|engine| Ok(engine.pid()))
}

fn unwatched(error: io::Error) -> Error {
    Error::Failed(format!("cannot watch a new process: {error}"))
}

fn details(exec: &str) -> Result<Any> {
    let details = ProcessDetails {
        exec_id: exec.to_owned(),
        ..Default::default()
    };
    Ok(Any {
        type_url: PROCESS_DETAILS.to_owned(),
        value: details.write_to_bytes().map_err(Error::failed)?,
        ..Default::default()
    })
}

impl Member {
    /// Gives its terminal a size; without a terminal there is nothing to do.
    fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match self.live.get().and_then(|live| live.terminal.as_ref()) {
            Some(terminal) => runtime::resize(terminal.as_fd(), size),
            None => Ok(()),
        }
    }
}
