//! Limits of processor time.

use oci_spec::runtime::LinuxCpu;

use super::Setting;

/// The settings for `resources.cpu` except the processors themselves (see `cpuset`).
pub(super) fn settings(cpu: &LinuxCpu) -> Vec<Setting> {
    let new = |field, file, value: String| Setting::new(field, "cpu", file, value);
    let mut settings = Vec::new();
    if let Some(idle) = cpu.idle() {
        settings.push(new("resources.cpu.idle", "cpu.idle", idle.to_string()));
    }
    // An idle group has no shares: the kernel refuses them.
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0)
        && cpu.idle() != Some(1)
    {
        settings.push(new(
            "resources.cpu.shares",
            "cpu.shares",
            shares.to_string(),
        ));
    }
    // The kernel judges period, burst and quota together, and each pair of the real-time ones too:
    // what does not fit the old values waits for the last of them.
    if let Some(period) = cpu.period().filter(|&period| period != 0) {
        let period = new(
            "resources.cpu.period",
            "cpu.cfs_period_us",
            period.to_string(),
        );
        settings.push(period.may_wait());
    }
    if let Some(burst) = cpu.burst() {
        let burst = new("resources.cpu.burst", "cpu.cfs_burst_us", burst.to_string());
        settings.push(burst.may_wait().optional());
    }
    if let Some(quota) = cpu.quota().filter(|&quota| quota != 0) {
        let quota = quota.max(-1).to_string();
        settings.push(new("resources.cpu.quota", "cpu.cfs_quota_us", quota));
    }
    if let Some(period) = cpu.realtime_period().filter(|&period| period != 0) {
        let field = "resources.cpu.realtimePeriod";
        settings.push(new(field, "cpu.rt_period_us", period.to_string()).may_wait());
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|&runtime| runtime != 0) {
        let field = "resources.cpu.realtimeRuntime";
        settings.push(new(field, "cpu.rt_runtime_us", runtime.to_string()));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::LinuxCpuBuilder;

    #[test]
    fn every_value_has_its_file() {
        let cpu = LinuxCpuBuilder::default()
            .shares(512u64)
            .quota(-1)
            .period(50_000u64)
            .burst(1000u64)
            .realtime_period(1_000_000u64)
            .realtime_runtime(950_000)
            .idle(0)
            .build()
            .unwrap();
        let settings = settings(&cpu);
        assert_eq!(
            lines(&settings),
            [
                ("cpu.idle", "0"),
                ("cpu.shares", "512"),
                ("cpu.cfs_period_us", "50000"),
                ("cpu.cfs_burst_us", "1000"),
                ("cpu.cfs_quota_us", "-1"),
                ("cpu.rt_period_us", "1000000"),
                ("cpu.rt_runtime_us", "950000"),
            ]
        );
        let waits: Vec<_> = settings.iter().filter(|one| one.may_wait).collect();
        assert_eq!(waits.len(), 3);
    }
}
