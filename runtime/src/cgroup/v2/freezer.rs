//! Stopping all processes of a cgroup and letting them go on.

use std::io;

use crate::cgroup::directory::Directory;
use crate::cgroup::{CgroupError, FREEZING};

/// Freezes or thaws all processes, and returns when they are.
pub(in crate::cgroup) fn freeze(directory: &Directory, frozen: bool) -> Result<(), CgroupError> {
    directory.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
    if directory.wait_for_event("frozen", u64::from(frozen), FREEZING)? {
        return Ok(());
    }
    if frozen {
        directory.write("cgroup.freeze", "0")?;
    }
    let action = if frozen { "freeze" } else { "thaw" };
    Err(directory.error(action, "", io::ErrorKind::TimedOut.into()))
}

/// Whether its processes are meant to be frozen.
pub(in crate::cgroup) fn is_frozen(directory: &Directory) -> bool {
    directory
        .read("cgroup.freeze")
        .is_ok_and(|value| value.trim() == "1")
}
