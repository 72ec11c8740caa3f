//! A process as containerd knows it: the sandbox, a container's first process,
//! or an exec.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse, StateResponse, WaitResponse};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskStart,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use tokio::sync::{RwLock, RwLockReadGuard, watch};
use tokio::time::{Instant, timeout};

use crate::error::{Error, Result};
use crate::events::{Publisher, timestamp};
use crate::streams::{Stdio, StreamIds, Streams};
use crate::task_state::{Exit, Exited, TaskState, TransitionError};

/// Exit status of whatever is killed with what it lives in: 128 + SIGKILL.
pub const KILLED: u32 = 137;

/// How long execs may take to be reported after their container's end, which
/// containerd must hear of last.
const EXEC_PATIENCE: Duration = Duration::from_secs(2);

/// How long containerd may take to hear of a kill before the end of the container is
/// reported all the same.
const OOM_PATIENCE: Duration = Duration::from_secs(1);

/// One process.
#[derive(Debug)]
pub struct Process {
    /// The container that it belongs to; of the sandbox: its own id.
    pub container: String,
    /// Empty: the container's first process.
    pub exec: String,
    /// containerd's directory of the container.
    pub bundle: String,
    /// Where its streams go.
    pub stdio: Stdio,
    /// What the agent calls them.
    pub stream_ids: StreamIds,
    state: Mutex<TaskState>,
    exited: watch::Sender<Option<Exit>>,
    streams: Mutex<Option<Streams>>,
    /// Held for reading while a signal's answer is due.
    answering: RwLock<()>,
}

impl Process {
    /// A process in `state`. `counter` gives each stream of the sandbox an id of
    /// its own.
    pub fn new(
        container: &str,
        exec: &str,
        bundle: &str,
        counter: &AtomicU64,
        stdio: Stdio,
        state: TaskState,
    ) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            bundle: bundle.to_owned(),
            stream_ids: StreamIds::reserve(&stdio, counter),
            stdio,
            state: Mutex::new(state),
            exited: watch::Sender::new(None),
            streams: Mutex::new(None),
            answering: RwLock::new(()),
        }
    }

    /// The state, for a look or a step. Not to be held across an await.
    pub fn state(&self) -> MutexGuard<'_, TaskState> {
        // A step is one assignment, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its open streams.
    pub fn streams(&self) -> MutexGuard<'_, Option<Streams>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its own id: the exec's, else the container's.
    pub fn id(&self) -> &str {
        if self.exec.is_empty() {
            &self.container
        } else {
            &self.exec
        }
    }

    /// It ended: containerd is told and waiters wake, once.
    pub fn finish(&self, exit: Exit, publisher: &Publisher) {
        self.end(exit, |pid| {
            publisher.publish(&TaskExit {
                container_id: self.container.clone(),
                id: self.id().to_owned(),
                pid,
                exit_status: exit.status,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..Default::default()
            });
        });
    }

    /// As [`Process::finish`], for a sandbox that is no task: containerd waits for
    /// its end and expects no event.
    pub fn finish_silently(&self, exit: Exit) {
        self.end(exit, |_| {});
    }

    fn end(&self, exit: Exit, tell: impl FnOnce(u32)) {
        let pid = {
            let mut state = self.state();
            if state.exited(exit) != Exited::Now {
                return;
            }
            state.pid()
        };
        tell(pid);
        self.exited.send_replace(Some(exit));
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Exit {
        let mut exited = self.exited.subscribe();
        loop {
            if let Some(exit) = *exited.borrow_and_update() {
                return exit;
            }
            if exited.changed().await.is_err() {
                // The sender is a field of ours, so this is out of reach.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether it is on its way or there.
    pub fn runs(&self) -> bool {
        !matches!(
            *self.state(),
            TaskState::Created { .. } | TaskState::Stopped { .. }
        )
    }

    /// Waits for its end, but no longer than `time`. Returns whether it ended.
    pub async fn wait_at_most(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.wait()).await.is_ok()
    }

    /// Says that a signal to it will be answered, until the guard is dropped.
    pub async fn answering(&self) -> RwLockReadGuard<'_, ()> {
        self.answering.read().await
    }

    /// Waits until no signal to it is unanswered. containerd, once it has deleted a
    /// container whose end it was told, hears no answers about it any more and takes
    /// that for a failure.
    pub async fn answered(&self) {
        drop(self.answering.write().await);
    }

    /// Waits, for a while, until its output has reached containerd.
    pub async fn drain(&self) {
        let streams = self.streams().take();
        if let Some(streams) = streams {
            streams.drain().await;
        }
    }

    /// containerd's answer to State.
    pub fn state_response(&self) -> StateResponse {
        let state = self.state();
        let mut response = StateResponse {
            id: self.id().to_owned(),
            bundle: self.bundle.clone(),
            pid: state.pid(),
            status: EnumOrUnknown::new(state.status()),
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            exec_id: self.exec.clone(),
            ..Default::default()
        };
        if let Some(exit) = state.exit() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(timestamp(exit.at));
        }
        response
    }

    /// Tells containerd that the container was made whose first process this is.
    pub fn tell_created(&self, request: &CreateTaskRequest, pid: u32, publisher: &Publisher) {
        publisher.publish(&TaskCreate {
            container_id: self.container.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            }),
            pid,
            ..Default::default()
        });
    }

    /// Tells containerd that it runs.
    pub fn tell_started(&self, pid: u32, publisher: &Publisher) {
        if self.exec.is_empty() {
            publisher.publish(&TaskStart {
                container_id: self.container.clone(),
                pid,
                ..Default::default()
            });
        } else {
            publisher.publish(&TaskExecStarted {
                container_id: self.container.clone(),
                exec_id: self.exec.clone(),
                pid,
                ..Default::default()
            });
        }
    }

    /// Tells containerd that the container was removed whose first process this is, and gives the
    /// answer to Delete.
    pub fn tell_deleted(&self, publisher: &Publisher) -> DeleteResponse {
        let response = self.delete_response();
        publisher.publish(&TaskDelete {
            container_id: self.container.clone(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at.clone(),
            ..Default::default()
        });
        response
    }

    /// containerd's answer to Delete.
    pub fn delete_response(&self) -> DeleteResponse {
        let state = self.state();
        let exit = state.exit().unwrap_or_else(|| Exit::now(0));
        DeleteResponse {
            pid: state.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        }
    }
}

/// Takes a step of a process's state, and names the process if it is not possible.
///
/// # Errors
/// When it is not possible.
pub fn step<T>(
    process: &Process,
    step: impl FnOnce(&mut TaskState) -> std::result::Result<T, TransitionError>,
) -> Result<T> {
    step(&mut process.state())
        .map_err(|error| Error::State(format!("process {}: {error}", process.id())))
}

/// Reports the end of a container's first process, which containerd must hear of last:
/// `execs` are its others that run.
pub async fn finish_last(
    init: &Process,
    execs: Vec<Arc<Process>>,
    exit: Exit,
    publisher: &Publisher,
) {
    let deadline = Instant::now() + EXEC_PATIENCE;
    for exec in execs {
        let left = deadline.saturating_duration_since(Instant::now());
        if !exec.wait_at_most(left).await {
            exec.finish(Exit::now(KILLED), publisher);
        }
    }
    init.answered().await;
    init.finish(exit, publisher);
}

/// Tells containerd that a container has lost a process for want of memory, and lets
/// it take that in: it is the reason of the end that may follow, which containerd
/// hears of by another way.
pub async fn publish_oom(publisher: &Publisher, container: &str) {
    publisher.publish(&TaskOOM {
        container_id: container.to_owned(),
        ..Default::default()
    });
    let _ = timeout(OOM_PATIENCE, publisher.flush()).await;
}

/// containerd's answer to Wait.
pub fn wait_response(exit: Exit) -> WaitResponse {
    WaitResponse {
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_waits_for_the_answers_to_signals() {
        let process = Process::new(
            "c",
            "",
            "/bundle",
            &AtomicU64::new(1),
            Stdio::default(),
            TaskState::Creating { early: None },
        );
        process.answered().await;
        let signals = (process.answering().await, process.answering().await);
        let answered = process.answered();
        tokio::pin!(answered);
        // Looks once.
        let at_once = Duration::ZERO;
        assert!(timeout(at_once, &mut answered).await.is_err());
        drop(signals.0);
        assert!(timeout(at_once, &mut answered).await.is_err());
        drop(signals.1);
        answered.await;
    }
}
