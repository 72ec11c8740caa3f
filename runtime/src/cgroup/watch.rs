//! Learning that a container has run out of memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::stats::pairs;
use super::{Cgroup, CgroupError};

/// A view of a cgroup's `memory.events`. Its descriptor has `POLLPRI` when something was counted
/// since [`MemoryWatch::kills`] was last asked.
#[derive(Debug)]
pub struct MemoryWatch(OwnedFd);

impl MemoryWatch {
    /// How many processes have been killed for want of memory.
    pub fn kills(&self) -> u64 {
        let mut text = [0u8; 512];
        // From the start, which also arms the notification. A cgroup that is gone counts no more.
        let length = rustix::io::pread(&self.0, &mut text, 0).unwrap_or(0);
        let events = pairs(&String::from_utf8_lossy(&text[..length]));
        events.get("oom_kill").copied().unwrap_or(0)
    }
}

impl AsFd for MemoryWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Cgroup {
    /// Watches for kills for want of memory, here and below.
    pub(crate) fn watch_memory(&self) -> Result<MemoryWatch, CgroupError> {
        let file = self.open_file("memory.events", OFlags::RDONLY, "read")?;
        Ok(MemoryWatch(file))
    }
}
