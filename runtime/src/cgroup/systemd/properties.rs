//! Properties of a unit: those of every scope, and those for limits.

use super::super::write::Known;
use super::wire::Value;
use super::{CgroupError, Property, Version};

/// The weight of processor time; 0 is idle.
pub(super) const WEIGHT: &str = "CPUWeight";

/// The version of systemd that has learnt about idle groups.
pub(super) const IDLE_SINCE: u32 = 252;

/// The kernel's default length of a period, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// What no limit is.
const INFINITY: u64 = u64::MAX;

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

/// Those of a scope with a first process. All controllers count, or the kernel would begin to in
/// the midst of the container's life; the container may make cgroups below its own.
pub(super) fn of_scope(slice: &str, scope: &str, pid: u32, version: Version) -> Vec<Property> {
    let io = match version {
        Version::V1 => "BlockIOAccounting",
        Version::V2 => "IOAccounting",
    };
    let name = scope.strip_suffix(".scope").unwrap_or(scope);
    let mut properties = vec![
        property("Description", Value::Str(format!("container {name}"))),
        property("Slice", Value::text(slice)),
        property("Delegate", Value::Bool(true)),
        property("PIDs", Value::Array("u".to_owned(), vec![Value::U32(pid)])),
        // Ordering against the boot and the shutdown is the container manager's matter.
        property("DefaultDependencies", Value::Bool(false)),
    ];
    for name in ["CPUAccounting", io, "MemoryAccounting", "TasksAccounting"] {
        properties.push(property(name, Value::Bool(true)));
    }
    properties
}

/// A file of the cgroup and the value to be written.
pub(super) type File<'a> = (&'a str, &'a str);

/// The files that are to be written, each by the name that systemd knows it by.
pub(super) fn files<'a>(known: &'a [Known<'_>]) -> Vec<File<'a>> {
    known
        .iter()
        .map(|one| match &one.setting.otherwise {
            // BFQ's own files, which systemd derives from the others.
            Some((file, value)) => (file.as_str(), value.as_str()),
            None => (one.setting.file.as_str(), one.text.as_str()),
        })
        .collect()
}

/// Those for limits. What systemd has no property for is left to the files. `current` reads a
/// file of the processor controller.
pub(super) fn of_files(
    version: Version,
    files: &[File<'_>],
    current: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Property>, CgroupError> {
    let mut properties = Vec::new();
    let idle = version == Version::V2
        && files
            .iter()
            .rfind(|(file, _)| *file == "cpu.idle")
            .is_some_and(|(_, one)| *one == "1");
    for &(file, text) in files {
        let number = || match text {
            "max" | "-1" => Some(INFINITY),
            _ => text.trim().parse().ok(),
        };
        let name = match (version, file) {
            (Version::V2, "memory.max") => "MemoryMax",
            (Version::V2, "memory.high") => "MemoryHigh",
            (Version::V2, "memory.low") => "MemoryLow",
            (Version::V2, "memory.min") => "MemoryMin",
            (Version::V2, "memory.swap.max") => "MemorySwapMax",
            (Version::V2, "cpu.weight") if !idle => WEIGHT,
            (Version::V1, "memory.limit_in_bytes") => "MemoryLimit",
            (Version::V1, "cpu.shares") => "CPUShares",
            (Version::V1, "blkio.weight") => "BlockIOWeight",
            (_, "pids.max") => "TasksMax",
            (Version::V2, "io.weight") => {
                let weight = text.strip_prefix("default ").unwrap_or(text);
                // Others are the weights of single devices.
                if let Ok(weight) = weight.trim().parse() {
                    properties.push(property("IOWeight", Value::U64(weight)));
                }
                continue;
            }
            (Version::V2, "cpuset.cpus" | "cpuset.mems") if !text.trim().is_empty() => {
                let name = match file {
                    "cpuset.cpus" => "AllowedCPUs",
                    _ => "AllowedMemoryNodes",
                };
                let bits = bits(text).ok_or_else(|| CgroupError::Invalid {
                    field: match file {
                        "cpuset.cpus" => "resources.cpu.cpus",
                        _ => "resources.cpu.mems",
                    },
                    problem: format!("{text:?} is not a list of numbers, as in 0-2,7"),
                })?;
                let bits = bits.into_iter().map(Value::Byte).collect();
                properties.push(property(name, Value::Array("y".to_owned(), bits)));
                continue;
            }
            _ => continue,
        };
        if let Some(number) = number() {
            properties.push(property(name, Value::U64(number)));
        }
    }
    if idle {
        properties.push(property(WEIGHT, Value::U64(0)));
    }
    properties.extend(quota(version, files, current).into_iter().flatten());
    Ok(properties)
}

/// Whether the group is to be idle.
pub(super) fn asks_for_idle(properties: &[Property]) -> bool {
    properties.contains(&property(WEIGHT, Value::U64(0)))
}

/// The share of processor time, for which systemd wants both numbers.
fn quota(
    version: Version,
    files: &[File<'_>],
    current: impl Fn(&str) -> Option<String>,
) -> Option<[Property; 2]> {
    let last = |name: &str| {
        files
            .iter()
            .rfind(|(file, _)| *file == name)
            .map(|(_, text)| *text)
    };
    let word = |text: &str, at: usize| text.split_whitespace().nth(at).map(str::to_owned);
    let (quota, period) = match version {
        Version::V2 => {
            let line = last("cpu.max")?;
            let now = current("cpu.max").unwrap_or_default();
            (word(line, 0)?, word(line, 1).or_else(|| word(&now, 1)))
        }
        Version::V1 => {
            let files = ["cpu.cfs_quota_us", "cpu.cfs_period_us"];
            if files.iter().all(|file| last(file).is_none()) {
                return None;
            }
            let value = |file| last(file).map(str::to_owned).or_else(|| current(file));
            (value(files[0])?, value(files[1]))
        }
    };
    let period = period
        .and_then(|period| period.trim().parse().ok())
        .filter(|&period| period != 0)
        .unwrap_or(DEFAULT_PERIOD);
    // In microseconds for each second, in steps of a hundredth: rounded up, so that the container
    // may use what it was promised.
    const STEP: u64 = 10_000;
    let share = match quota.trim().parse::<u64>() {
        Ok(quota) => {
            let share = u128::from(quota) * 1_000_000 / u128::from(period);
            u64::try_from(share)
                .unwrap_or(INFINITY - STEP)
                .next_multiple_of(STEP)
        }
        Err(_) => INFINITY,
    };
    Some([
        property("CPUQuotaPeriodUSec", Value::U64(period)),
        property("CPUQuotaPerSecUSec", Value::U64(share)),
    ])
}

/// A list like `0-2,7` as a mask, the lowest number in the lowest bit of the first byte.
fn bits(list: &str) -> Option<Vec<u8>> {
    // More than any kernel has.
    const MOST: usize = 1 << 16;
    let mut bytes = Vec::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        if bytes.len() <= last / 8 {
            bytes.resize(last / 8 + 1, 0);
        }
        (first..=last).for_each(|bit| bytes[bit / 8] |= 1 << (bit % 8));
    }
    (!bytes.is_empty()).then_some(bytes)
}

/// Those for devices, each with its accesses; `None` allows all.
pub(super) fn of_devices(allowed: Option<&[(String, String)]>) -> Vec<Property> {
    let entries = allowed
        .unwrap_or_default()
        .iter()
        .map(|(device, access)| Value::Struct(vec![Value::text(device), Value::text(access)]))
        .collect();
    let clear = Value::Array("(ss)".to_owned(), Vec::new());
    let policy = if allowed.is_some() { "strict" } else { "auto" };
    vec![
        property("DevicePolicy", Value::text(policy)),
        // An empty list takes the old ones away, others are added.
        property("DeviceAllow", clear),
        property("DeviceAllow", Value::Array("(ss)".to_owned(), entries)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: Version, files: &[File<'_>]) -> Vec<(String, Value)> {
        let current = |file: &str| match file {
            "cpu.max" => Some("max 50000\n".to_owned()),
            "cpu.cfs_quota_us" => Some("20000\n".to_owned()),
            "cpu.cfs_period_us" => Some("50000\n".to_owned()),
            _ => None,
        };
        of_files(version, files, current).unwrap()
    }

    fn numbers(list: &[(&str, u64)]) -> Vec<Property> {
        list.iter()
            .map(|(name, value)| property(name, Value::U64(*value)))
            .collect()
    }

    #[test]
    fn limits_of_version_2() {
        let files = [
            ("memory.max", "1048576"),
            ("memory.swap.max", "max"),
            ("memory.low", "4096"),
            ("pids.max", "10"),
            ("cpu.weight", "100"),
            ("io.weight", "default 50"),
            ("io.weight", "8:0 70"),
            ("hugetlb.2MB.max", "0"),
        ];
        let expected = [
            ("MemoryMax", 1 << 20),
            ("MemorySwapMax", u64::MAX),
            ("MemoryLow", 4096),
            ("TasksMax", 10),
            ("CPUWeight", 100),
            ("IOWeight", 50),
        ];
        assert_eq!(of(Version::V2, &files), numbers(&expected));
    }

    #[test]
    fn limits_of_version_1() {
        let files = [
            ("memory.limit_in_bytes", "-1"),
            ("cpu.shares", "512"),
            ("blkio.weight", "500"),
            ("cpuset.cpus", "0"),
        ];
        let expected = [
            ("MemoryLimit", u64::MAX),
            ("CPUShares", 512),
            ("BlockIOWeight", 500),
        ];
        assert_eq!(of(Version::V1, &files), numbers(&expected));
    }

    #[test]
    fn idle_is_a_weight_of_nothing() {
        let properties = of(Version::V2, &[("cpu.idle", "1"), ("cpu.weight", "100")]);
        assert_eq!(properties, numbers(&[("CPUWeight", 0)]));
        assert!(asks_for_idle(&properties));
        assert_eq!(of(Version::V2, &[("cpu.idle", "0")]), []);
    }

    #[test]
    fn processor_time_is_a_share_of_a_second() {
        let share = |version, files: &[File<'_>], period, share| {
            let expected = [
                ("CPUQuotaPeriodUSec", period),
                ("CPUQuotaPerSecUSec", share),
            ];
            assert_eq!(of(version, files), numbers(&expected), "{files:?}");
        };
        share(
            Version::V2,
            &[("cpu.max", "50000 100000")],
            100_000,
            500_000,
        );
        share(
            Version::V2,
            &[("cpu.max", "12345 100000")],
            100_000,
            130_000,
        );
        share(Version::V2, &[("cpu.max", "25000")], 50_000, 500_000);
        share(Version::V2, &[("cpu.max", "max 20000")], 20_000, u64::MAX);
        share(
            Version::V1,
            &[("cpu.cfs_period_us", "40000")],
            40_000,
            500_000,
        );
        share(Version::V1, &[("cpu.cfs_quota_us", "-1")], 50_000, u64::MAX);
    }

    #[test]
    fn processors_are_a_mask() {
        assert_eq!(bits("0"), Some(vec![1]));
        assert_eq!(bits("1,3-5, 8\n"), Some(vec![0b11_1010, 1]));
        for list in ["", "a", "3-1", "-", "99999999"] {
            assert_eq!(bits(list), None, "{list}");
        }
        let mask = Value::Array("y".to_owned(), vec![Value::Byte(6)]);
        let properties = of(Version::V2, &[("cpuset.cpus", "1-2")]);
        assert_eq!(properties, [property("AllowedCPUs", mask)]);
        assert!(of_files(Version::V2, &[("cpuset.cpus", "x")], |_| None).is_err());
    }
}
