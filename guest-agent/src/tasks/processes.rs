//! Processes: added to a container, and started.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use oci_spec::runtime::Process as ProcessSpec;
use protocol::ids;

use super::error::engine;
use super::{Exec, Status, TaskError, Tasks};
use crate::process::{Ending, Exit, Process, console_size, follow};
use crate::stdio::{self, Stdio};

/// Status of a process that was never started because its start failed.
const FAILED_START: u32 = 255;

impl Tasks {
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
                starting: false,
                process: None,
            };
            task.execs.insert(exec_id.into(), exec);
            Ok(())
        })
    }

    /// Starts a process; answers with its id when it has become its command. Until then
    /// others are served: it is subject to its container's limits and signals, and may
    /// not get there for a long time.
    pub async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        let (tasks, id, exec_id) = (Arc::clone(self), id.to_owned(), exec_id.to_owned());
        // A task of its own: once begun it is done, even if whoever asked has gone.
        let started = tokio::spawn(async move {
            if exec_id.is_empty() {
                tasks.start_first(&id).await
            } else {
                tasks.start_exec(&id, &exec_id).await
            }
        });
        started.await.map_err(|error| TaskError::System {
            what: "start a process",
            source: io::Error::other(error),
        })?
    }

    async fn start_first(&self, id: &str) -> Result<u32, TaskError> {
        let (mut starting, init) = self.with(id, |task| {
            if task.starting || task.status() != Status::Created {
                return Err(TaskError::NotNow(format!(
                    "container {id} was started already"
                )));
            }
            let starting = task.container.begin_start().map_err(engine)?;
            task.starting = true;
            Ok((starting, Arc::clone(&task.init)))
        })?;
        let watched = starting.as_fd().try_clone_to_owned();
        let started = follow(watched, unwatched, || starting.advance().map_err(engine)).await;
        self.with(id, |task| {
            if !Arc::ptr_eq(&task.init, &init) {
                return Err(TaskError::NoContainer(id.into()));
            }
            task.starting = false;
            started?;
            task.started = true;
            Ok(task.init.pid)
        })
    }

    async fn start_exec(&self, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        let ending = self.with(id, |task| {
            let exec = task.exec_mut(exec_id)?;
            if exec.starting || exec.process.is_some() || exec.ending.get().is_some() {
                return Err(TaskError::NotNow(format!(
                    "process {exec_id} of container {id} was started already"
                )));
            }
            exec.starting = true;
            Ok(exec.ending.clone())
        })?;
        let started = self.launch_exec(id, exec_id, &ending).await;
        if started.is_err() {
            // Whoever waits for it must not wait for ever.
            ending.set(Exit::now(FAILED_START));
        }
        // The container may be gone by now.
        let _ = self.with(id, |task| {
            task.exec_mut(exec_id)?.starting = false;
            Ok(())
        });
        let (process, exit) = started?;
        if let Some(exit) = exit {
            self.ended(&process, exit);
        }
        Ok(process.pid)
    }

    /// Answers with the process and, if it has ended already, how.
    async fn launch_exec(
        &self,
        id: &str,
        exec_id: &str,
        ending: &Ending,
    ) -> Result<(Arc<Process>, Option<Exit>), TaskError> {
        let (prepared, size, mut launching) = self.with(id, |task| {
            let exec = task.exec(exec_id)?;
            let (prepared, io) = stdio::prepare(&self.streams, &exec.stdio, exec.size)?;
            let launching = task.container.begin_exec(&exec.spec, io).map_err(engine)?;
            self.reaper.expect(launching.pid());
            Ok((prepared, exec.size, launching))
        })?;
        let pid = launching.pid();
        let watched = launching.as_fd().try_clone_to_owned();
        let launched = follow(watched, unwatched, || launching.advance().map_err(engine)).await;
        let made = launched.and_then(|launched| {
            let attached = prepared.attach(launched.terminal)?;
            let ending = ending.clone();
            let process = Process::new(id, exec_id, pid, launched.pidfd, ending, attached);
            Ok(Arc::new(process))
        });
        let process = made.inspect_err(|_| self.reaper.give_up(pid))?;
        // When the container is gone, its process is about to be.
        let resized = self.with(id, |task| {
            let exec = task.exec_mut(exec_id)?;
            exec.process = Some(Arc::clone(&process));
            Ok(exec.size.filter(|now| Some(*now) != size))
        });
        if let Ok(Some(size)) = resized
            && let Err(error) = process.resize(size)
        {
            log::debug!("process {exec_id} of container {id}: cannot be resized: {error}");
        }
        let exit = self.reaper.register_expected(pid, &process);
        Ok((process, exit))
    }
}

fn unwatched(source: io::Error) -> TaskError {
    TaskError::System {
        what: "watch a new process",
        source,
    }
}
