//! What is told of processes that have ended, and of memory that was lacking.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use protocol::guest::{self, GivenBack, Oom, event::Kind};
use protocol::ids;

use super::Tasks;
use super::error::engine;
use crate::process::{Exit, Process};

impl Tasks {
    /// Collects what has ended and reports it. For every SIGCHLD.
    pub fn reap(&self) {
        for (process, exit) in self.reaper.reap() {
            self.ended(&process, exit);
        }
    }

    /// Reports the end of a process.
    pub(super) fn ended(&self, process: &Process, exit: Exit) {
        if process.container_id.is_empty() {
            // A console's: nothing of containerd's.
            return process.ending.set(exit);
        }
        self.report_oom(&process.container_id);
        process.ending.set(exit);
        self.events.push(Kind::Exit(guest::Exit {
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone(),
            pid: process.pid,
            status: exit.status,
            exited_at_ns: exit.at_ns,
            files: self.given_back(process),
            ..Default::default()
        }));
        if process.exec_id.is_empty() {
            self.end_siblings(&process.container_id);
        }
    }

    /// The files that a container gives back when its first process ends.
    fn given_back(&self, process: &Process) -> Vec<GivenBack> {
        if !process.exec_id.is_empty() {
            return Vec::new();
        }
        let files = self.with(&process.container_id, |task| {
            Ok(std::mem::take(&mut task.give_back))
        });
        let read = |(index, path): (u32, PathBuf)| match file_end(&path) {
            Ok(data) => Some(GivenBack {
                index,
                data,
                ..Default::default()
            }),
            Err(error) => {
                log::warn!("cannot give back {}: {error}", path.display());
                None
            }
        };
        files
            .unwrap_or_default()
            .into_iter()
            .filter_map(read)
            .collect()
    }

    /// In a pid namespace of its own the kernel ends a container's processes with the
    /// first one; without one that is ours to do.
    fn end_siblings(&self, id: &str) {
        let killed = self.with(id, |task| {
            if task.private_pids {
                return Ok(());
            }
            task.container.kill_all(libc::SIGKILL).map_err(engine)
        });
        if let Err(error) = killed {
            log::warn!("container {id}: cannot kill what is left of it: {error}");
        }
    }

    fn report_oom(&self, id: &str) {
        if self.oom.check(id) {
            self.push_oom(id.into());
        }
    }

    fn push_oom(&self, container_id: String) {
        self.events.push(Kind::Oom(Oom {
            container_id,
            ..Default::default()
        }));
    }

    /// Reports containers that lose processes to lack of memory, for ever.
    pub async fn watch_memory(&self) {
        loop {
            match self.oom.next().await {
                Ok(containers) => containers.into_iter().for_each(|id| self.push_oom(id)),
                Err(error) => {
                    return log::error!("cannot watch for lack of memory any more: {error}");
                }
            }
        }
    }
}

/// The end of a file, as much as is given back.
fn file_end(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let most = length.min(ids::MAX_GIVEN_BACK as u64);
    let mut data = vec![0; usize::try_from(most).map_err(io::Error::other)?];
    file.read_exact_at(&mut data, length - most)?;
    Ok(data)
}
