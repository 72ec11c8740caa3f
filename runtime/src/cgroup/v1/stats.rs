//! The counters of several directories.

use std::collections::BTreeMap;

use crate::cgroup::directory::Directory;
use crate::cgroup::stats::{HugetlbStats, count, huge_page_sizes, pairs};
use crate::cgroup::{CgroupError, CgroupStats, CpuStats, IoStats, MemoryStats, PidsStats};

/// What limits that are none read as: the largest number of whole pages.
const NO_LIMIT: u64 = i64::MAX as u64 - 65_535;

/// What its processes use and have used. `of` gives the directory that has a controller.
pub(in crate::cgroup) fn stats<'a>(
    of: impl Fn(&str) -> Option<&'a Directory>,
) -> Result<CgroupStats, CgroupError> {
    Ok(CgroupStats {
        cpu: cpu(of("cpuacct"), of("cpu"))?,
        memory: of("memory").map(memory).transpose()?,
        pids: of("pids").map(pids).transpose()?,
        io: of("blkio").map(devices).transpose()?,
        pressure: BTreeMap::new(),
        hugetlb: of("hugetlb").map(hugetlb).transpose()?.unwrap_or_default(),
    })
}

fn hugetlb(directory: &Directory) -> Result<BTreeMap<String, HugetlbStats>, CgroupError> {
    let sizes = huge_page_sizes(directory, ".usage_in_bytes").into_iter();
    sizes
        .map(|size| {
            let value = |name| number(directory, &format!("hugetlb.{size}.{name}"));
            let stats = HugetlbStats {
                usage: value("usage_in_bytes")?.unwrap_or(0),
                peak: value("max_usage_in_bytes")?,
                failures: value("failcnt")?.unwrap_or(0),
            };
            Ok((size, stats))
        })
        .collect()
}

fn cpu(time: Option<&Directory>, limit: Option<&Directory>) -> Result<CpuStats, CgroupError> {
    let mut stats = CpuStats::default();
    if let Some(time) = time {
        let microseconds =
            |file| -> Result<u64, CgroupError> { Ok(number(time, file)?.unwrap_or(0) / 1000) };
        stats.usage_usec = microseconds("cpuacct.usage")?;
        stats.user_usec = microseconds("cpuacct.usage_user")?;
        stats.system_usec = microseconds("cpuacct.usage_sys")?;
    }
    if let Some(limit) = limit {
        let pairs = pairs(&limit.optional("cpu.stat")?.unwrap_or_default());
        let value = |name| pairs.get(name).copied().unwrap_or(0);
        stats.nr_periods = value("nr_periods");
        stats.nr_throttled = value("nr_throttled");
        stats.throttled_usec = value("throttled_time") / 1000;
    }
    Ok(stats)
}

/// How often a limit of memory was met.
pub(in crate::cgroup) fn memory_events(
    directory: &Directory,
) -> Result<BTreeMap<String, u64>, CgroupError> {
    let control = pairs(
        &directory
            .optional("memory.oom_control")?
            .unwrap_or_default(),
    );
    let mut events = BTreeMap::new();
    if let Some(kills) = control.get("oom_kill") {
        events.insert("oom_kill".to_owned(), *kills);
    }
    if let Some(failures) = number(directory, "memory.failcnt")? {
        events.insert("max".to_owned(), failures);
    }
    Ok(events)
}

fn memory(directory: &Directory) -> Result<MemoryStats, CgroupError> {
    let limit = |file| -> Result<Option<u64>, CgroupError> {
        Ok(number(directory, file)?.filter(|&limit| limit < NO_LIMIT))
    };
    let usage = number(directory, "memory.usage_in_bytes")?.unwrap_or(0);
    // Version 1 counts memory and swap together.
    let both = number(directory, "memory.memsw.usage_in_bytes")?.unwrap_or(usage);
    let memory_limit = limit("memory.limit_in_bytes")?;
    let both_limit = limit("memory.memsw.limit_in_bytes")?;
    Ok(MemoryStats {
        usage,
        peak: number(directory, "memory.max_usage_in_bytes")?,
        limit: memory_limit,
        swap_usage: both.saturating_sub(usage),
        swap_limit: both_limit
            .zip(memory_limit)
            .map(|(both, memory)| both.saturating_sub(memory)),
        stat: pairs(&directory.optional("memory.stat")?.unwrap_or_default()),
        events: memory_events(directory)?,
    })
}

fn pids(directory: &Directory) -> Result<PidsStats, CgroupError> {
    Ok(PidsStats {
        current: number(directory, "pids.current")?.unwrap_or(0),
        limit: number(directory, "pids.max")?,
    })
}

fn devices(directory: &Directory) -> Result<Vec<IoStats>, CgroupError> {
    // BFQ counts for itself; the other counter is that of all other schedulers.
    for kind in ["bfq", "throttle"] {
        let file = |what: &str| format!("blkio.{kind}.{what}_recursive");
        let bytes = directory
            .optional(&file("io_service_bytes"))?
            .unwrap_or_default();
        let operations = directory
            .optional(&file("io_serviced"))?
            .unwrap_or_default();
        let stats = lines(&bytes, &operations);
        if !stats.is_empty() {
            return Ok(stats);
        }
    }
    Ok(Vec::new())
}

/// Lines of a device, a direction and a count, `8:0 Read 4096`, in one text of bytes and one of
/// operations.
fn lines(bytes: &str, operations: &str) -> Vec<IoStats> {
    let mut devices: BTreeMap<(u32, u32), IoStats> = BTreeMap::new();
    let texts = [(bytes, true), (operations, false)];
    for (line, is_bytes) in texts
        .into_iter()
        .flat_map(|(text, is_bytes)| text.lines().map(move |line| (line, is_bytes)))
    {
        let mut words = line.split_whitespace();
        let (Some(device), Some(direction), Some(value)) =
            (words.next(), words.next(), words.next())
        else {
            // The sum over all devices ends the file.
            continue;
        };
        let Some((major, minor)) = device
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        else {
            continue;
        };
        let stats = devices.entry((major, minor)).or_insert(IoStats {
            major,
            minor,
            ..IoStats::default()
        });
        let field = match (direction, is_bytes) {
            ("Read", true) => &mut stats.read_bytes,
            ("Read", false) => &mut stats.read_operations,
            ("Write", true) => &mut stats.write_bytes,
            ("Write", false) => &mut stats.write_operations,
            ("Discard", true) => &mut stats.discard_bytes,
            ("Discard", false) => &mut stats.discard_operations,
            _ => continue,
        };
        *field = value.parse().unwrap_or(0);
    }
    devices.into_values().collect()
}

fn number(directory: &Directory, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(directory.optional(file)?.as_deref().and_then(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_device_are_put_together() {
        let stats = lines(
            "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Async 25\n8:0 Discard 3\n8:0 Total 33\n\
             253:16 Read 7\nTotal 40\n",
            "8:0 Read 1\n8:0 Write 2\n8:0 Discard 1\nTotal 4\n",
        );
        assert_eq!(stats.len(), 2);
        let one = &stats[0];
        assert_eq!((one.major, one.minor), (8, 0));
        assert_eq!(
            (one.read_bytes, one.write_bytes, one.discard_bytes),
            (10, 20, 3)
        );
        assert_eq!(
            (
                one.read_operations,
                one.write_operations,
                one.discard_operations
            ),
            (1, 2, 1)
        );
        assert_eq!((stats[1].major, stats[1].read_bytes), (253, 7));
    }
}
