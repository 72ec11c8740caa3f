//! Making containers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use protocol::{guest, ids};
use runtime::{CgroupDriver, Container, LaunchOptions};

use super::delete::remove_directory;
use super::error::engine;
use super::{Task, TaskError, Tasks};
use crate::process::{Ending, Process, console_size};
use crate::spec::{self, Place};
use crate::stdio::{self, Stdio};
use crate::storage::RootFs;

/// A container to make.
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// The bundle's path on the host, only to be shown again.
    pub bundle: String,
    /// What its root file system is made of.
    pub rootfs: Vec<containerd_shim_protos::api::Mount>,
    /// Spec and files.
    pub options: guest::CreateOptions,
    /// Its first process's streams.
    pub stdio: Stdio,
}

impl Tasks {
    /// Makes a container; answers with its first process's id. After an error nothing
    /// of it is left.
    pub fn create(&self, new: NewContainer) -> Result<u32, TaskError> {
        if !ids::is_valid(&new.id) {
            return Err(TaskError::InvalidId(new.id));
        }
        if self.tasks().contains_key(&new.id) {
            return Err(TaskError::Exists(format!("container {}", new.id)));
        }
        let directory = self.base.join("containers").join(&new.id);
        let spec = spec::parse(&new.options.spec)?;
        let rootfs = self.storage().mount(
            &new.rootfs,
            &directory.join("rootfs"),
            spec::user_namespace(&spec),
        )?;
        match self.launch_with_volumes(&new, spec, &directory, &rootfs) {
            Ok(mut task) => {
                let pid = task.init.pid;
                task.rootfs = Some(rootfs);
                self.tasks().insert(new.id, task);
                Ok(pid)
            }
            Err(error) => {
                self.storage().unmount(rootfs);
                remove_directory(&directory);
                Err(error)
            }
        }
    }

    fn launch_with_volumes(
        &self,
        new: &NewContainer,
        spec: Spec,
        directory: &Path,
        rootfs: &RootFs,
    ) -> Result<Task, TaskError> {
        let prepared = self.volumes().prepare(&new.options, &mut self.storage())?;
        let place = Place {
            id: &new.id,
            rootfs: &rootfs.path,
            files: &[],
            volumes: &prepared.sources,
            nodes: &prepared.nodes,
            terminal: new.stdio.terminal,
        };
        match self.launch(new, spec, directory, place) {
            Ok(mut task) => {
                task.disks = prepared.nodes;
                Ok(task)
            }
            Err(error) => {
                self.volumes().release(&prepared.nodes);
                Err(error)
            }
        }
    }

    fn launch(
        &self,
        new: &NewContainer,
        mut spec: Spec,
        directory: &Path,
        place: Place<'_>,
    ) -> Result<Task, TaskError> {
        let files = spec::write_files(&directory.join("files"), &new.options.files)?;
        let place = Place {
            files: &files,
            ..place
        };
        spec::adapt(&mut spec, &place)?;
        let private_pids = spec::has_namespace(&spec, LinuxNamespaceType::Pid);
        let size = spec.process().as_ref().and_then(console_size);
        let (prepared, io) = stdio::prepare(&self.streams, &new.stdio, size)?;
        let (mut container, launched) = Container::create(runtime::CreateOptions {
            id: new.id.clone(),
            bundle: directory.into(),
            spec,
            state_dir: self.base.join("state"),
            io,
            cgroup: CgroupDriver::Cgroupfs,
            launch: LaunchOptions::default(),
        })
        .map_err(engine)?;
        let attached = match prepared.attach(launched.terminal) {
            Ok(attached) => attached,
            Err(error) => {
                // The process is an orphan now: killed here, collected like any other.
                if let Err(error) = container.delete(true) {
                    log::warn!("cannot delete container {}: {error}", new.id);
                }
                return Err(error.into());
            }
        };
        let init = Process::new(
            &new.id,
            "",
            launched.pid,
            launched.pidfd,
            Ending::default(),
            attached,
        );
        let init = Arc::new(init);
        self.reaper.register(init.pid, Arc::clone(&init));
        if let Err(error) = self.oom.watch(&new.id, container.cgroup_path()) {
            log::warn!(
                "container {}: cannot watch for lack of memory: {error}",
                new.id
            );
        }
        Ok(Task {
            container,
            bundle: new.bundle.clone(),
            stdio: new.stdio.clone(),
            init,
            execs: HashMap::new(),
            starting: false,
            started: false,
            paused: false,
            private_pids,
            rootfs: None,
            disks: Vec::new(),
            give_back: give_back(&new.options.files, files),
        })
    }
}

/// The request's files that are to be given back.
fn give_back(files: &[guest::File], paths: Vec<PathBuf>) -> Vec<(u32, PathBuf)> {
    (0..)
        .zip(files.iter().zip(paths))
        .filter(|(_, (file, _))| file.give_back)
        .map(|(index, (_, path))| (index, path))
        .collect()
}
