//! Stopping all processes of a cgroup and letting them go on.

use std::io;
use std::time::{Duration, Instant};

use crate::cgroup::directory::Directory;
use crate::cgroup::{CgroupError, FREEZING};

/// Freezes or thaws all processes, and returns when they are.
pub(in crate::cgroup) fn freeze(directory: &Directory, frozen: bool) -> Result<(), CgroupError> {
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    let deadline = Instant::now() + FREEZING;
    loop {
        // A process that is born meanwhile is only frozen when the kernel is told again.
        directory.write("freezer.state", wanted)?;
        if directory.read("freezer.state")?.trim() == wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            break;
        }
        // The kernel tells nobody of the change.
        std::thread::sleep(Duration::from_millis(1));
    }
    if frozen {
        directory.write("freezer.state", "THAWED")?;
    }
    let action = if frozen { "freeze" } else { "thaw" };
    Err(directory.error(action, "", io::ErrorKind::TimedOut.into()))
}

/// Whether its processes are meant to be frozen.
pub(in crate::cgroup) fn is_frozen(directory: &Directory) -> bool {
    directory
        .read("freezer.self_freezing")
        .is_ok_and(|value| value.trim() == "1")
}
