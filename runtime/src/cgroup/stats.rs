//! What a container uses, read from the files of its cgroup.

use std::collections::BTreeMap;

use super::{Cgroup, CgroupError, is_gone};

/// A container's use of resources, as the kernel counts it now. A part whose controller is not
/// enabled is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupStats {
    /// Processor time (`cpu.stat`); the first three counters are there without the controller.
    pub cpu: CpuStats,
    /// Memory (`memory.*`).
    pub memory: Option<MemoryStats>,
    /// Processes (`pids.*`).
    pub pids: Option<PidsStats>,
    /// Block devices (`io.stat`).
    pub io: Option<Vec<IoStats>>,
}

/// Processor time, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// All of it.
    pub usage_usec: u64,
    /// In user mode.
    pub user_usec: u64,
    /// In the kernel.
    pub system_usec: u64,
    /// Periods in which the limit was in force.
    pub nr_periods: u64,
    /// Periods in which the group was stopped at its limit.
    pub nr_throttled: u64,
    /// Time for which it was stopped.
    pub throttled_usec: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use now.
    pub usage: u64,
    /// The most ever in use, where the kernel counts it.
    pub peak: Option<u64>,
    /// The limit; `None` is no limit.
    pub limit: Option<u64>,
    /// Swap in use.
    pub swap_usage: u64,
    /// The limit of swap; `None` is no limit.
    pub swap_limit: Option<u64>,
    /// Every line of `memory.stat`.
    pub stat: BTreeMap<String, u64>,
    /// Every line of `memory.events`: how often a limit was met (`max`, `oom`, `oom_kill`, ...).
    pub events: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None` is no limit.
    pub limit: Option<u64>,
}

/// What went to and from one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoStats {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_operations: u64,
    /// Writes.
    pub write_operations: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
    /// Discards.
    pub discard_operations: u64,
}

impl Cgroup {
    /// What its processes use and have used.
    pub(crate) fn stats(&self) -> Result<CgroupStats, CgroupError> {
        Ok(CgroupStats {
            cpu: self
                .optional("cpu.stat")?
                .as_deref()
                .map(cpu)
                .unwrap_or_default(),
            memory: self.memory_stats()?,
            pids: self.pids_stats()?,
            io: self.optional("io.stat")?.as_deref().map(devices),
        })
    }

    /// How often a limit of memory was met (`memory.events`); `None` without the controller.
    pub(crate) fn memory_events(&self) -> Result<Option<BTreeMap<String, u64>>, CgroupError> {
        Ok(self.optional("memory.events")?.as_deref().map(pairs))
    }

    fn memory_stats(&self) -> Result<Option<MemoryStats>, CgroupError> {
        let Some(usage) = self.optional("memory.current")? else {
            return Ok(None);
        };
        let value = |file| Ok::<_, CgroupError>(self.optional(file)?.as_deref().and_then(count));
        Ok(Some(MemoryStats {
            usage: count(&usage).unwrap_or(0),
            peak: value("memory.peak")?,
            limit: value("memory.max")?,
            swap_usage: value("memory.swap.current")?.unwrap_or(0),
            swap_limit: value("memory.swap.max")?,
            stat: self
                .optional("memory.stat")?
                .as_deref()
                .map(pairs)
                .unwrap_or_default(),
            events: self.memory_events()?.unwrap_or_default(),
        }))
    }

    fn pids_stats(&self) -> Result<Option<PidsStats>, CgroupError> {
        let Some(current) = self.optional("pids.current")? else {
            return Ok(None);
        };
        Ok(Some(PidsStats {
            current: count(&current).unwrap_or(0),
            limit: self.optional("pids.max")?.as_deref().and_then(count),
        }))
    }

    /// A file that is there only when its controller is enabled.
    fn optional(&self, file: &str) -> Result<Option<String>, CgroupError> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            // Without the file the whole cgroup may be gone, which the caller must learn.
            Err(error) if is_gone(&error) => self.read("cgroup.procs").map(|_| None),
            // The kernel's answer when the controller does not support the operation.
            Err(CgroupError::File { source, .. })
                if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A single value; `None` for "max".
fn count(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of a name and a value.
pub(super) fn pairs(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
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

    #[test]
    fn no_limit_is_none() {
        assert_eq!(count("max\n"), None);
        assert_eq!(count("42\n"), Some(42));
    }
}
