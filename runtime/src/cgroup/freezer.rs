//! Stopping all processes of a cgroup and letting them go on.

use std::io;
use std::time::Duration;

use super::{Cgroup, CgroupError};

/// A process in an uninterruptible wait freezes when that ends; past this the caller is told.
const PATIENCE: Duration = Duration::from_secs(5);

impl Cgroup {
    /// Freezes or thaws all processes, and returns when they are.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = u64::from(frozen);
        let reached = self.wait_for_event("frozen", wanted, PATIENCE)?;
        if !reached {
            if frozen {
                self.write("cgroup.freeze", "0")?;
            }
            return Err(self.error(
                if frozen { "freeze" } else { "thaw" },
                "",
                io::ErrorKind::TimedOut.into(),
            ));
        }
        Ok(())
    }

    /// Whether its processes are meant to be frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        self.read("cgroup.freeze")
            .is_ok_and(|value| value.trim() == "1")
    }
}
