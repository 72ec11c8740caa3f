//! Removing processes and containers.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::error::engine;
use super::{Status, TaskError, Tasks};
use crate::process::Exit;

impl Tasks {
    /// Removes a process that has ended or was never started, and with a container's
    /// first process the container. Answers with its process id and its end.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), TaskError> {
        if !exec_id.is_empty() {
            return self.with(id, |task| {
                let exec = task.exec(exec_id)?;
                let pid = exec.pid();
                let exit = match exec.ending.get() {
                    Some(exit) => exit,
                    None if pid == 0 && !exec.starting => Exit::now(0),
                    None => {
                        return Err(still_running(&format!(
                            "process {exec_id} of container {id}"
                        )));
                    }
                };
                task.execs.remove(exec_id);
                Ok((pid, exit))
            });
        }
        let init = self.with(id, |task| match task.status() {
            Status::Stopped => Ok(Arc::clone(&task.init)),
            Status::Created => {
                task.container.kill(libc::SIGKILL).map_err(engine)?;
                Ok(Arc::clone(&task.init))
            }
            Status::Running | Status::Paused => Err(still_running(&format!("container {id}"))),
        })?;
        let exit = init.ending.wait().await;
        self.remove(id)?;
        Ok((init.pid, exit))
    }

    fn remove(&self, id: &str) -> Result<(), TaskError> {
        let (rootfs, disks) = self.with(id, |task| {
            task.container.delete(true).map_err(engine)?;
            Ok((task.rootfs.take(), std::mem::take(&mut task.disks)))
        })?;
        self.tasks().remove(id);
        self.volumes().release(&disks);
        self.oom.forget(id);
        if let Some(rootfs) = rootfs {
            self.storage().unmount(rootfs);
        }
        remove_directory(&self.base.join("containers").join(id));
        Ok(())
    }
}

fn still_running(what: &str) -> TaskError {
    TaskError::NotNow(format!("{what} is running: stop it before deleting it"))
}

/// Removes what the agent keeps of a container. The root file system's mount point is
/// gone by then; were it not, nothing below it may be touched.
pub(super) fn remove_directory(directory: &Path) {
    let files = directory.join("files");
    let removed = if files.exists() {
        fs::remove_dir_all(&files)
    } else {
        Ok(())
    };
    if let Err(error) = removed.and_then(|()| fs::remove_dir(directory)) {
        log::warn!("cannot remove {}: {error}", directory.display());
    }
}
