//! What is killed, and how.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use integration::cri::{ALL_MEMORY, Cri};
use integration::install::SHARED_KERNEL;
use integration::processes::running;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::host::end;

/// What a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The pod's shim, or the process that starts it.
    Shim,
    /// The pod's VMM.
    Vmm,
    /// The pod's guest with its agent: its kernel panics.
    Guest,
    /// The file server of the pod's volumes.
    Virtiofsd,
    /// containerd itself.
    Containerd,
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Target::Shim => "shim",
            Target::Vmm => "VMM",
            Target::Guest => "guest",
            Target::Virtiofsd => "virtiofsd",
            Target::Containerd => "containerd",
        })
    }
}

/// Makes the kernel panic at the next lack of memory. Needs a privileged container, as
/// an attacker in a pod would.
const PANIC_ON_OOM: &str = "echo 2 >/proc/sys/vm/panic_on_oom";

/// Between two looks for a process that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A hit, or one that is on its way.
pub struct Blow(Option<JoinHandle<()>>);

/// A way to hit the pod of this round and nobody else's.
pub struct Striker {
    /// Processes that were there before the round.
    others: HashSet<i32>,
    /// Whether it is the runtime type by which the shim has another name.
    has_other_name: bool,
    /// Whether containerd's own shim runs its pods.
    is_containerds: bool,
}

/// Whether a VMM waits for a pod, or makes a template.
fn is_spare(pid: i32) -> bool {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    cgroup.contains("/joey-pool") || cgroup.contains("/joey-template")
}

impl Striker {
    /// Spares what runs now.
    pub fn new(handler: &str) -> Striker {
        let is_containerds = handler.starts_with("runc");
        let mut striker = Striker {
            others: HashSet::new(),
            has_other_name: handler == "joey-runc-shim",
            is_containerds,
        };
        for target in [Target::Shim, Target::Vmm, Target::Virtiofsd] {
            striker.others.extend(running(striker.program(target)));
        }
        striker
    }

    fn program(&self, target: Target) -> &'static str {
        match target {
            Target::Shim if self.is_containerds => "containerd-shim-runc-v2",
            Target::Shim if self.has_other_name => SHARED_KERNEL,
            Target::Shim => "containerd-shim-joey-v2",
            Target::Vmm | Target::Guest => "joey-vmm",
            Target::Virtiofsd => "virtiofsd",
            Target::Containerd => "containerd",
        }
    }

    /// Hits the target after `delay`; where there is none yet, as soon as it is
    /// there. Never returns when there is none.
    pub async fn strike(&self, target: Target, delay: Duration, container: &str) -> Blow {
        sleep(delay).await;
        if target == Target::Guest {
            let container = container.to_owned();
            // On its own: what happens now need not wait for it.
            let script = format!("{PANIC_ON_OOM}; {ALL_MEMORY}");
            let panic = async move { drop(Cri::connect().exec(&container, &script).await) };
            return Blow(Some(tokio::spawn(panic)));
        }
        while !self.find(target).is_some_and(end) {
            sleep(LOOK_AGAIN).await;
        }
        Blow(None)
    }

    /// Whether a blow has hit, once that can be said. A guest that is to panic may lose
    /// the container in which it should, and lives.
    pub async fn has_hit(&self, blow: Blow) -> anyhow::Result<bool> {
        let Some(panic) = blow.0 else {
            return Ok(true);
        };
        panic.await?;
        Ok(self.find(Target::Guest).is_none())
    }

    fn find(&self, target: Target) -> Option<i32> {
        let found = running(self.program(target));
        // VMs that wait for a pod are struck too, but none of them is the guest that is
        // to panic.
        found
            .into_iter()
            .find(|pid| !self.others.contains(pid) && (target != Target::Guest || !is_spare(*pid)))
    }
}
