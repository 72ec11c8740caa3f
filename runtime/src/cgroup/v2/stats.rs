//! The counters in the files of one directory.

use std::collections::BTreeMap;

use crate::cgroup::directory::Directory;
use crate::cgroup::stats::{HugetlbStats, Pressure, count, huge_page_sizes, pairs};
use crate::cgroup::{CgroupError, CgroupStats, CpuStats, IoStats, MemoryStats, PidsStats};

/// What its processes use and have used.
pub(in crate::cgroup) fn stats(directory: &Directory) -> Result<CgroupStats, CgroupError> {
    Ok(CgroupStats {
        cpu: directory
            .optional("cpu.stat")?
            .as_deref()
            .map(cpu)
            .unwrap_or_default(),
        memory: memory(directory)?,
        pids: pids(directory)?,
        io: directory.optional("io.stat")?.as_deref().map(devices),
        pressure: ["cpu", "memory", "io"]
            .into_iter()
            .filter_map(|resource| {
                // A kernel that does not measure it (psi=0) refuses to have it read.
                let text = directory.optional(&format!("{resource}.pressure")).ok()??;
                Some((resource, pressure(&text)))
            })
            .collect(),
        hugetlb: huge_page_sizes(directory, ".current")
            .into_iter()
            .map(|size| Ok((size.clone(), hugetlb(directory, &size)?)))
            .collect::<Result<_, CgroupError>>()?,
    })
}

fn hugetlb(directory: &Directory, size: &str) -> Result<HugetlbStats, CgroupError> {
    let file = |name| directory.optional(&format!("hugetlb.{size}.{name}"));
    let events = file("events")?.as_deref().map(pairs).unwrap_or_default();
    Ok(HugetlbStats {
        usage: file("current")?.as_deref().and_then(count).unwrap_or(0),
        peak: None,
        failures: events.get("max").copied().unwrap_or(0),
    })
}

/// Lines of a kind and its shares: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "avg10" => stall.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => stall.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => stall.avg300 = value.parse().unwrap_or(0.0),
                "total" => stall.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

/// How often a limit of memory was met; `None` without the controller.
pub(in crate::cgroup) fn memory_events(
    directory: &Directory,
) -> Result<Option<BTreeMap<String, u64>>, CgroupError> {
    Ok(directory.optional("memory.events")?.as_deref().map(pairs))
}

fn memory(directory: &Directory) -> Result<Option<MemoryStats>, CgroupError> {
    let Some(usage) = directory.optional("memory.current")? else {
        return Ok(None);
    };
    let value = |file| Ok::<_, CgroupError>(directory.optional(file)?.as_deref().and_then(count));
    Ok(Some(MemoryStats {
        usage: count(&usage).unwrap_or(0),
        peak: value("memory.peak")?,
        limit: value("memory.max")?,
        swap_usage: value("memory.swap.current")?.unwrap_or(0),
        swap_limit: value("memory.swap.max")?,
        stat: directory
            .optional("memory.stat")?
            .as_deref()
            .map(pairs)
            .unwrap_or_default(),
        events: memory_events(directory)?.unwrap_or_default(),
    }))
}

fn pids(directory: &Directory) -> Result<Option<PidsStats>, CgroupError> {
    let Some(current) = directory.optional("pids.current")? else {
        return Ok(None);
    };
    Ok(Some(PidsStats {
        current: count(&current).unwrap_or(0),
        limit: directory.optional("pids.max")?.as_deref().and_then(count),
    }))
}

fn cpu(text: &str) -> CpuStats {
    let pairs = pairs(text);
    let value = |name| pairs.get(name).copied().unwrap_or(0);
    CpuStats {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
    }
}

/// Lines of a device and its counters: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn devices(text: &str) -> Vec<IoStats> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let mut stats = IoStats {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..IoStats::default()
            };
            for (name, value) in words.filter_map(|word| word.split_once('=')) {
                let field = match name {
                    "rbytes" => &mut stats.read_bytes,
                    "wbytes" => &mut stats.write_bytes,
                    "rios" => &mut stats.read_operations,
                    "wios" => &mut stats.write_operations,
                    "dbytes" => &mut stats.discard_bytes,
                    "dios" => &mut stats.discard_operations,
                    _ => continue,
                };
                *field = value.parse().unwrap_or(0);
            }
            Some(stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_by_name() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n\
                    full avg10=0.00 avg60=0.00 avg300=2.00 total=7\n";
        let read = pressure(text);
        assert_eq!((read.some.avg10, read.some.avg60), (1.5, 0.25));
        assert_eq!((read.some.total, read.full.total), (77, 7));
        assert_eq!(read.full.avg300, 2.0);
    }

    #[test]
    fn io_lines_are_read_by_name() {
        let stats = devices("253:16 rbytes=10 wbytes=20 rios=1 wios=2 cost.usage=7\n8:0\n");
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].major, stats[0].minor), (253, 16));
        assert_eq!((stats[0].read_bytes, stats[0].write_bytes), (10, 20));
        assert_eq!(
            (stats[0].read_operations, stats[0].write_operations),
            (1, 2)
        );
        assert_eq!(stats[1].read_bytes, 0);
    }
}
