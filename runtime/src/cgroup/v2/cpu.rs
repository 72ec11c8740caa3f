//! Limits of processor time.

use oci_spec::runtime::LinuxCpu;

use super::{Setting, number};
use crate::cgroup::setting::Value;

/// The settings for `resources.cpu` except the processors themselves (see `cpuset`).
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
    // The burst may not be above the quota at any moment: one that is raised follows the quota.
    if let Some(burst) = cpu.burst() {
        let burst = new("resources.cpu.burst", "cpu.max.burst", burst.to_string());
        settings.push(burst.may_wait());
    }
    let quota = cpu.quota().filter(|&quota| quota != 0).map(number);
    let period = cpu.period().filter(|&period| period != 0);
    match (quota, period) {
        (Some(quota), Some(period)) => {
            let line = format!("{quota} {period}");
            settings.push(new("resources.cpu.quota", "cpu.max", line));
        }
        // The kernel leaves the period then.
        (Some(quota), None) => settings.push(new("resources.cpu.quota", "cpu.max", quota)),
        (None, Some(period)) => settings.push(Setting {
            value: Value::AfterFirst(period.to_string()),
            ..new("resources.cpu.period", "cpu.max", String::new())
        }),
        (None, None) => {}
    }
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
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::LinuxCpuBuilder;

    #[test]
    fn defaults_and_ends_of_shares_map_to_those_of_weights() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 100);
        assert_eq!(weight(262_144), 10_000);
        assert!(weight(512) < weight(1024) && weight(1024) < weight(2048));
    }

    fn cpu() -> LinuxCpuBuilder {
        LinuxCpuBuilder::default()
    }

    #[test]
    fn a_quota_alone_leaves_the_period_and_the_reverse() {
        let quota = cpu().quota(50_000).build().unwrap();
        assert_eq!(lines(&settings(&quota)), [("cpu.max", "50000")]);
        let both = cpu().quota(-1).period(20_000u64).build().unwrap();
        assert_eq!(lines(&settings(&both)), [("cpu.max", "max 20000")]);
        let period = cpu().period(20_000u64).build().unwrap();
        let settings = settings(&period);
        assert_eq!(settings[0].value, Value::AfterFirst("20000".to_owned()));
    }

    #[test]
    fn burst_waits_for_the_quota() {
        let cpu = cpu().quota(50_000).burst(1_000u64).build().unwrap();
        let settings = settings(&cpu);
        assert_eq!(
            lines(&settings),
            [("cpu.max.burst", "1000"), ("cpu.max", "50000")]
        );
        assert!(settings[0].may_wait && !settings[1].may_wait);
    }

    #[test]
    fn an_idle_group_has_no_weight() {
        let idle = cpu().idle(1).shares(1024u64).build().unwrap();
        assert_eq!(lines(&settings(&idle)), [("cpu.idle", "1")]);
        let busy = cpu().idle(0).shares(1024u64).build().unwrap();
        assert_eq!(
            lines(&settings(&busy)),
            [("cpu.idle", "0"), ("cpu.weight", "100")]
        );
    }
}
