//! Which processors and memory nodes.

use oci_spec::runtime::LinuxCpu;

use super::Setting;

/// The settings for `resources.cpu.cpus` and `resources.cpu.mems`.
pub(super) fn settings(cpu: &LinuxCpu) -> Vec<Setting> {
    [
        ("resources.cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("resources.cpu.mems", "cpuset.mems", cpu.mems()),
    ]
    .into_iter()
    .filter_map(|(field, file, list)| {
        let list = list.as_ref().filter(|list| !list.is_empty())?;
        Some(Setting::new(field, "cpuset", file, list.clone()))
    })
    .collect()
}
