//! Notices when the kernel kills a process of a container for want of memory.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// One container's memory.events.
struct Watched {
    container_id: String,
    file: PathBuf,
    kills: u64,
}

/// Watches the cgroups of all containers with one inotify descriptor.
pub struct OomWatch {
    inotify: AsyncFd<OwnedFd>,
    /// By watch descriptor.
    watched: Mutex<HashMap<i32, Watched>>,
}

impl OomWatch {
    /// A watch over nothing yet.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self {
            inotify: sys::watch(inotify)?,
            watched: Mutex::default(),
        })
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<i32, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to watch the cgroup of a container.
    pub fn watch(&self, container_id: &str, cgroup: &Path) -> io::Result<()> {
        let file = cgroup.join("memory.events");
        let descriptor = inotify::add_watch(&self.inotify, &file, WatchFlags::MODIFY)?;
        let watched = Watched {
            container_id: container_id.into(),
            kills: kills(&file),
            file,
        };
        self.watched().insert(descriptor, watched);
        Ok(())
    }

    /// Stops to watch a container.
    pub fn forget(&self, container_id: &str) {
        self.watched().retain(|descriptor, watched| {
            let keep = watched.container_id != container_id;
            if !keep {
                // The kernel drops the watch itself when the cgroup goes first.
                let _ = inotify::remove_watch(&self.inotify, *descriptor);
            }
            keep
        });
    }

    /// Whether the container has lost processes since it was last asked. For the moment
    /// when a process ends: its host should hear of the cause before the end.
    pub fn check(&self, container_id: &str) -> bool {
        let mut watched = self.watched();
        let container = watched
            .values_mut()
            .find(|watched| watched.container_id == container_id);
        container.is_some_and(Watched::grown)
    }

    /// Waits until containers have lost processes; answers with their ids.
    pub async fn next(&self) -> io::Result<Vec<String>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut found = Vec::new();
            let mut buffer = [MaybeUninit::uninit(); 1024];
            let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
            while let Ok(event) = reader.next() {
                let mut watched = self.watched();
                if let Some(container) = watched.get_mut(&event.wd())
                    && container.grown()
                {
                    found.push(container.container_id.clone());
                }
            }
            ready.clear_ready();
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
}

impl Watched {
    fn grown(&mut self) -> bool {
        let kills = kills(&self.file);
        let grown = kills > self.kills;
        self.kills = self.kills.max(kills);
        grown
    }
}

/// The cgroup's count of processes killed for want of memory; 0 when it is gone.
fn kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kill_is_noticed_once() {
        let cgroup = tempfile::tempdir().unwrap();
        let file = cgroup.path().join("memory.events");
        fs::write(&file, "low 0\noom 3\noom_kill 3\noom_group_kill 0\n").unwrap();
        let watch = OomWatch::new().unwrap();
        watch.watch("web", cgroup.path()).unwrap();
        assert!(!watch.check("web"));

        fs::write(&file, "low 0\noom 4\noom_kill 4\n").unwrap();
        assert_eq!(watch.next().await.unwrap(), ["web"]);
        assert!(!watch.check("web"));

        fs::write(&file, "oom_kill 5\n").unwrap();
        assert!(watch.check("web"));
        watch.forget("web");
        assert!(!watch.check("web"));
    }
}
