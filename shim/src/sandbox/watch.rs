//! Listening to the VMM and to the agent.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::guest::{self as messages, NextEventRequest, event};
use protocol::ids;
use tokio::time::timeout;

use super::Sandbox;
use crate::guest;
use crate::process::{finish_last, publish_oom};
use crate::task_state::Exit;
use crate::vm::Events;

/// How long the VMM may take to say why its guest, and with it the agent, is gone.
const CAUSE_TIME: Duration = Duration::from_millis(300);

/// A guest that reports a container's out-of-memory kills faster is not heard: containerd
/// writes each to its disk, and only the first changes anything.
const OOM_INTERVAL: Duration = Duration::from_secs(10);

/// What is lost when the agent does not answer.
const AGENT: &str = "the guest's agent";

/// Latest clock that an exit is believed to have, in seconds after ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Until the VM is gone; then ends the sandbox.
pub(super) async fn vm(sandbox: Arc<Sandbox>, mut events: Events) {
    while let Some(event) = events.recv().await {
        match event {
            // Of no consequence, and a guest may say it all day.
            vmm::Event::Ready => tracing::debug!("the guest's agent reported ready again"),
            vmm::Event::FsLost { reason } => {
                lost(&sandbox, "the VM's connection to virtiofsd", &reason).await;
            }
            vmm::Event::MemoryResized { mib } => sandbox.growth.reached(mib),
            vmm::Event::Stopped { reason } => {
                died(&sandbox, &reason).await;
                break;
            }
        }
    }
    // Said last, so that it counts only if the VMM did not even say that much.
    died(&sandbox, "the VMM has died").await;
    sandbox.end().await;
}

/// Until the sandbox's virtiofsd is gone, if it ever has one. Containers that use it
/// see only errors then, and what they had written may be lost, so the pod ends as if
/// its VM had died.
pub(super) async fn volumes(sandbox: Arc<Sandbox>) {
    tokio::select! {
        reason = sandbox.volumes.lost() => lost(&sandbox, "virtiofsd", &reason).await,
        () = sandbox.wait_ended() => {}
    }
}

/// The guest has ended; unless it was told to, that is kept and logged, once.
async fn died(sandbox: &Sandbox, reason: &str) {
    if sandbox.stopping() || sandbox.vm.is_buried() {
        return;
    }
    // If the pod is out of memory, there is none for so much as a thread of ours: first.
    sandbox.vm.return_shim();
    let reason = sandbox.vm.bury(reason).await;
    tracing::error!(reason, "the sandbox has died");
}

/// Asks the agent for one event after the other.
pub(super) async fn agent(sandbox: Arc<Sandbox>) {
    let mut last = 0u64;
    let mut ooms: HashMap<String, Instant> = HashMap::new();
    while sandbox.running() {
        let request = NextEventRequest {
            after: last,
            ..Default::default()
        };
        let next = sandbox.guest.guest.next_event(guest::unbounded(), &request);
        let event = tokio::select! {
            event = next => event,
            () = sandbox.wait_ended() => return,
        };
        let event = match event {
            Ok(event) if event.sequence == last + 1 => event,
            Ok(event) => {
                let reason = format!("event {} follows {last}", event.sequence);
                lost(&sandbox, AGENT, &reason).await;
                return;
            }
            Err(error) => {
                lost(&sandbox, AGENT, &error.to_string()).await;
                return;
            }
        };
        last = event.sequence;
        match event.kind {
            Some(event::Kind::Exit(exit)) => exited(&sandbox, &exit),
            Some(event::Kind::Oom(oom)) => {
                let recent = ooms
                    .get(&oom.container_id)
                    .is_some_and(|last| last.elapsed() < OOM_INTERVAL);
                // Known containers only: that bounds the map too.
                if !recent && sandbox.container(&oom.container_id).is_ok() {
                    ooms.insert(oom.container_id.clone(), Instant::now());
                    publish_oom(&sandbox.publisher, &oom.container_id).await;
                }
            }
            // The agent is of our own build, so this is not its work.
            _ => {
                lost(&sandbox, AGENT, "it reports something unknown").await;
                return;
            }
        }
    }
}

/// Without its agent a guest is of no use, and may be hostile; without its virtiofsd
/// it has lost its volumes.
async fn lost(sandbox: &Sandbox, what: &str, reason: &str) {
    // If the VMM ended, or says so in a moment, this is the consequence.
    if timeout(CAUSE_TIME, sandbox.wait_ended()).await.is_ok() || sandbox.stopping() {
        return;
    }
    died(sandbox, &format!("{what} is gone: {reason}")).await;
    sandbox.vm.kill();
}

fn exited(sandbox: &Arc<Sandbox>, report: &messages::Exit) {
    let exit = Exit {
        status: report.status,
        at: exit_time(report.exited_at_ns),
    };
    let Ok(container) = sandbox.container(&report.container_id) else {
        tracing::debug!(
            container = report.container_id,
            "exit of an unknown container"
        );
        return;
    };
    let Ok(process) = container.process(&report.exec_id) else {
        tracing::debug!(exec = report.exec_id, "exit of an unknown exec");
        return;
    };
    if !process.exec.is_empty() {
        process.finish(exit, &sandbox.publisher);
        return;
    }
    // The guest may say it again; once is enough.
    if container.ending.swap(true, Ordering::AcqRel) {
        return;
    }
    give_back(&container, &report.files);
    // The container's end is the last that containerd hears of it.
    let publisher = sandbox.publisher.clone();
    tokio::spawn(async move {
        finish_last(&process, container.running_execs(), exit, &publisher).await;
    });
}

/// Writes what a container left in its copies of files of the host, before its end is
/// reported: whoever hears of it reads them.
fn give_back(container: &super::Container, files: &[messages::GivenBack]) {
    let mut ours = container
        .given_back
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for file in files {
        // Once each, and only those that were asked for.
        let Some(mut host) = ours.remove(&file.index) else {
            continue;
        };
        let data = &file.data[..file.data.len().min(ids::MAX_GIVEN_BACK)];
        if let Err(error) = host.set_len(0).and_then(|()| host.write_all(data)) {
            tracing::warn!(
                container = container.init.container,
                %error,
                "cannot write what the container left in a file of the host"
            );
        }
    }
}

/// The guest's clock, where it can be true.
fn exit_time(ns: u64) -> SystemTime {
    let now = SystemTime::now();
    UNIX_EPOCH
        .checked_add(Duration::from_nanos(ns))
        .filter(|at| ns > 0 && *at <= now + CLOCK_SKEW)
        .unwrap_or(now)
}

impl super::Container {
    fn running_execs(&self) -> Vec<Arc<crate::process::Process>> {
        self.execs()
            .values()
            .filter(|exec| exec.runs())
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_clock_is_believed_within_reason() {
        let second = 1_000_000_000;
        assert_eq!(exit_time(5 * second), UNIX_EPOCH + Duration::from_secs(5));
        let now = SystemTime::now();
        for wrong in [0, u64::MAX] {
            let at = exit_time(wrong);
            assert!(at >= now && at <= now + CLOCK_SKEW);
        }
    }
}
