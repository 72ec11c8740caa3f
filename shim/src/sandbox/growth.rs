//! How large the VM is while it runs. All VMs boot alike, and small: memory and processors
//! come when the pod's limits, or those of its containers, ask for them, and memory goes
//! when they are lowered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use protocol::guest::OnlineCpusRequest;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Sandbox;
use crate::config::Config;
use crate::error::Error;
use crate::guest;
use crate::pod::{Size, millicpus_of};

/// How long a container's start waits for memory. A guest plugs some GiB in a second.
const GROWTH_TIME: Duration = Duration::from_secs(10);

/// What a container may use; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    memory_bytes: Option<u64>,
    millicpus: Option<u64>,
}

impl Share {
    /// With these limits. What they do not name stays: an update says only what it changes.
    pub(super) fn with(self, resources: &LinuxResources) -> Self {
        let limit = resources.memory().and_then(|memory| memory.limit());
        let cpu = resources.cpu().as_ref();
        let quota = cpu.and_then(|cpu| cpu.quota());
        Self {
            memory_bytes: match limit {
                None | Some(0) => self.memory_bytes,
                limit => limit.and_then(|limit| u64::try_from(limit).ok()),
            },
            millicpus: match quota {
                None | Some(0) => self.millicpus,
                quota => millicpus_of(quota, cpu.and_then(|cpu| cpu.period())),
            },
        }
    }
}

/// How large the VM shall be, and is.
pub(super) struct Growth {
    /// What it boots with.
    base: Size,
    /// What it may have.
    most: Size,
    /// What the pod asks for, apart from its containers.
    pod: Mutex<Size>,
    wanted: watch::Sender<Size>,
    /// MiB that the guest has beyond what it booted with.
    reached_mib: watch::Sender<u32>,
}

impl Growth {
    /// Of a VM that has just booted, for a pod of this size.
    pub(super) fn new(config: &Config, pod: Size) -> Self {
        let most_mib = config.memory_mib + config.hotplug_mib();
        Self {
            base: Size {
                memory_mib: config.memory_mib,
                vcpus: 1,
            },
            most: Size {
                memory_mib: config.guest_memory_mib().min(most_mib),
                vcpus: config.guest_vcpus(),
            },
            pod: Mutex::new(pod),
            wanted: watch::Sender::new(pod),
            reached_mib: watch::Sender::new(0),
        }
    }

    /// What the VM may have at most.
    pub(super) fn most(&self) -> Size {
        self.most
    }

    /// The guest has this much beyond what it booted with.
    pub(super) fn reached(&self, mib: u32) {
        self.reached_mib.send_replace(mib);
    }

    /// A container may use less memory than before: so may its pod, whose limit is the
    /// sum of its containers'.
    pub(super) fn lowered(&self, before: Share, now: Share) {
        let (Some(before), Some(now)) = (before.memory_bytes, now.memory_bytes) else {
            return;
        };
        let less = u32::try_from(before.saturating_sub(now) >> 20).unwrap_or(u32::MAX);
        let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        let memory_mib = pod.memory_mib.saturating_sub(less);
        pod.memory_mib = memory_mib.max(self.base.memory_mib);
    }

    /// What could not be done while the VM hibernated is tried again.
    pub(super) fn again(&self) {
        self.wanted.send_modify(|_| {});
    }

    /// The whole pod has other limits.
    pub(super) fn update(&self, resources: &LinuxResources, config: &Config) {
        let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        *pod = pod.updated(resources, config);
    }

    fn want(&self, shares: &[Share]) {
        let pod = *self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = size(pod, shares, self.base, self.most);
        self.wanted
            .send_if_modified(|size| std::mem::replace(size, wanted) != wanted);
    }

    /// MiB beyond what the VM boots with, in what the VMM plugs at least.
    fn beyond_mib(&self, size: Size) -> u32 {
        let mib = size.memory_mib.saturating_sub(self.base.memory_mib);
        mib.next_multiple_of(2)
    }
}

/// As large as the pod, and as its containers together, on top of what a VM boots with.
fn size(pod: Size, shares: &[Share], base: Size, most: Size) -> Size {
    let bytes = shares.iter().filter_map(|share| share.memory_bytes);
    let mib = bytes.fold(0u64, u64::saturating_add).div_ceil(1 << 20);
    let memory_mib = mib.saturating_add(base.memory_mib.into());
    let millicpus = shares.iter().filter_map(|share| share.millicpus);
    let cpus = millicpus.fold(0u64, u64::saturating_add).div_ceil(1000);
    // Neither is more than what the VM may have, so both fit.
    Size {
        memory_mib: memory_mib
            .max(pod.memory_mib.into())
            .min(most.memory_mib.into()) as u32,
        vcpus: cpus.max(pod.vcpus.into()).min(most.vcpus.into()) as u8,
    }
}

impl Sandbox {
    /// How large its VM is, or becomes.
    pub fn size(&self) -> Size {
        *self.growth.wanted.borrow()
    }

    /// Has the VM grow or shrink to what its containers may use by now. Nobody waits.
    pub(super) fn grow(&self) {
        let containers: Vec<_> = self.containers().values().cloned().collect();
        let shares: Vec<_> = containers.iter().map(|one| *one.share()).collect();
        self.growth.want(&shares);
    }

    /// Waits until the guest has the memory that it shall have, for a while.
    pub(super) async fn grown(&self) {
        let wanted = self.size();
        let mib = self.growth.beyond_mib(wanted);
        let mut reached = self.growth.reached_mib.subscribe();
        let grown = reached.wait_for(|reached| *reached >= mib);
        tokio::select! {
            grown = timeout(GROWTH_TIME, grown) => if grown.is_err() {
                tracing::warn!(
                    sandbox = self.id,
                    memory_mib = wanted.memory_mib,
                    "the guest has not taken all of its memory yet: the container starts \
                     nevertheless"
                );
            },
            () = self.wait_ended() => {}
        }
    }
}

/// Makes the VM as large as it shall be, until it ends.
pub(super) async fn keep(sandbox: Arc<Sandbox>) {
    let mut wanted = sandbox.growth.wanted.subscribe();
    let mut asked = sandbox.growth.base;
    loop {
        let size = *wanted.borrow_and_update();
        if let Err(error) = resize(&sandbox, &mut asked, size).await
            && sandbox.running()
        {
            tracing::warn!(
                sandbox = sandbox.id,
                memory_mib = size.memory_mib,
                vcpus = size.vcpus,
                %error,
                "the VM goes on with the size that it has"
            );
        }
        tokio::select! {
            // The sender is the sandbox's.
            _ = wanted.changed() => {}
            () = sandbox.wait_ended() => return,
        }
    }
}

async fn resize(sandbox: &Arc<Sandbox>, asked: &mut Size, size: Size) -> Result<(), Error> {
    if size.memory_mib != asked.memory_mib {
        if size.memory_mib > asked.memory_mib {
            sandbox.vm.limit_memory(size.memory_mib)?;
        }
        let mib = sandbox.growth.beyond_mib(size);
        sandbox.vm.resize_memory(mib).await?;
        asked.memory_mib = size.memory_mib;
    }
    // A processor that is there stays: the quotas of the containers hold.
    if size.vcpus > asked.vcpus {
        for cpu in asked.vcpus..size.vcpus {
            sandbox.vm.online_cpu(cpu).await?;
        }
        let request = OnlineCpusRequest {
            cpus: size.vcpus.into(),
            ..Default::default()
        };
        sandbox
            .guest
            .guest
            .online_cpus(guest::bounded(), &request)
            .await?;
        asked.vcpus = size.vcpus;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BASE: Size = Size {
        memory_mib: 256,
        vcpus: 1,
    };
    const MOST: Size = Size {
        memory_mib: 4096,
        vcpus: 4,
    };

    fn share(resources: serde_json::Value) -> Share {
        Share::default().with(&serde_json::from_value(resources).unwrap())
    }

    fn limits(mib: i64, quota: i64) -> serde_json::Value {
        json!({"memory": {"limit": mib << 20}, "cpu": {"quota": quota, "period": 100_000}})
    }

    fn size_of(pod: Size, shares: &[Share]) -> (u32, u8) {
        let size = size(pod, shares, BASE, MOST);
        (size.memory_mib, size.vcpus)
    }

    #[test]
    fn a_vm_is_as_large_as_its_pod_or_its_containers() {
        let pod = Size {
            memory_mib: 768,
            vcpus: 2,
        };
        assert_eq!(size_of(BASE, &[]), (256, 1));
        assert_eq!(size_of(pod, &[share(limits(100, 50_000))]), (768, 2));
        let both = [share(limits(400, 150_000)), share(limits(401, 110_000))];
        assert_eq!(size_of(pod, &both), (256 + 801, 3));
        let without = share(json!({}));
        assert_eq!(size_of(BASE, &[both[0], without]), (656, 2));
        let huge = share(limits(i64::MAX >> 20, i64::MAX));
        assert_eq!(size_of(pod, &[huge, huge, huge]), (4096, 4));
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let before = share(limits(100, 50_000));
        let with = |resources| before.with(&serde_json::from_value(resources).unwrap());
        assert_eq!(with(json!({})), before);
        assert_eq!(
            with(json!({"memory": {"limit": 0}, "cpu": {"quota": 0}})),
            before
        );
        let more = with(json!({"memory": {"limit": 200 << 20}}));
        assert_eq!(more.memory_bytes, Some(200 << 20));
        assert_eq!(more.millicpus, Some(500));
        let none = with(json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}));
        assert_eq!(none, Share::default());
    }

    #[test]
    fn a_pod_shrinks_with_its_containers_limits() {
        let config = Config {
            max_memory_mib: 4096,
            max_vcpus: 4,
            ..Config::default()
        };
        let pod = Size {
            memory_mib: 256 + 1000,
            vcpus: 2,
        };
        let growth = Growth::new(&config, pod);
        let (before, now) = (share(limits(600, 0)), share(limits(100, 0)));
        let other = share(limits(400, 0));
        growth.want(&[before, other]);
        assert_eq!(*growth.wanted.borrow(), pod);
        growth.lowered(before, now);
        growth.want(&[now, other]);
        assert_eq!(growth.wanted.borrow().memory_mib, 256 + 500);
        // Never below what it boots with.
        growth.lowered(share(limits(2000, 0)), now);
        growth.want(&[]);
        assert_eq!(growth.wanted.borrow().memory_mib, 256);
        assert_eq!(growth.beyond_mib(pod), 1000);
        assert_eq!(growth.beyond_mib(BASE), 0);
    }
}
