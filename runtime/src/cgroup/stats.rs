//! What a container uses, whichever version counts it.

use std::collections::BTreeMap;

use super::directory::Directory;

/// A container's use of resources, as the kernel counts it now. A part whose controller is not
/// enabled is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CgroupStats {
    /// Processor time (`cpu.stat`); the first three counters are there without the controller.
    pub cpu: CpuStats,
    /// Memory (`memory.*`).
    pub memory: Option<MemoryStats>,
    /// Processes (`pids.*`).
    pub pids: Option<PidsStats>,
    /// Block devices (`io.stat`).
    pub io: Option<Vec<IoStats>>,
    /// Time lost by waiting for `cpu`, `memory` and `io` (`*.pressure`); of version 2 alone.
    pub pressure: BTreeMap<&'static str, Pressure>,
    /// Huge pages by their size, as in `2MB` (`hugetlb.*`).
    pub hugetlb: BTreeMap<String, HugetlbStats>,
}

/// Time that processes lost by waiting for a resource (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    /// While some waited.
    pub some: Stall,
    /// While all waited.
    pub full: Stall,
}

/// Shares are in percent of the time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stall {
    /// In the last 10 seconds.
    pub avg10: f64,
    /// In the last minute.
    pub avg60: f64,
    /// In the last 5 minutes.
    pub avg300: f64,
    /// Microseconds since the beginning.
    pub total: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// In use now.
    pub usage: u64,
    /// The most ever in use, where the kernel counts it.
    pub peak: Option<u64>,
    /// How often the limit was met.
    pub failures: u64,
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
    /// Every line of `memory.stat`; the two versions have different ones.
    pub stat: BTreeMap<String, u64>,
    /// How often a limit was met: every line of `memory.events` (`max`, `oom`, `oom_kill`, ...); of
    /// version 1 those that it counts, `max` and `oom_kill`.
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

/// A single value; `None` for "max".
pub(super) fn count(text: &str) -> Option<u64> {
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

/// The sizes of huge pages among a cgroup's files, which are called `hugetlb.2MB.` and more.
pub(super) fn huge_page_sizes(directory: &Directory, file: &str) -> Vec<String> {
    // What cannot be listed has none.
    let entries = std::fs::read_dir(directory.path()).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(file)?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_none() {
        assert_eq!(count("max\n"), None);
        assert_eq!(count("42\n"), Some(42));
    }
}
