//! How many processes.

use oci_spec::runtime::LinuxPids;

use super::Setting;

/// The setting for `resources.pids.limit`; 0 leaves it.
pub(super) fn settings(pids: &LinuxPids) -> Option<Setting> {
    let limit = match pids.limit() {
        0 => return None,
        ..0 => "max".to_owned(),
        limit => limit.to_string(),
    };
    Some(Setting::new(
        "resources.pids.limit",
        "pids",
        "pids.max",
        limit,
    ))
}
