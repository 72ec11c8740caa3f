//! Version 2: one directory, whose files have the limits and counters of all controllers.

mod cpu;
mod cpuset;
pub(super) mod devices;
pub(super) mod freezer;
mod io;
mod memory;
mod pids;
pub(super) mod stats;
mod unified;

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::{CgroupError, Setting};

/// A number of a spec as the kernel's files want it: below 0 is no limit.
fn number(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// All settings for the resources of a spec. What only version 1 has (network classes and
/// priorities, real-time budgets, kernel memory, swappiness) is left out, as other engines do.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
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
        settings.extend(io::settings(block));
    }
    settings.extend(super::setting::huge_pages(resources, "max", number)?);
    settings.extend(super::setting::rdma(resources));
    settings.extend(unified::settings(resources)?);
    Ok(settings)
}

/// Hands all controllers that a cgroup has down to its children. What cannot be handed down (a
/// cgroup with processes of its own, a controller in use by version 1) shows when a limit needs it.
pub(super) fn enable_controllers(path: &Path) {
    let list = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let enabled = list("cgroup.subtree_control");
    let missing: Vec<String> = list("cgroup.controllers")
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|other| other == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return;
    }
    let control = path.join("cgroup.subtree_control");
    // One refused controller refuses the whole line, so then they go one by one.
    if std::fs::write(&control, missing.join(" ")).is_err() {
        for name in missing {
            let _ = std::fs::write(&control, name);
        }
    }
}
