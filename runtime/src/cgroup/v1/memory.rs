//! Limits of memory and swap.

use oci_spec::runtime::LinuxMemory;

use super::{CgroupError, Setting};
use crate::cgroup::setting::check_usage;

/// The settings for `resources.memory`. A limit of the kernel's own memory has no effect since
/// Linux 5.16 and is left out, as other engines do; all cgroups are hierarchical since 5.11.
pub(super) fn settings(memory: &LinuxMemory) -> Result<Vec<Setting>, CgroupError> {
    let new = |field: &str, file: &str, value: String| {
        Setting::new(&format!("resources.memory.{field}"), "memory", file, value)
    };
    let number = |value: i64| value.max(-1).to_string();
    let given = |value: Option<i64>| value.filter(|&value| value != 0);
    let mut settings = Vec::new();
    let (limit, both) = (given(memory.limit()), given(memory.swap()));
    if let (Some(both @ 0..), Some(limit)) = (both, limit)
        && (both < limit || limit < 0)
    {
        return Err(CgroupError::Invalid {
            field: "resources.memory.swap",
            problem: format!(
                "{both} counts memory and swap together and must not be below the limit of \
                 memory, {limit}"
            ),
        });
    }
    if let Some(limit) = limit {
        // Memory may not be above memory and swap at any moment: the one that is raised waits for
        // the other.
        let limit = new("limit", "memory.limit_in_bytes", number(limit));
        settings.push(limit.may_wait());
    }
    // Memory without a limit needs swap without one.
    if let Some(both) = both.or(limit.filter(|&limit| limit < 0)) {
        settings.push(new("swap", "memory.memsw.limit_in_bytes", number(both)));
    }
    if let Some(reservation) = given(memory.reservation()) {
        let file = "memory.soft_limit_in_bytes";
        settings.push(new("reservation", file, number(reservation)));
    }
    if let Some(tcp) = given(memory.kernel_tcp()) {
        let file = "memory.kmem.tcp.limit_in_bytes";
        settings.push(new("kernelTCP", file, number(tcp)).optional());
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(CgroupError::Invalid {
                field: "resources.memory.swappiness",
                problem: format!("{swappiness} is not one of 0 to 100"),
            });
        }
        let file = "memory.swappiness";
        settings.push(new("swappiness", file, swappiness.to_string()));
    }
    if memory.disable_oom_killer() == Some(true) {
        let file = "memory.oom_control";
        settings.push(new("disableOOMKiller", file, "1".to_owned()));
    }
    check_usage(&mut settings, memory, "memory.usage_in_bytes");
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::LinuxMemoryBuilder;

    fn memory() -> LinuxMemoryBuilder {
        LinuxMemoryBuilder::default()
    }

    #[test]
    fn every_value_has_its_file() {
        let memory = memory()
            .limit(100)
            .swap(150)
            .reservation(50)
            .kernel_tcp(10)
            .swappiness(60u64)
            .disable_oom_killer(true)
            .build()
            .unwrap();
        let settings = settings(&memory).unwrap();
        assert_eq!(
            lines(&settings),
            [
                ("memory.limit_in_bytes", "100"),
                ("memory.memsw.limit_in_bytes", "150"),
                ("memory.soft_limit_in_bytes", "50"),
                ("memory.kmem.tcp.limit_in_bytes", "10"),
                ("memory.swappiness", "60"),
                ("memory.oom_control", "1"),
            ]
        );
        assert!(settings[0].may_wait);
    }

    #[test]
    fn memory_without_limit_has_swap_without_limit() {
        let memory = memory().limit(-1).build().unwrap();
        assert_eq!(
            lines(&settings(&memory).unwrap()),
            [
                ("memory.limit_in_bytes", "-1"),
                ("memory.memsw.limit_in_bytes", "-1")
            ]
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for memory in [
            memory().limit(100).swap(99),
            memory().limit(-1).swap(99),
            memory().swappiness(101u64),
        ] {
            assert!(settings(&memory.build().unwrap()).is_err());
        }
    }
}
