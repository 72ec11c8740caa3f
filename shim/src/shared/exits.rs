//! What is told of processes that have ended, and of memory that was lacking.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::{Container, Member, SharedPod};
use crate::process::{finish_last, publish_oom};
use crate::task_state::Exit;

impl SharedPod {
    /// Collects what has ended and reports it. For every SIGCHLD.
    pub(super) fn reap(&self) {
        for (member, exit) in self.reaper.reap() {
            self.ended(&member, exit);
        }
    }

    /// Reports the end of a process.
    pub(super) fn ended(&self, member: &Member, exit: guest_agent::process::Exit) {
        let exit = Exit {
            status: exit.status,
            at: UNIX_EPOCH + Duration::from_nanos(exit.at_ns),
        };
        let process = member.process.clone();
        if self.sandbox_ended(&process, exit) {
            return;
        }
        if let Some(streams) = process.streams().as_mut() {
            streams.end();
        }
        let container = self.container(&process.container).ok();
        if !process.exec.is_empty() {
            if self.oom.check(&process.container) {
                let (publisher, id) = (self.publisher.clone(), process.container.clone());
                tokio::spawn(async move { publish_oom(&publisher, &id).await });
            }
            return process.finish(exit, &self.publisher);
        }
        if let Some(container) = &container {
            end_siblings(container);
        }
        let execs = container
            .map(|container| container.running())
            .unwrap_or_default();
        let starved = self.oom.check(&process.container);
        let publisher = self.publisher.clone();
        tokio::spawn(async move {
            if starved {
                publish_oom(&publisher, &process.container).await;
            }
            finish_last(&process, execs, exit, &publisher).await;
        });
    }
}

/// In a pid namespace of its own the kernel ends a container's processes with the first one;
/// without one that is ours to do.
fn end_siblings(container: &Container) {
    if container.private_pids {
        return;
    }
    let killed = container.with(|engine| {
        engine
            .kill_all(libc::SIGKILL)
            .map_err(crate::error::Error::failed)
    });
    if let Err(error) = killed {
        tracing::warn!(container = container.id(), %error, "cannot kill what is left of it");
    }
}

/// Reports containers that lose processes to lack of memory, for ever.
pub(super) async fn watch_memory(pod: Arc<SharedPod>) {
    loop {
        match pod.oom.next().await {
            Ok(containers) => {
                for id in containers {
                    publish_oom(&pod.publisher, &id).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot watch for lack of memory any more");
                return;
            }
        }
    }
}

impl Container {
    fn running(&self) -> Vec<Arc<crate::process::Process>> {
        self.execs()
            .values()
            .map(|exec| exec.process.clone())
            .filter(|process| process.runs())
            .collect()
    }
}
