//! Limits of processor time.

use oci_spec::runtime::LinuxCpu;

use super::{Setting, number};

/// The kernel's default length of a period, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// The settings for `resources.cpu` except the processors themselves (see `cpuset`). Real-time
/// budgets exist in version 1 only and are left out, as other engines do.
pub(super) fn settings(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    let new = |field, file, value: String| Setting::new(field, "cpu", file, value);
    if let Some(idle) = cpu.idle() {
        settings.push(new("resources.cpu.idle", "cpu.idle", idle.to_string()));
    }
    // An idle group has no weight: the kernel refuses one.
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0)
        && cpu.idle() != Some(1)
    {
        let weight = weight(shares).to_string();
        settings.push(new("resources.cpu.shares", "cpu.weight", weight));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    let burst = |burst: u64| new("resources.cpu.burst", "cpu.max.burst", burst.to_string());
    // The burst may not be above the quota at any moment: take it away first, set it last.
    if quota.is_some() && cpu.burst().is_some() {
        settings.push(burst(0));
    }
    match (quota, period) {
        (Some(quota), period) => {
            let period = period.unwrap_or(DEFAULT_PERIOD);
            let line = format!("{} {period}", number(quota));
            settings.push(new("resources.cpu.quota", "cpu.max", line));
        }
        (None, Some(period)) => {
            let mut setting = new("resources.cpu.period", "cpu.max", period.to_string());
            setting.after_first = true;
            settings.push(setting);
        }
        (None, None) => {}
    }
    settings.extend(cpu.burst().map(burst));
    settings
}

/// Shares (2 to 262144, default 1024) as a weight (1 to 10000, default 100). The curve goes through
/// the three points that matter, the two ends and the two defaults; a straight line would turn the
/// default share into a weight of 39 and starve containers beside the host's own services.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxCpuBuilder;

    #[test]
    fn defaults_and_ends_of_shares_map_to_those_of_weights() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(262_144), 10_000);
        assert!(weight(512) < weight(1024) && weight(1024) < weight(2048));
    }

    #[test]
    fn quota_without_period_uses_the_default_period() {
        let cpu = LinuxCpuBuilder::default().quota(50_000).build().unwrap();
        let settings = settings(&cpu);
        assert_eq!(settings.len(), 1);
        assert_eq!(settings[0].value, "50000 100000");
    }

    #[test]
    fn a_negative_quota_is_no_limit() {
        let cpu = LinuxCpuBuilder::default()
            .quota(-1)
            .period(20_000u64)
            .build()
            .unwrap();
        assert_eq!(settings(&cpu)[0].value, "max 20000");
    }

    #[test]
    fn a_period_alone_leaves_the_quota() {
        let cpu = LinuxCpuBuilder::default()
            .period(20_000u64)
            .build()
            .unwrap();
        let settings = settings(&cpu);
        assert!(settings[0].after_first);
        assert_eq!(settings[0].value, "20000");
    }

    #[test]
    fn burst_is_cleared_before_and_set_after_the_quota() {
        let cpu = LinuxCpuBuilder::default()
            .quota(50_000)
            .burst(1_000u64)
            .build()
            .unwrap();
        let files: Vec<_> = settings(&cpu).into_iter().map(|s| s.file).collect();
        assert_eq!(files, ["cpu.max.burst", "cpu.max", "cpu.max.burst"]);
    }
}
