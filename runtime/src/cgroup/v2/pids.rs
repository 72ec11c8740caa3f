//! How many processes.

use oci_spec::runtime::LinuxPids;

use super::{Setting, number};

/// The setting for `resources.pids.limit`; 0 leaves it.
pub(super) fn settings(pids: &LinuxPids) -> Option<Setting> {
    (pids.limit() != 0).then(|| {
        Setting::new(
            "resources.pids.limit",
            "pids",
            "pids.max",
            number(pids.limit()),
        )
    })
}
