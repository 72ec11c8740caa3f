//! Which processors and memory nodes.

use std::path::Path;

use oci_spec::runtime::LinuxCpu;

use super::Setting;
use crate::cgroup::CgroupError;

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// The settings for `resources.cpu.cpus` and `resources.cpu.mems`.
pub(super) fn settings(cpu: &LinuxCpu) -> Vec<Setting> {
    [
        ("resources.cpu.cpus", FILES[0], cpu.cpus()),
        ("resources.cpu.mems", FILES[1], cpu.mems()),
    ]
    .into_iter()
    .filter_map(|(field, file, list)| {
        let list = list.as_ref().filter(|list| !list.is_empty())?;
        Some(Setting::new(field, "cpuset", file, list.clone()))
    })
    .collect()
}

/// Gives a new cgroup its parent's processors and nodes: it begins with none, and then takes no
/// process.
pub(in crate::cgroup) fn inherit(path: &Path) -> Result<(), CgroupError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    for file in FILES {
        let error = |action: &str, path: &Path| {
            let (action, path) = (action.to_owned(), path.join(file));
            move |source| CgroupError::File {
                action,
                path,
                source,
            }
        };
        let own = std::fs::read_to_string(path.join(file)).map_err(error("read", path))?;
        if !own.trim().is_empty() {
            continue;
        }
        let list = std::fs::read_to_string(parent.join(file)).map_err(error("read", parent))?;
        std::fs::write(path.join(file), list.trim()).map_err(error("write", path))?;
    }
    Ok(())
}
