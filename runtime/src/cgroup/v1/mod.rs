//! Version 1: a hierarchy for each controller or two, with a directory of the container in each.

mod blkio;
mod cpu;
pub(super) mod cpuset;
pub(super) mod devices;
pub(super) mod freezer;
mod memory;
mod network;
mod pids;
pub(super) mod stats;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{CgroupError, Directory, Setting};
use crate::process;

/// All settings for the resources of a spec.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    if resources
        .unified()
        .as_ref()
        .is_some_and(|files| !files.is_empty())
    {
        return Err(CgroupError::Invalid {
            field: "resources.unified",
            problem: "names files of cgroup version 2, and this host has version 1; use the other \
                      fields of linux.resources"
                .to_owned(),
        });
    }
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        settings.extend(cpuset::settings(cpu));
        settings.extend(cpu::settings(cpu));
    }
    if let Some(memory) = resources.memory() {
        settings.extend(memory::settings(memory)?);
    }
    settings.extend(resources.pids().as_ref().and_then(pids::settings));
    if let Some(block) = resources.block_io() {
        settings.extend(blkio::settings(block));
    }
    // Here -1 itself is no limit.
    settings.extend(super::setting::huge_pages(
        resources,
        "limit_in_bytes",
        |limit| limit.max(-1).to_string(),
    )?);
    settings.extend(super::setting::rdma(resources));
    if let Some(network) = resources.network() {
        settings.extend(network::settings(network)?);
    }
    Ok(settings)
}

/// Waits until no process is in a cgroup or below, for which there is no event: the processes
/// themselves tell. False when it took too long.
pub(super) fn wait_empty(directory: &Directory, patience: Duration) -> Result<bool, CgroupError> {
    let deadline = Instant::now() + patience;
    loop {
        let pids = directory.pids()?;
        if pids.is_empty() {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let processes: Vec<OwnedFd> = pids
            .into_iter()
            // One that cannot be opened has ended since.
            .filter_map(|pid| process::open(pid).ok())
            .collect();
        for process in &processes {
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            // Interrupted or not, the list is looked at again.
            let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_version_2_are_refused() {
        let mut resources = LinuxResources::default();
        resources.set_unified(Some([("memory.max".to_owned(), "1".to_owned())].into()));
        assert!(settings(&resources).is_err());
    }
}
