//! Limits of containers beside what their VM has, and beside the host's processors.

use oci_spec::runtime::LinuxResources;

use super::Sandbox;
use crate::error::chain;
use crate::pod::Size;

/// The kernel's default, for a quota without one.
const DEFAULT_PERIOD: u64 = 100_000;

impl Sandbox {
    /// Says what a container will not get of its limits: a VM does not grow, and how
    /// large it is was decided before its containers were known.
    pub(super) fn warn_of_limits(&self, id: &str, resources: &LinuxResources) {
        for problem in beyond(resources, self.vm.size()) {
            tracing::warn!(sandbox = self.id, container = id, "{problem}");
        }
    }

    /// Confines the VM to the processors that its containers are confined to. The
    /// numbers are the host's, so this is the only place where they mean anything; a
    /// container that may run anywhere lets the others too. Called when a container's
    /// list has changed.
    pub(super) fn confine(&self) {
        let list = {
            let containers = self.containers();
            let lists: Vec<_> = containers
                .values()
                .map(|container| container.cpus().clone())
                .collect();
            union(&lists)
        };
        let mut confined = self
            .confined
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *confined == list {
            return;
        }
        match self.vm.cgroup().set_cpus(&list) {
            Ok(()) => *confined = list,
            Err(error) => tracing::warn!(
                sandbox = self.id,
                cpus = list,
                error = chain(&error),
                "cannot confine the VM to its containers' processors"
            ),
        }
    }
}

/// The host's processors that a container is confined to; empty: any.
pub(super) fn cpus(resources: Option<&LinuxResources>) -> String {
    resources
        .and_then(|resources| resources.cpu().as_ref()?.cpus().clone())
        .unwrap_or_default()
}

/// The kernel's list format takes overlaps, so there is nothing to be parsed.
fn union(lists: &[String]) -> String {
    if lists.iter().any(String::is_empty) {
        return String::new();
    }
    let mut lists = lists.to_vec();
    lists.sort();
    lists.dedup();
    lists.join(",")
}

/// What of the limits the VM is too small for.
fn beyond(resources: &LinuxResources, size: Size) -> Vec<String> {
    let mut problems = Vec::new();
    let limit = resources.memory().and_then(|memory| memory.limit());
    let limit = limit.and_then(|limit| u64::try_from(limit).ok());
    if let Some(limit) = limit.filter(|limit| *limit > u64::from(size.memory_mib) << 20) {
        problems.push(format!(
            "the container may use {} MiB of memory, but its VM has {} MiB: give the pod's \
             sandbox its limits, or raise memory_mib",
            limit >> 20,
            size.memory_mib
        ));
    }
    let cpu = resources.cpu().as_ref();
    let quota = cpu.and_then(|cpu| u64::try_from(cpu.quota()?).ok());
    let period = cpu
        .and_then(|cpu| cpu.period())
        .filter(|period| *period > 0);
    let wanted = quota.map_or(0, |quota| quota.div_ceil(period.unwrap_or(DEFAULT_PERIOD)));
    if wanted > u64::from(size.vcpus) {
        problems.push(format!(
            "the container may use {wanted} CPUs, but its VM has {}: give the pod's sandbox its \
             limits, or raise vcpus",
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
    fn a_vm_runs_where_any_of_its_containers_may() {
        let union =
            |lists: &[&str]| union(&lists.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(union(&["2-3", "0", "2-3"]), "0,2-3");
        assert_eq!(union(&["2-3", ""]), "");
        assert_eq!(union(&[]), "");
    }
}
