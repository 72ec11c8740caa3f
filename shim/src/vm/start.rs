//! From nothing to a guest whose agent is ready.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use network::Attachment;
use tokio::task::spawn_blocking;
use vmm::{BootFiles, NetSpec, VmSpec};

use super::end::remove_state;
use super::events::{Events, watch};
use super::preparation::{Files, attach_network, blocking, open_files, record, spawn_vmm};
use super::{Parts, Plan, VSOCK, Vm};
use crate::error::{Error, Result, chain};
use crate::guest::Vsock;
use crate::host::record::{self, StateDir};
use crate::stages::Stages;
use crate::vmm_log::VmmLog;

/// How long a guest may take from power-on until its agent answers. A node under
/// load boots slowly; a guest that hangs must still fail.
const READY_TIME: Duration = Duration::from_secs(120);

/// Where a VM that does not boot is explained.
const DOCTOR: &str = "`joeyctl doctor` tells whether this host can run VMs";

/// Name in the state directory of what the guest writes to its serial port.
const CONSOLE: &str = "console.log";

impl Vm {
    /// Makes a VM and boots it until its agent is ready.
    ///
    /// # Errors
    /// Names what is missing or failed; nothing is left then.
    pub async fn start(plan: &Plan, stages: &Arc<Stages>) -> Result<(Arc<Self>, Events)> {
        let root = &plan.config.state_dir;
        let mut record = record(plan)?;
        let state =
            StateDir::create(root, &record, &plan.bundle).map_err(|error| match error.kind() {
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
        let (network, files, process) = tokio::join!(
            blocking(plan, stages, "network", attach_network),
            blocking(plan, stages, "files", open_files),
            blocking(plan, stages, "spawn", spawn_vmm),
        );
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                remove_state(&state);
                return Err(error);
            }
        };
        let (attachment, files) =
            match network.and_then(|network| files.map(|files| (network, files))) {
                Ok(both) => both,
                Err(error) => {
                    process.undo().await;
                    remove_state(&state);
                    return Err(error);
                }
            };

        record.vmm_pid = i32::try_from(process.vmm.pid()).unwrap_or_default();
        record.vmm_started = record::start_time(record.vmm_pid)
            .ok()
            .flatten()
            .unwrap_or_default();
        record.filter = attachment
            .as_ref()
            .and_then(Attachment::remains)
            .map(|remains| (remains.interface, remains.handle));
        let uid = process.uid.uid;
        let vm = Arc::new(Self {
            id: plan.id.clone(),
            namespace: plan.namespace.clone(),
            config: plan.config.clone(),
            log: VmmLog::follow(process.log),
            death: tokio::sync::OnceCell::new(),
            pid: process.vmm.pid(),
            vsock: Vsock::new(state.socket_path(VSOCK)),
            cgroup: process.cgroup,
            home: Mutex::new(None),
            endpoint: attachment
                .as_ref()
                .map(|attachment| attachment.endpoint().clone()),
            parts: Mutex::new(Some(Parts {
                vmm: process.vmm,
                attachment,
                _uid: process.uid,
                state,
                record,
            })),
            released: AtomicBool::new(false),
        });
        match vm.boot(plan, stages, files, uid).await {
            Ok(events) => Ok((vm, events)),
            Err(error) => {
                vm.release().await;
                Err(error)
            }
        }
    }

    async fn boot(
        self: &Arc<Self>,
        plan: &Plan,
        stages: &Arc<Stages>,
        files: Files,
        uid: u32,
    ) -> Result<Events> {
        let vm = self.clone();
        let config = plan.config.clone();
        let spec = VmSpec {
            id: plan.id.clone(),
            // The same for all pods: what this one asks for comes while it runs.
            vcpus: config.guest_vcpus(),
            memory_mib: config.memory_mib,
            hotplug_mib: config.hotplug_mib(),
            net: self.endpoint.as_ref().map(|endpoint| NetSpec {
                mac: endpoint.mac,
                mtu: u16::try_from(endpoint.mtu).unwrap_or(u16::MAX),
            }),
            uid,
            gid: uid,
            console: config.console,
        };
        let timed = stages.clone();
        let stream =
            spawn_blocking(move || timed.time_blocking("boot", || vm.boot_blocking(&spec, &files)))
                .await
                .map_err(Error::failed)?;
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                self.kill();
                return Err(match self.log.last_words().await {
                    said if said.is_empty() => error,
                    said => error.context(&format!("the VMM said {said:?}")),
                });
            }
        };
        let mut events = watch(stream)?;
        match stages.time("ready", self.wait_ready(&mut events)).await {
            Ok(()) => Ok(events),
            Err(reason) => Err(Error::Failed(format!(
                "the guest's agent did not answer: {}",
                self.bury(&reason).await
            ))),
        }
    }

    fn boot_blocking(&self, spec: &VmSpec, files: &Files) -> Result<UnixStream> {
        let mut parts = self.parts();
        let parts = parts.as_mut().ok_or_else(|| self.gone())?;
        let io = |what: &str, error: std::io::Error| Error::Failed(format!("{what}: {error}"));

        parts
            .state
            .write_record(&parts.record)
            .map_err(|error| io("cannot write the sandbox's record", error))?;
        let listener = UnixListener::bind(self.vsock.path())
            .map_err(|error| io("cannot listen for connections to the guest", error))?;
        let serial = spec
            .console
            .then(|| File::create(parts.state.path().join(CONSOLE)))
            .transpose()
            .map_err(|error| io("cannot make the console's log", error))?;
        let tap: Option<OwnedFd> = parts.attachment.as_mut().and_then(Attachment::take_tap);

        parts
            .vmm
            .boot(
                spec,
                BootFiles {
                    kvm: files.kvm.as_fd(),
                    kernel: files.kernel.as_fd(),
                    initramfs: files.agent.as_fd(),
                    scratch: files.scratch.as_fd(),
                    vsock_listener: listener.as_fd(),
                    tap: tap.as_ref().map(AsFd::as_fd),
                    serial: serial.as_ref().map(AsFd::as_fd),
                },
            )
            .map_err(|error| {
                Error::Failed(format!("cannot boot the VM: {}; {DOCTOR}", chain(&error)))
            })?;
        parts
            .vmm
            .events()
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
