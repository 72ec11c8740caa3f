//! Limits of containers that their VM is too small for, and those that mean something
//! only on the host.

use std::sync::PoisonError;

use oci_spec::runtime::{LinuxResources, Spec};

use super::Sandbox;
use crate::error::chain;
use crate::pod::{Size, cpus_of};

impl Sandbox {
    /// Says what a container will not get of its limits, since its VM cannot grow so far.
    pub(super) fn warn_of_limits(&self, id: &str, resources: &LinuxResources) {
        for problem in beyond(resources, self.growth.most()) {
            tracing::warn!(sandbox = self.id, container = id, "{problem}");
        }
    }

    /// Gives the VMM, and virtiofsd, the standing on the host that its containers would have there.
    /// Called when there is another container, one less, or another limit.
    pub(super) fn settle(&self) {
        let all: Vec<_> = self
            .containers()
            .values()
            .map(|container| container.standing().clone())
            .collect();
        let wanted = Standing::together(&all);
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(score) = wanted.oom_score
            && standing.oom_score != Some(score)
        {
            self.vm.set_oom_score(score);
            self.volumes.set_oom_score(score);
            standing.oom_score = Some(score);
        }
        if standing.cpus == wanted.cpus {
            return;
        }
        match self.vm.cgroup().set_cpus(&wanted.cpus) {
            Ok(()) => standing.cpus = wanted.cpus,
            Err(error) => tracing::warn!(
                sandbox = self.id,
                cpus = wanted.cpus,
                error = chain(&error),
                "cannot confine the VM to its containers' processors"
            ),
        }
    }
}

/// What means something only on the host, where the VMM stands for its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The host's processors that it may run on; empty: any.
    pub(super) cpus: String,
    /// How willingly the kernel kills it when the host is out of memory: the kubelet
    /// ranks pods by it.
    oom_score: Option<i32>,
}

impl Standing {
    /// As a container's spec has it.
    pub(super) fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let process = spec.process().as_ref();
        Self {
            cpus: cpus(linux.and_then(|linux| linux.resources().as_ref())),
            oom_score: process.and_then(|process| process.oom_score_adj()),
        }
    }

    /// A VM runs wherever any of its containers may, and is as dear as the dearest:
    /// that one dies with it.
    fn together(all: &[Self]) -> Self {
        let mut cpus: Vec<&str> = all.iter().map(|one| one.cpus.as_str()).collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self {
            // The kernel's list format takes overlaps, so there is nothing to be parsed.
            cpus: if cpus.contains(&"") {
                String::new()
            } else {
                cpus.join(",")
            },
            oom_score: all.iter().filter_map(|one| one.oom_score).min(),
        }
    }
}

/// The host's processors that a container is confined to; empty: any.
pub(super) fn cpus(resources: Option<&LinuxResources>) -> String {
    resources
        .and_then(|resources| resources.cpu().as_ref()?.cpus().clone())
        .unwrap_or_default()
}

/// What of the limits is more than the VM can have.
fn beyond(resources: &LinuxResources, size: Size) -> Vec<String> {
    let mut problems = Vec::new();
    let limit = resources.memory().and_then(|memory| memory.limit());
    let limit = limit.and_then(|limit| u64::try_from(limit).ok());
    if let Some(limit) = limit.filter(|limit| *limit > u64::from(size.memory_mib) << 20) {
        problems.push(format!(
            "the container may use {} MiB of memory, but its VM has {} MiB at most: that is what \
             the host has, or max_memory_mib",
            limit >> 20,
            size.memory_mib
        ));
    }
    let cpu = resources.cpu().as_ref();
    let wanted = cpu.and_then(|cpu| cpus_of(cpu.quota(), cpu.period()));
    if let Some(wanted) = wanted.filter(|wanted| *wanted > u64::from(size.vcpus)) {
        problems.push(format!(
            "the container may use {wanted} CPUs, but its VM has {} at most: that is what the \
             host has, or max_vcpus",
            size.vcpus
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(resources: serde_json::Value) -> String {
        let resources = serde_json::from_value(resources).unwrap();
        let size = Size {
            memory_mib: 256,
            vcpus: 2,
        };
        beyond(&resources, size).join("; ")
    }

    #[test]
    fn only_what_the_vm_is_too_small_for_is_named() {
        assert_eq!(problems(json!({})), "");
        assert_eq!(problems(json!({"memory": {"limit": 256 << 20}})), "");
        assert_eq!(problems(json!({"memory": {"limit": -1}})), "");
        let said = problems(json!({"memory": {"limit": 257 << 20}}));
        assert!(
            said.contains("257 MiB") && said.contains("256 MiB"),
            "{said}"
        );
        assert_eq!(problems(json!({"cpu": {"quota": 200_000}})), "");
        assert_eq!(problems(json!({"cpu": {"quota": -1, "period": 1000}})), "");
        let said = problems(json!({"cpu": {"quota": 300_000, "period": 100_000}}));
        assert!(said.contains("3 CPUs"), "{said}");
    }

    #[test]
    fn a_vm_stands_for_its_containers() {
        let one = |cpus: &str, oom_score| Standing {
            cpus: cpus.to_owned(),
            oom_score,
        };
        let together = Standing::together(&[
            one("2-3", Some(999)),
            one("0", Some(-997)),
            one("2-3", None),
        ]);
        assert_eq!(together, one("0,2-3", Some(-997)));
        assert_eq!(
            Standing::together(&[one("2-3", None), one("", None)]).cpus,
            ""
        );
        assert_eq!(Standing::together(&[]), Standing::default());
    }
}
