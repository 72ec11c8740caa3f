//! From nothing to a guest whose agent is ready.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use network::Attachment;
use tokio::sync::mpsc::Sender;
use tokio::task::spawn_blocking;
use vmm::{ClientError, RunFiles, Vmm};

use super::end::remove_state;
use super::events::{Events, channel, watch};
use super::preparation::{attach_network, blocking, make_scratch, make_vm, record, undo};
use super::{Backing, DOCTOR, Parts, Plan, Process, VSOCK, Vm};
use crate::error::{Error, Result, chain};
use crate::guest::Vsock;
use crate::host::record::{self, Record, StateDir};
use crate::stages::Stages;
use crate::vmm_log::VmmLog;

/// How long a guest may take from power-on until its agent answers. A node under
/// load boots slowly; a guest that hangs must still fail.
const READY_TIME: Duration = Duration::from_secs(120);

impl Vm {
    /// Makes a VM and boots it until its agent is ready.
    ///
    /// # Errors
    /// Names what is missing or failed; nothing is left then.
    pub async fn start(plan: &Plan, stages: &Arc<Stages>) -> Result<(Arc<Self>, Events)> {
        let root = &plan.config.state_dir;
        let mut record = record(plan)?;
        let state =
            StateDir::create(root, &record, plan.bundle.as_deref()).map_err(|error| match error
                .kind()
            {
                std::io::ErrorKind::AlreadyExists => {
                    Error::Exists(format!("sandbox {} exists already", plan.id))
                }
                _ => Error::Failed(format!(
                    "cannot make the state directory of sandbox {} in {}: {error}",
                    plan.id,
                    root.display()
                )),
            })?;

        // Three things that need nothing of each other.
        let timed = stages.clone();
        let (network, scratch, made) = tokio::join!(
            blocking(plan, stages, "network", attach_network),
            blocking(plan, stages, "scratch", make_scratch),
            blocking(plan, stages, "vm", move |plan| make_vm(plan, &timed)),
        );
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                remove_state(&state);
                return Err(error);
            }
        };
        let both = network.and_then(|network| scratch.map(|scratch| (network, scratch)));
        let (attachment, scratch) = match both {
            Ok(both) => both,
            Err(error) => {
                undo(made.vmm, made.cgroup).await;
                remove_state(&state);
                return Err(error);
            }
        };

        name_vmm(&mut record, &made.vmm);
        record.filter = attachment
            .as_ref()
            .and_then(Attachment::remains)
            .map(|remains| (remains.interface, remains.handle));
        let process = match Process::of(&made.vmm, made.log) {
            Ok(process) => process,
            Err(error) => {
                undo(made.vmm, made.cgroup).await;
                remove_state(&state);
                return Err(error);
            }
        };
        let (sender, events) = channel();
        let vm = Arc::new(Self {
            id: plan.id.clone(),
            namespace: plan.namespace.clone(),
            config: plan.config.clone(),
            process: Mutex::new(Some(Arc::new(process))),
            death: tokio::sync::OnceCell::new(),
            oom_score: AtomicI32::new(0),
            events: sender.downgrade(),
            dormant: Mutex::new(None),
            killed: AtomicBool::new(false),
            vsock: Vsock::new(state.socket_path(VSOCK)),
            booted: made.boots,
            stray: Mutex::new(made.stray),
            cgroup: made.cgroup,
            home: Mutex::new(None),
            endpoint: attachment
                .as_ref()
                .map(|attachment| attachment.endpoint().clone()),
            parts: Mutex::new(Some(Parts {
                vmm: Some(made.vmm),
                backing: None,
                saved: None,
                attachment,
                state,
                record,
            })),
            released: AtomicBool::new(false),
        });
        match vm.run(stages, scratch, sender, events).await {
            Ok(events) => Ok((vm, events)),
            Err(error) => {
                vm.release().await;
                Err(error)
            }
        }
    }

    /// Lets it run until its agent is ready.
    async fn run(
        self: &Arc<Self>,
        stages: &Arc<Stages>,
        scratch: File,
        sender: Sender<vmm::Event>,
        mut events: Events,
    ) -> Result<Events> {
        let (vm, timed) = (self.clone(), stages.clone());
        let stream =
            spawn_blocking(move || timed.time_blocking("run", || vm.run_blocking(scratch)))
                .await
                .map_err(Error::failed)?;
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                self.kill();
                let said = match self.process() {
                    Some(process) => process.log.last_words().await,
                    None => String::new(),
                };
                let error = match said.is_empty() {
                    true => error,
                    false => error.context(&format!("the VMM said {said:?}")),
                };
                return Err(self.lost(error.to_string()));
            }
        };
        watch(stream, sender)?;
        if !self.booted {
            // The agent was ready before the template was made.
            return Ok(events);
        }
        match stages.time("ready", self.wait_ready(&mut events)).await {
            Ok(()) => Ok(events),
            Err(reason) => Err(Error::Failed(format!(
                "the guest's agent did not answer: {}",
                self.bury(&reason).await
            ))),
        }
    }

    fn run_blocking(&self, scratch: File) -> Result<UnixStream> {
        let mut parts = self.parts();
        let parts = parts.as_mut().ok_or_else(|| self.gone())?;
        let vmm = parts.vmm.as_mut().ok_or_else(|| self.gone())?;
        let io = |what: &str, error: std::io::Error| Error::Failed(format!("{what}: {error}"));

        parts
            .state
            .write_record(&parts.record)
            .map_err(|error| io("cannot write the sandbox's record", error))?;
        let listener = UnixListener::bind(self.vsock.path())
            .map_err(|error| io("cannot listen for connections to the guest", error))?;
        let backing = Backing {
            scratch,
            listener,
            tap: parts.attachment.as_mut().and_then(Attachment::take_tap),
            images: Vec::new(),
            shares: None,
            disks: Vec::new(),
        };
        backing.run(vmm)?;
        parts.backing = Some(backing);
        vmm.events()
            .map_err(|error| io("the VMM's event socket", error))
    }

    /// An error says in words why the agent is not there.
    async fn wait_ready(&self, events: &mut Events) -> std::result::Result<(), String> {
        match tokio::time::timeout(READY_TIME, events.recv()).await {
            Ok(Some(vmm::Event::Ready)) => Ok(()),
            // No file system is attached before the agent is there, so that is as bad.
            Ok(Some(vmm::Event::Stopped { reason } | vmm::Event::FsLost { reason })) => Err(reason),
            // Not asked for yet.
            Ok(Some(vmm::Event::MemoryResized { .. })) => {
                Err("it reports memory before its agent".into())
            }
            Ok(None) => Err(format!("the VMM has died; {DOCTOR}")),
            Err(_) => Err(format!(
                "nothing was heard of it for {} s; {DOCTOR}",
                READY_TIME.as_secs()
            )),
        }
    }
}

impl Backing {
    /// Lets a VM run that has not run yet.
    pub(super) fn run(&self, vmm: &mut Vmm) -> Result<()> {
        let size = self.scratch.metadata();
        let size = size.map_err(|error| Error::Failed(format!("the scratch disk: {error}")))?;
        let files = RunFiles {
            scratch: self.scratch.as_fd(),
            vsock_listener: self.listener.as_fd(),
            tap: self.tap.as_ref().map(AsFd::as_fd),
            outlets: None,
        };
        vmm.run(files, size.len(), vmm::offloads())
            .map_err(|error| Error::Failed(format!("cannot run the VM: {}", chain(&error))))
    }

    /// Gives a VM that was saved, and has not run since, what was attached to it.
    pub(super) fn attach(&self, vmm: &mut Vmm) -> std::result::Result<(), ClientError> {
        for image in &self.images {
            vmm.map_image(image.offset, image.length, image.file.as_fd())?;
        }
        if let Some(shares) = &self.shares {
            vmm.attach_fs(shares)?;
        }
        for disk in &self.disks {
            let file = disk.file.as_fd();
            vmm.attach_disk(file, disk.size, disk.read_only, Some(disk.slot))?;
        }
        Ok(())
    }
}

impl Process {
    /// That of this VMM, whose messages can be read from `log`.
    pub(super) fn of(vmm: &Vmm, log: OwnedFd) -> Result<Self> {
        let pidfd = vmm.pidfd().try_clone_to_owned();
        Ok(Self {
            pid: vmm.pid(),
            pidfd: pidfd.map_err(|error| Error::Failed(format!("the VMM's process: {error}")))?,
            log: VmmLog::follow(log),
        })
    }
}

/// Says in the record which process the VMM is.
pub(super) fn name_vmm(record: &mut Record, vmm: &Vmm) {
    record.vmm_pid = i32::try_from(vmm.pid()).unwrap_or_default();
    record.vmm_started = record::start_time(record.vmm_pid)
        .ok()
        .flatten()
        .unwrap_or_default();
}
