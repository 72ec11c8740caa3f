//! `events`: what a container uses, as runc describes it, and when it runs out of memory.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use runtime::{CgroupStats, Container, MemoryWatch, Stall, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Print what is used now, and return
    #[arg(long)]
    stats: bool,
    /// Time between two prints, as in 500ms, 5s or 1m
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Events {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        ensure!(!self.interval.is_zero(), "--interval must be above 0");
        let container = global.container(&self.id)?;
        ensure!(
            container.status() != Status::Stopped,
            "container {} is not running",
            self.id
        );
        if self.stats {
            return print(&container, "stats", Some(stats(&container.stats()?)));
        }
        follow(&container, self.interval)
    }
}

/// Prints until the container has ended.
fn follow(container: &Container, interval: Duration) -> Result<()> {
    let watch = container.watch_memory()?;
    if watch.is_none() {
        tracing::warn!("a lack of memory is not seen with cgroups of version 1");
    }
    let Some(first) = container.process() else {
        return Ok(());
    };
    let count = || watch.as_ref().map_or(0, MemoryWatch::kills);
    let mut kills = count();
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::from_borrowed_fd(first, PollFlags::IN)];
        fds.extend(watch.iter().map(|watch| PollFd::new(watch, PollFlags::PRI)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        let ended = !fds[0].revents().is_empty();
        // The count tells, for other limits are noted in the same file.
        let now = count();
        for _ in kills..now {
            print(container, "oom", None)?;
        }
        kills = now.max(kills);
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            print(container, "stats", Some(stats(&container.stats()?)))?;
            next += interval;
        }
    }
}

fn print(container: &Container, kind: &str, data: Option<Value>) -> Result<()> {
    let mut event = json!({"type": kind, "id": container.id()});
    if let Some(data) = data {
        event["data"] = data;
    }
    writeln!(std::io::stdout(), "{event}").context("write to standard output")
}

/// Statistics in the form of `runc events`; times are in nanoseconds there.
fn stats(stats: &CgroupStats) -> Value {
    let no_limit = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let cpu = &stats.cpu;
    let mut value = json!({
        "cpu": {
            "usage": {
                "total": cpu.usage_usec * 1000,
                "kernel": cpu.system_usec * 1000,
                "user": cpu.user_usec * 1000,
            },
            "throttling": {
                "periods": cpu.nr_periods,
                "throttledPeriods": cpu.nr_throttled,
                "throttledTime": cpu.throttled_usec * 1000,
            },
        },
        "cpuset": {},
        "memory": {},
        "pids": {},
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    });
    if let Some(memory) = &stats.memory {
        let both = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
        value["memory"] = json!({
            "cache": memory.stat.get("file").copied().unwrap_or(0),
            "usage": {
                "limit": no_limit(memory.limit),
                "usage": memory.usage,
                "max": memory.peak.unwrap_or(0),
                "failcnt": memory.events.get("max").copied().unwrap_or(0),
            },
            // Memory and swap together there.
            "swap": {
                "limit": no_limit(both(memory.limit, memory.swap_limit)),
                "usage": memory.usage + memory.swap_usage,
                "failcnt": 0,
            },
            "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": memory.stat,
        });
    }
    if let Some(pids) = &stats.pids {
        value["pids"] = json!({"current": pids.current, "limit": pids.limit.unwrap_or(0)});
    }
    if let Some(devices) = &stats.io {
        let entry = |device: &runtime::IoStats, operation: &str, count: u64| json!({"major": device.major, "minor": device.minor, "op": operation, "value": count});
        let bytes = devices.iter().flat_map(|device| {
            [
                entry(device, "Read", device.read_bytes),
                entry(device, "Write", device.write_bytes),
                entry(device, "Discard", device.discard_bytes),
            ]
        });
        let operations = devices.iter().flat_map(|device| {
            [
                entry(device, "Read", device.read_operations),
                entry(device, "Write", device.write_operations),
                entry(device, "Discard", device.discard_operations),
            ]
        });
        value["blkio"] = json!({
            "ioServiceBytesRecursive": bytes.collect::<Vec<_>>(),
            "ioServicedRecursive": operations.collect::<Vec<_>>(),
        });
    }
    let shares = |stall: &Stall| {
        json!({"avg10": stall.avg10, "avg60": stall.avg60, "avg300": stall.avg300,
            "total": stall.total})
    };
    for (resource, pressure) in &stats.pressure {
        let part = if *resource == "io" { "blkio" } else { resource };
        value[part]["psi"] =
            json!({"some": shares(&pressure.some), "full": shares(&pressure.full)});
    }
    for (size, pages) in &stats.hugetlb {
        value["hugetlb"][size] = json!({"usage": pages.usage, "max": pages.peak.unwrap_or(0),
            "failcnt": pages.failures});
    }
    value
}
