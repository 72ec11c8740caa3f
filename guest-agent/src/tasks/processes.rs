//! Processes: added to a container, and started.

use std::sync::Arc;

use oci_spec::runtime::Process as ProcessSpec;
use protocol::ids;
use runtime::TerminalSize;

use super::error::engine;
use super::{Exec, Status, Task, TaskError, Tasks};
use crate::process::{Ending, Exit, Process};
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
}

/// The size that a spec gives its terminal.
pub(super) fn console_size(spec: &ProcessSpec) -> Option<TerminalSize> {
    let size = spec.console_size()?;
    Some(TerminalSize {
        columns: u16::try_from(size.width()).ok()?,
        rows: u16::try_from(size.height()).ok()?,
    })
}
