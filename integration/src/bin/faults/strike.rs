//! What is killed, and how.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use integration::cri::{ALL_MEMORY, Cri};
use integration::install::SHARED_KERNEL;
use integration::processes::{end, running};
use integration::records::vmms_of_pods;
use tokio::task::JoinHandle;
use tokio::time::sleep;

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
    /// A VM that waits for a pod, or is made or taken for one.
    Spare,
    /// The VM that the node's next template is made of.
    Template,
}

impl Target {
    /// Whether it is nobody's yet: what hits it must not be seen in a pod.
    pub fn is_nobodys(self) -> bool {
        matches!(self, Target::Spare | Target::Template)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Target::Shim => "shim",
            Target::Vmm => "VMM",
            Target::Guest => "guest",
            Target::Virtiofsd => "virtiofsd",
            Target::Containerd => "containerd",
            Target::Spare => "spare VMM",
            Target::Template => "template's VMM",
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

/// Beginnings of the cgroups of VMMs that are no pod's, or that were not a moment ago.
const SPARE: &str = "/joey-pool";
const TEMPLATE: &str = "/joey-template";

fn is_in(pid: i32, cgroup: &str) -> bool {
    let of = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    of.contains(cgroup)
}

impl Striker {
    /// Spares what runs now: other pods, and shims whose pods have ended and that make a
    /// template.
    pub fn new(handler: &str) -> Striker {
        let is_containerds = handler.starts_with("runc");
        let mut striker = Striker {
            others: HashSet::new(),
            has_other_name: handler == "joey-runc-shim",
            is_containerds,
        };
        for target in [Target::Shim, Target::Virtiofsd] {
            striker.others.extend(running(striker.program(target)));
        }
        // Not all VMMs: one that waits may become this round's.
        striker.others.extend(vmms_of_pods());
        striker
    }

    fn program(&self, target: Target) -> &'static str {
        match target {
            Target::Shim if self.is_containerds => "containerd-shim-runc-v2",
            Target::Shim if self.has_other_name => SHARED_KERNEL,
            Target::Shim => "containerd-shim-joey-v2",
            Target::Vmm | Target::Guest | Target::Spare | Target::Template => "joey-vmm",
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
        let mut running = running(self.program(target)).into_iter();
        match target {
            Target::Spare => {
                let spare: Vec<_> = running.filter(|pid| is_in(*pid, SPARE)).collect();
                // Last: one that was just taken is in that cgroup for a while.
                let of_pods: HashSet<_> = vmms_of_pods().collect();
                spare.into_iter().find(|pid| !of_pods.contains(pid))
            }
            Target::Template => running.find(|pid| is_in(*pid, TEMPLATE)),
            Target::Vmm | Target::Guest => vmms_of_pods().find(|pid| !self.others.contains(pid)),
            _ => running.find(|pid| !self.others.contains(pid)),
        }
    }
}
