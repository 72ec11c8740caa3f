//! Making and removing containers.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, DeleteResponse};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::{self, Code};
use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::Spec;
use protocol::guest::CreateOptions;
use protocol::ids;
use tokio::task::spawn_blocking;

use super::growth::Share;
use super::patience::Outcome;
use super::{Container, Sandbox, limits};
use crate::error::{Error, Result};
use crate::guest;
use crate::guest_spec;
use crate::images::rootfs::Rootfs;
use crate::process::{KILLED, Process};
use crate::streams::{Stdio, Streams};
use crate::task_state::{Exit, TaskState};

/// A layer of a container's root filesystem in the image window.
#[derive(Clone, Copy)]
struct Layer {
    offset: u64,
    size: u64,
}

impl Sandbox {
    /// Makes a container from containerd's request and its spec. Returns its pid
    /// in the guest.
    ///
    /// # Errors
    /// Names what cannot be honoured or failed; nothing of it is left then.
    pub async fn create_container(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        spec: &Spec,
    ) -> Result<u32> {
        if !self.running() {
            return Err(Error::State(format!("sandbox {} has ended", self.id)));
        }
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported(
                "a container in a VM cannot be restored from a checkpoint".into(),
            ));
        }
        let pids: Vec<u32> = self
            .containers()
            .values()
            .map(|container| container.init.state().pid())
            .collect();
        let edited = guest_spec::container(
            spec,
            &request.id,
            &guest_spec::Pod {
                sandbox_pids: [self.first_pid, self.vm.pid()],
                container_pids: &pids,
                alone: self.alone(),
                etc: self.etc.as_ref(),
            },
        )
        .map_err(Error::invalid)?;
        let rootfs = Rootfs::from_mounts(&request.rootfs).map_err(Error::invalid)?;
        let resources = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref());
        let mut share = Share::default();
        if let Some(resources) = resources {
            self.warn_of_limits(&request.id, resources);
            share = share.with(resources);
        }

        let container = Arc::new(Container {
            given_back: Mutex::new(edited.wanted.given_back),
            ending: AtomicBool::new(false),
            init: Arc::new(Process::new(
                &request.id,
                "",
                &request.bundle,
                &self.streams,
                Stdio {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                },
                TaskState::Creating { early: None },
            )),
            execs: Mutex::new(HashMap::new()),
            making: tokio::sync::Mutex::new(()),
            standing: Mutex::new(limits::Standing::of(spec)),
            share: Mutex::new(share),
        });
        let _making = container.making.lock().await;
        // Known from here on, so that an exit that overtakes the answer counts, and
        // so that it can be deleted if containerd gives it up.
        self.insert(&request.id, &container)?;
        // Meanwhile: its start waits for it.
        self.grow();
        let options = CreateOptions {
            spec: edited.json,
            files: edited.wanted.files,
            ..Default::default()
        };
        let created = async {
            let wanted = (edited.wanted.volumes, edited.wanted.disks);
            // Building images and starting virtiofsd take a while, and neither needs
            // the other.
            let (layers, prepared) = tokio::join!(
                self.show_layers(&rootfs),
                self.volumes
                    .prepare(&self.vm, &request.id, wanted.0, wanted.1)
            );
            let (layers, prepared) = (layers?, prepared?);
            let options = CreateOptions {
                volumes: prepared.volumes,
                share_device: prepared.share_device,
                disks: prepared.disks,
                ..options
            };
            let mounts = guest_mounts(&layers, &rootfs);
            self.forward_create(request, &container, options, mounts)
                .await
        };
        match created.await {
            Ok(pid) => {
                self.settle();
                Ok(pid)
            }
            Err(error) => {
                self.release_volumes(&request.id).await;
                self.containers().remove(&request.id);
                self.grow();
                Err(error)
            }
        }
    }

    async fn release_volumes(&self, id: &str) {
        tokio::select! {
            () = self.volumes.release(&self.vm, &self.guest, id) => {}
            // They went with the VM.
            () = self.wait_ended() => {}
        }
    }

    async fn forward_create(
        &self,
        request: &CreateTaskRequest,
        container: &Container,
        options: CreateOptions,
        rootfs: Vec<Mount>,
    ) -> Result<u32> {
        let init = &container.init;
        let ids = &init.stream_ids;
        let streams = Streams::open(&init.stdio, ids, &self.guest.vsock)
            .await
            .map_err(Error::failed)?;
        *init.streams() = Some(streams);
        let options = options.write_to_bytes().map_err(Error::failed)?;
        guest::check_size(
            options.len(),
            "the container's config.json and the files it binds",
        )?;
        let message = CreateTaskRequest {
            id: request.id.clone(),
            rootfs,
            terminal: request.terminal,
            stdin: ids.stdin.clone(),
            stdout: ids.stdout.clone(),
            stderr: ids.stderr.clone(),
            options: MessageField::some(Any {
                type_url: ids::CREATE_OPTIONS.to_owned(),
                value: options,
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = self
            .awake()?
            .task
            .create(guest::bounded(), &message)
            .await?;
        let early = init.state().created(answer.pid).map_err(Error::failed)?;
        init.tell_created(request, answer.pid, &self.publisher);
        if let Some(exit) = early {
            init.finish(exit, &self.publisher);
        }
        Ok(answer.pid)
    }

    /// Removes a container that has ended or never started.
    ///
    /// # Errors
    /// While it runs, or when the agent cannot remove it.
    pub async fn delete_container(self: &Arc<Self>, id: &str) -> Result<DeleteResponse> {
        let container = self.container(id)?;
        drop(container.making.lock().await);
        if self.container(id).is_err() {
            return Err(Error::NotFound(format!(
                "container {id} could not be created"
            )));
        }
        let init = &container.init;
        init.state()
            .deletable()
            .map_err(|error| Error::State(format!("container {id}: {error}")))?;
        if self.running() {
            self.forward_delete(id, "").await?;
            self.release_volumes(id).await;
        }
        // A container that never started ends here.
        init.finish(Exit::now(KILLED), &self.publisher);
        init.drain().await;
        if self.containers().remove(id).is_none() {
            return Err(Error::NotFound(format!(
                "container {id} is deleted already"
            )));
        }
        if self.running() {
            self.settle();
            self.grow();
        }
        Ok(init.tell_deleted(&self.publisher))
    }

    /// Has the agent remove a process. One that it does not know, or that went
    /// with the VM, is removed. The end of an exec is no stop, so an agent that does not
    /// answer to it is left alone: it removes it when it is there again.
    pub(super) async fn forward_delete(&self, id: &str, exec: &str) -> Result<()> {
        let request = DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let call = self.awake()?.task.delete(guest::bounded(), &request);
        let outcome = if exec.is_empty() {
            self.insist(call).await
        } else {
            self.suggest(call).await
        };
        match outcome {
            Outcome::Refused(ttrpc::Error::RpcStatus(status))
                if status.code() == Code::NOT_FOUND =>
            {
                Ok(())
            }
            Outcome::Refused(error) => Err(error.into()),
            Outcome::Answered(_) | Outcome::Silent | Outcome::Ended => Ok(()),
        }
    }

    fn insert(&self, id: &str, container: &Arc<Container>) -> Result<()> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(Error::Exists(format!("container {id} exists already")));
        }
        containers.insert(id.to_owned(), container.clone());
        Ok(())
    }

    /// Puts the layers into the image window, topmost first.
    async fn show_layers(self: &Arc<Self>, rootfs: &Rootfs) -> Result<Vec<Layer>> {
        let store = self.blobs.clone();
        let directories = rootfs.layers.clone();
        let blobs = spawn_blocking(move || {
            directories
                .iter()
                .map(|directory| store.get(directory))
                .collect::<std::result::Result<Vec<_>, _>>()
        })
        .await
        .map_err(Error::failed)?
        .map_err(Error::failed)?;

        let mut layers = Vec::with_capacity(blobs.len());
        let mut window = self.window.lock().await;
        for blob in blobs {
            let size = blob.size;
            let offset = match window.place(&blob.key) {
                Some(offset) => offset,
                None => {
                    let offset = window.free(size).map_err(Error::failed)?;
                    self.vm.map_image(offset, size, blob.file).await?;
                    window.shown(&blob.key, offset, size);
                    offset
                }
            };
            layers.push(Layer { offset, size });
        }
        Ok(layers)
    }
}

/// The root filesystem as the agent mounts it.
fn guest_mounts(layers: &[Layer], rootfs: &Rootfs) -> Vec<Mount> {
    let mut mounts: Vec<_> = layers
        .iter()
        .map(|layer| Mount {
            type_: "erofs".into(),
            options: [
                format!("offset={}", layer.offset),
                format!("size={}", layer.size),
            ]
            .into_iter()
            .chain(rootfs.idmap.then(|| "idmap".to_owned()))
            .collect(),
            ..Default::default()
        })
        .collect();
    if rootfs.writable {
        mounts.push(Mount {
            type_: "scratch".into(),
            ..Default::default()
        });
    }
    mounts
}
