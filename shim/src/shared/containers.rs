//! Making and removing containers.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse};
use guest_agent::process::console_size;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use runtime::{CgroupDriver, CreateOptions, Launched};

use super::{Container, Live, Member, SharedPod, remains, room, root, rootfs};
use crate::error::{Error, Result};
use crate::process::Process;
use crate::streams::host::{Prepared, prepare};
use crate::streams::{Stdio, Streams};
use crate::task_state::TaskState;

impl SharedPod {
    /// Makes a container from containerd's request and its spec. Returns its pid.
    ///
    /// # Errors
    /// Names what failed; nothing of it is left then.
    pub async fn create(&self, request: &CreateTaskRequest, mut spec: Spec) -> Result<u32> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported(
                "a container cannot be restored from a checkpoint".into(),
            ));
        }
        if let Ok(sandbox) = self.sandbox() {
            sandbox.complete(&mut spec);
        }
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let size = spec.process().as_ref().and_then(console_size);
        let state = TaskState::Creating { early: None };
        let init = Process::new(
            &request.id,
            "",
            &request.bundle,
            &self.streams,
            stdio,
            state,
        );
        let container = Arc::new(Container {
            bundle: PathBuf::from(&request.bundle),
            init: Member::new(init, None, size),
            execs: Mutex::new(HashMap::new()),
            engine: Mutex::new(None),
            private_pids: has_own_pids(&spec),
            making: tokio::sync::Mutex::new(()),
        });
        let _making = container.making.lock().await;
        self.insert(&container)?;
        match self.make(&container, request, spec).await {
            Ok(pid) => Ok(pid),
            Err(error) => {
                self.containers().remove(&request.id);
                Err(error)
            }
        }
    }

    fn insert(&self, container: &Arc<Container>) -> Result<()> {
        let mut containers = self.containers();
        let id = container.id();
        if containers.contains_key(id) {
            return Err(Error::Exists(format!("container {id} exists already")));
        }
        containers.insert(id.to_owned(), container.clone());
        Ok(())
    }

    async fn make(
        &self,
        container: &Arc<Container>,
        request: &CreateTaskRequest,
        spec: Spec,
    ) -> Result<u32> {
        let process = &container.init.process;
        let size = *container.init.size();
        let (prepared, io) = prepare(&process.stdio, size).await.map_err(Error::failed)?;
        let home = self.home.get_or_init(|| container.bundle.clone());
        remains::add_member(home, &request.id, &container.bundle, &spec).map_err(|error| {
            Error::Failed(format!("cannot write to {}: {error}", home.display()))
        })?;
        let (engine, launched, streams) = build(&container.bundle, request, spec, io, prepared)
            .inspect_err(|_| {
                clear(&container.bundle);
                remains::remove_member(home, &request.id);
            })?;
        let pid = launched.pid;
        *process.streams() = Some(streams);
        let live = Live {
            pidfd: launched.pidfd,
            terminal: launched.terminal,
        };
        // Nobody else sets it.
        let _ = container.init.live.set(live);
        // In one step with the process's birth, so that its end cannot be missed.
        self.reaper.register(pid, container.init.clone());
        if let Err(error) = self.oom.watch(&request.id, engine.cgroup_path()) {
            tracing::warn!(container = request.id, %error, "cannot watch for lack of memory");
        }
        *container
            .engine
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(engine);
        process.state().created(pid).map_err(Error::failed)?;
        process.tell_created(request, pid, &self.publisher);
        Ok(pid)
    }

    /// Removes a container that has ended or never started.
    ///
    /// # Errors
    /// While it runs, or when something of it cannot be removed; it can be tried again.
    pub async fn delete(&self, id: &str) -> Result<DeleteResponse> {
        let container = self.container(id)?;
        drop(container.making.lock().await);
        let init = &container.init.process;
        init.state()
            .deletable()
            .map_err(|error| Error::State(format!("container {id}: {error}")))?;
        if init.state().exit().is_none() {
            container.with(|engine| engine.kill(libc::SIGKILL).map_err(Error::failed))?;
            init.wait().await;
        }
        container.with(|engine| engine.delete(true).map_err(Error::failed))?;
        self.oom.forget(id);
        rootfs::remove(&root(&container.bundle)).map_err(Error::failed)?;
        remove_room(&container.bundle);
        if let Some(home) = self.home.get() {
            remains::remove_member(home, id);
        }
        for exec in container.execs().values() {
            drop(exec.process.streams().take());
        }
        init.drain().await;
        if self.containers().remove(id).is_none() {
            return Err(Error::NotFound(format!(
                "container {id} is deleted already"
            )));
        }
        Ok(init.tell_deleted(&self.publisher))
    }
}

impl SharedPod {
    /// Kills whatever runs and removes it all.
    pub async fn stop(&self) {
        for container in self.all() {
            let id = container.id();
            let killed =
                container.with(|engine| engine.kill_all(libc::SIGKILL).map_err(Error::failed));
            if let Err(error) = killed {
                tracing::warn!(container = id, %error, "cannot kill it");
                continue;
            }
            container.init.process.wait().await;
            if let Err(error) = self.delete(id).await {
                tracing::warn!(container = id, %error, "cannot remove it");
            }
        }
        self.remove_sandbox().await;
    }
}

/// Mounts the root file system and has the engine make the container.
fn build(
    bundle: &Path,
    request: &CreateTaskRequest,
    mut spec: Spec,
    io: runtime::Io,
    prepared: Prepared,
) -> Result<(runtime::Container, Launched, Streams)> {
    let room = room(bundle);
    fs::create_dir_all(&room)
        .map_err(|error| Error::Failed(format!("cannot make {}: {error}", room.display())))?;
    rootfs::make(&request.rootfs, &root(bundle), &room).map_err(Error::failed)?;
    if let Some(process) = spec.process_mut() {
        // What containerd connects counts.
        process.set_terminal(Some(request.terminal));
    }
    let (mut engine, launched) = runtime::Container::create(CreateOptions {
        id: request.id.clone(),
        bundle: bundle.to_owned(),
        spec,
        state_dir: room,
        io,
        cgroup: CgroupDriver::Cgroupfs,
        launch: runtime::LaunchOptions::default(),
    })
    .map_err(Error::failed)?;
    match prepared.attach(launched.terminal.as_ref()) {
        Ok(streams) => Ok((engine, launched, streams)),
        Err(error) => {
            // The process is collected like any other that nobody knows.
            if let Err(error) = engine.delete(true) {
                tracing::warn!(container = request.id, %error, "cannot remove it");
            }
            Err(Error::failed(error))
        }
    }
}

/// Takes back what [`build`] has made beside the engine.
fn clear(bundle: &Path) {
    if let Err(error) = rootfs::remove(&root(bundle)) {
        tracing::warn!(%error, "cannot take back what was made of a container");
    }
    remove_room(bundle);
}

fn remove_room(bundle: &Path) {
    let room = room(bundle);
    if let Err(error) = fs::remove_dir_all(&room) {
        tracing::warn!(%error, room = %room.display(), "cannot remove what is kept of a container");
    }
}

/// Whether the kernel ends the container's processes with its first one.
fn has_own_pids(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    namespaces
        .unwrap_or_default()
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}
