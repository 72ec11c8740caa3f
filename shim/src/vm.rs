//! The pod's VM and all that it has on the host: made side by side, taken apart
//! in one place.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use network::{Attachment, Endpoint};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use vmm::{BootFiles, NetSpec, VmSpec, Vmm};

use crate::config::Config;
use crate::error::{Error, Result, chain};
use crate::guest::Vsock;
use crate::host::cgroup::{self, Cgroup};
use crate::host::record::{self, Record, StateDir};
use crate::host::uids::UidLease;
use crate::host::{dead, files, oom_score, scratch};
use crate::pod::Size;
use crate::printable::printable;
use crate::stages::Stages;
use crate::vmm_log::VmmLog;

/// How long a guest may take from power-on until its agent answers. A node under
/// load boots slowly; a guest that hangs must still fail.
const READY_TIME: Duration = Duration::from_secs(120);

/// How long the VMM may take to tell the kernel's log of a guest that is lost.
const LOG_TIME: Duration = Duration::from_secs(1);

/// Longest line of the kernel's log, in bytes: more than the VMM makes.
const MAX_LINE: usize = 8 << 10;

/// Where a VM that does not boot is explained.
const DOCTOR: &str = "`joeyctl doctor` tells whether this host can run VMs";

/// Names in the state directory.
pub const VSOCK: &str = "vsock";
const CONSOLE: &str = "console.log";

/// What a VM is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sandbox.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's directory of the sandbox.
    pub bundle: PathBuf,
    /// The pod's network namespace, if it has one.
    pub netns: Option<PathBuf>,
    /// As the OCI spec names it.
    pub cgroups_path: PathBuf,
    /// The pod's name and Kubernetes namespace, if it is one's.
    pub pod: (String, String),
    /// The shim's socket.
    pub socket: PathBuf,
    /// How large.
    pub size: Size,
    /// The operator's settings.
    pub config: Arc<Config>,
}

/// A VM. [`Vm::release`] ends it and removes what it has.
pub struct Vm {
    id: String,
    namespace: String,
    config: Arc<Config>,
    pid: u32,
    vsock: Vsock,
    size: Size,
    cgroup: Cgroup,
    log: VmmLog,
    /// Set once, by whoever first finds that the guest is lost.
    death: tokio::sync::OnceCell<String>,
    /// The cgroup that this process was in before it moved into the pod's.
    home: Mutex<Option<PathBuf>>,
    endpoint: Option<Endpoint>,
    parts: Mutex<Option<Parts>>,
    released: AtomicBool,
}

/// What ends with the VM, in the order in which it goes.
struct Parts {
    vmm: Vmm,
    attachment: Option<Attachment>,
    _uid: UidLease,
    state: StateDir,
    record: Record,
}

/// What the VMM says unasked. The channel closes when the VMM is gone.
pub type Events = mpsc::UnboundedReceiver<vmm::Event>;

/// The VM's files, apart from its TAP.
struct Files {
    kvm: File,
    kernel: File,
    agent: File,
    scratch: File,
}

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
        record.vmm_started = record::start_time(record.vmm_pid).unwrap_or_default();
        record.filter = attachment
            .as_ref()
            .and_then(Attachment::remains)
            .map(|remains| (remains.interface, remains.handle));
        let vm = Arc::new(Self {
            id: plan.id.clone(),
            namespace: plan.namespace.clone(),
            config: plan.config.clone(),
            log: VmmLog::follow(process.log),
            death: tokio::sync::OnceCell::new(),
            pid: process.vmm.pid(),
            vsock: Vsock::new(state.socket_path(VSOCK)),
            size: plan.size,
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
        match vm.boot(plan, stages, files, process.uid_number).await {
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
            vcpus: plan.size.vcpus,
            memory_mib: plan.size.memory_mib,
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

    fn boot_blocking(
        &self,
        spec: &VmSpec,
        files: &Files,
    ) -> Result<std::os::unix::net::UnixStream> {
        let mut parts = self.parts();
        let parts = parts.as_mut().ok_or_else(|| self.gone())?;
        let io = |what: &str, error: std::io::Error| Error::Failed(format!("{what}: {error}"));

        parts
            .state
            .write_record(&parts.record)
            .map_err(|error| io("cannot write the sandbox's record", error))?;
        let listener = std::os::unix::net::UnixListener::bind(self.vsock.path())
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
            Ok(None) => Err(format!("the VMM has died; {DOCTOR}")),
            Err(_) => Err(format!(
                "nothing was heard of it for {} s; {DOCTOR}",
                READY_TIME.as_secs()
            )),
        }
    }

    /// The guest is lost for this reason. Keeps what is known of it; returns the reason
    /// with the last of what the guest's kernel said and where all of it is. The first
    /// call counts: what is found later is its consequence.
    pub async fn bury(self: &Arc<Self>, reason: &str) -> String {
        let obituary = async {
            let kernel = self.kernel_log().await.unwrap_or_default();
            let vmm = self.log.so_far();
            let text = format!(
                "sandbox {} in namespace {}\n{reason}\n\nmessages of the VMM:\n{vmm}\n\
                 messages of the guest's kernel and agent:\n{kernel}",
                self.id, self.namespace
            );
            let (data_dir, namespace, id) = (
                self.config.data_dir.clone(),
                self.namespace.clone(),
                self.id.clone(),
            );
            let kept = spawn_blocking(move || dead::keep(&data_dir, &namespace, &id, &text)).await;
            let place = match kept {
                Ok(Ok(path)) => format!("; see {}", path.display()),
                Ok(Err(error)) => format!("; its log cannot be kept: {error}"),
                Err(error) => format!("; its log cannot be kept: {error}"),
            };
            let said = match dead::last_lines(if kernel.is_empty() { &vmm } else { &kernel }) {
                said if said.is_empty() => said,
                said => format!("; it said last: {said}"),
            };
            format!("{reason}{place}{said}")
        };
        self.death.get_or_init(|| obituary).await.clone()
    }

    /// Whether somebody has found that the guest is lost.
    pub fn is_buried(&self) -> bool {
        self.death.initialized()
    }

    /// The newest of what the guest's kernel and agent have said.
    ///
    /// # Errors
    /// When the VMM does not answer in a moment, or finds no log.
    pub async fn kernel_log(self: &Arc<Self>) -> Result<String> {
        let log = self.ask("cannot read the guest kernel's log", |vmm| {
            // A VMM that hangs is of no use any more.
            vmm.kernel_log_within(LOG_TIME)
        });
        let text = log.await?;
        Ok(text
            .lines()
            .map(|line| printable(line.as_bytes(), MAX_LINE) + "\n")
            .collect())
    }

    /// What the VM's devices have done.
    ///
    /// # Errors
    /// When the VMM does not answer in a moment.
    pub async fn stats(self: &Arc<Self>) -> Result<vmm::Stats> {
        self.ask("cannot read the VMM's counters", |vmm| {
            vmm.stats_within(LOG_TIME)
        })
        .await
    }

    /// The VMM's pid: what containerd takes for the sandbox's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn raw_pid(&self) -> i32 {
        i32::try_from(self.pid).unwrap_or_default()
    }

    /// The operator's settings when it was made.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The way into the guest.
    pub fn vsock(&self) -> &Vsock {
        &self.vsock
    }

    /// The pod's cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The pod's network, if it has one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// Says how willingly the host's kernel kills the VMM when it is out of memory.
    pub fn set_oom_score(&self, score: i32) {
        // Not reaped before `release`, so the pid is still its own.
        if !self.released.load(Ordering::Acquire) {
            set_oom_score(self.pid, score);
        }
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Moves this process into the pod's cgroup, beside the VMM. Nobody waits for
    /// it: the kernel takes its time, and a pod does not start for the sake of its
    /// accounts. Blocks.
    pub fn adopt_shim(&self) {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that a move is never missed by `release`.
        if home.is_some() || self.released.load(Ordering::Acquire) {
            return;
        }
        match self.cgroup.enter() {
            Ok(was) => *home = Some(was),
            Err(error) => tracing::warn!(
                sandbox = self.id,
                error = chain(&error),
                "the pod does not pay for its shim"
            ),
        }
    }

    /// Undoes [`Vm::adopt_shim`].
    fn return_shim(&self) {
        let home = self
            .home
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(home) = home
            && let Err(error) = Cgroup::leave(&home)
        {
            tracing::warn!(
                sandbox = self.id,
                error = chain(&error),
                "leaving the pod's cgroup"
            );
        }
    }

    /// Shows `length` bytes of a file in the image window.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn map_image(self: &Arc<Self>, offset: u64, length: u64, file: File) -> Result<()> {
        self.ask("cannot show an image to the guest", move |vmm| {
            vmm.map_image(offset, length, file.as_fd())
        })
        .await
    }

    /// Lets the guest bring a vCPU online.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn online_cpu(self: &Arc<Self>, cpu: u8) -> Result<()> {
        self.ask("cannot start a vCPU", move |vmm| vmm.online_cpu(cpu))
            .await
    }

    /// Puts a file server behind the VM's file system device. Returns the device's name
    /// in the guest.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn attach_fs(
        self: &Arc<Self>,
        socket: std::os::unix::net::UnixStream,
    ) -> Result<String> {
        self.ask("cannot attach the file system", move |vmm| {
            vmm.attach_fs(socket.as_fd())
        })
        .await
    }

    /// Puts the first `size` bytes of a file behind a spare disk. Returns its slot, and
    /// the device's name in the guest.
    ///
    /// # Errors
    /// When the VMM refuses, as when all spare disks are taken, or is gone.
    pub async fn attach_disk(
        self: &Arc<Self>,
        file: File,
        size: u64,
        read_only: bool,
    ) -> Result<(u8, String)> {
        self.ask("cannot attach the disk", move |vmm| {
            vmm.attach_disk(file.as_fd(), size, read_only)
        })
        .await
    }

    /// Makes a disk's data durable and takes it back.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn detach_disk(self: &Arc<Self>, slot: u8) -> Result<()> {
        self.ask("cannot detach the disk", move |vmm| vmm.detach_disk(slot))
            .await
    }

    /// Writes a file in the sandbox's state directory; a failure is logged.
    pub fn note(&self, name: &str, content: &[u8]) {
        if let Some(parts) = self.parts().as_ref()
            && let Err(error) = parts.state.write(name, content)
        {
            tracing::warn!(name, %error, "cannot write in the state directory");
        }
    }

    /// Kills the VMM, and with it the guest. What it had stays until
    /// [`Vm::release`].
    pub fn kill(&self) {
        if self.released.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.cgroup.kill() {
            tracing::warn!(error = chain(&error), "cannot kill the pod's cgroup");
        }
        if self.raw_pid() > 0 {
            // It is our child and not reaped, so the pid is still its own.
            let _ = kill(Pid::from_raw(self.raw_pid()), Signal::SIGKILL);
        }
    }

    /// Ends the VM and removes all that it has on the host. Only the first call
    /// does anything.
    pub async fn release(self: &Arc<Self>) {
        self.kill();
        if self.released.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(parts) = self.parts().take() else {
            return;
        };
        let vm = self.clone();
        // The move takes as long as the VMM's end; neither needs the other.
        let returned = spawn_blocking({
            let vm = self.clone();
            move || vm.return_shim()
        });
        let released = spawn_blocking(move || {
            let id = &vm.id;
            let Parts {
                vmm,
                attachment,
                _uid,
                state,
                record: _,
            } = parts;
            // Waits for the process, which has been killed.
            drop(vmm);
            if let Some(attachment) = attachment
                && let Err(error) = attachment.detach()
            {
                tracing::warn!(sandbox = id, error = chain(&error), "detaching the network");
            }
            // Until the move back is through, the shim is in the way.
            if let Err(error) = vm.cgroup.remove() {
                tracing::warn!(sandbox = id, error = chain(&error), "removing the cgroup");
            }
            remove_state(&state);
        });
        for step in [returned, released] {
            if let Err(error) = step.await {
                tracing::error!(%error, "taking the VM apart");
            }
        }
    }

    async fn ask<T: Send + 'static, E: std::error::Error + Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        action: impl FnOnce(&mut Vmm) -> std::result::Result<T, E> + Send + 'static,
    ) -> Result<T> {
        let vm = self.clone();
        spawn_blocking(move || {
            let mut parts = vm.parts();
            let parts = parts.as_mut().ok_or_else(|| vm.gone())?;
            action(&mut parts.vmm).map_err(|error| Error::failed(error).context(what))
        })
        .await
        .map_err(Error::failed)?
    }

    fn parts(&self) -> MutexGuard<'_, Option<Parts>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> Error {
        Error::State(format!("the VM of sandbox {} has ended", self.id))
    }
}

/// A VMM that waits for its spec.
struct Spawned {
    vmm: Vmm,
    cgroup: Cgroup,
    uid: UidLease,
    uid_number: u32,
    log: OwnedFd,
}

impl Spawned {
    async fn undo(self) {
        let Self { vmm, cgroup, .. } = self;
        let undone = spawn_blocking(move || {
            drop(vmm);
            cgroup.remove()
        });
        if let Ok(Err(error)) = undone.await {
            tracing::warn!(error = chain(&error), "removing the cgroup");
        }
    }
}

/// The sandbox's record, before anything of it is there.
fn record(plan: &Plan) -> Result<Record> {
    Ok(Record {
        cgroup: cgroup::place(&plan.cgroups_path).map_err(Error::failed)?,
        netns: plan.netns.clone(),
        pod: plan.pod.0.clone(),
        pod_namespace: plan.pod.1.clone(),
        vcpus: plan.size.vcpus,
        memory_mib: plan.size.memory_mib,
        socket: plan.socket.clone(),
        ..Record::new(&plan.namespace, &plan.id)
    })
}

async fn blocking<T: Send + 'static>(
    plan: &Plan,
    stages: &Arc<Stages>,
    name: &'static str,
    part: impl FnOnce(&Plan) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (plan, stages) = (plan.clone(), stages.clone());
    spawn_blocking(move || stages.time_blocking(name, || part(&plan)))
        .await
        .map_err(Error::failed)?
}

fn attach_network(plan: &Plan) -> Result<Option<Attachment>> {
    let Some(netns) = &plan.netns else {
        return Ok(None);
    };
    let attachment = network::attach(netns, &network::Options::default()).map_err(Error::failed)?;
    if let Some(attachment) = &attachment
        && !attachment.left_out().is_empty()
    {
        tracing::warn!(
            sandbox = plan.id,
            interfaces = ?attachment.left_out(),
            "only one interface of the pod is given to the guest"
        );
    }
    Ok(attachment)
}

fn open_files(plan: &Plan) -> Result<Files> {
    let config = &plan.config;
    Ok(Files {
        kvm: files::kvm().map_err(Error::failed)?,
        kernel: files::kernel(&config.kernel).map_err(Error::failed)?,
        agent: files::agent(&config.agent).map_err(Error::failed)?,
        scratch: scratch::create(&config.data_dir, config.scratch_mib).map_err(Error::failed)?,
    })
}

fn spawn_vmm(plan: &Plan) -> Result<Spawned> {
    let config = &plan.config;
    files::vmm(&config.vmm).map_err(Error::failed)?;
    let uid = UidLease::take(
        &config.state_dir,
        &plan.id,
        config.uid_base,
        config.uid_count,
    )
    .map_err(Error::failed)?;
    let cgroup = Cgroup::create(&plan.cgroups_path).map_err(Error::failed)?;
    match spawn_in(&config.vmm, &cgroup) {
        Ok((vmm, log)) => Ok(Spawned {
            vmm,
            log,
            cgroup,
            uid_number: uid.uid,
            uid,
        }),
        Err(error) => {
            if let Err(error) = cgroup.remove() {
                tracing::warn!(error = chain(&error), "removing the cgroup");
            }
            Err(error)
        }
    }
}

/// Starts the VMM; the other result is where its messages can be read.
fn spawn_in(binary: &Path, cgroup: &Cgroup) -> Result<(Vmm, OwnedFd)> {
    let open = |path: &Path, error| Error::Failed(format!("{}: {error}", path.display()));
    let dir = cgroup.vmm_dir();
    let dir = File::open(&dir).map_err(|error| open(&dir, error))?;
    let (messages, log) = std::io::pipe()
        .map_err(|error| Error::Failed(format!("cannot make a pipe for the VMM: {error}")))?;
    let log = File::from(OwnedFd::from(log));
    let vmm = Vmm::spawn(binary, Some(dir.as_fd()), Some(log)).map_err(Error::failed)?;
    // It inherits our own score, which protects it from the kernel's killer: a
    // guest that eats the host's memory shall not be protected.
    set_oom_score(vmm.pid(), 0);
    Ok((vmm, messages.into()))
}

fn set_oom_score(pid: u32, score: i32) {
    if let Err(error) = oom_score::set(pid, score) {
        tracing::warn!(pid, %error, "cannot set the VMM's OOM score");
    }
}

/// Reads the VMM's events until it is gone.
fn watch(stream: std::os::unix::net::UnixStream) -> Result<Events> {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
    /// Longest event in bytes. The VMM is not trusted with more.
    const MAX_EVENT: u64 = 8 << 10;

    let failed = |error: std::io::Error| Error::Failed(format!("the VMM's event socket: {error}"));
    stream.set_nonblocking(true).map_err(failed)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(failed)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut reader = BufReader::with_capacity(512, stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader)
                .take(MAX_EVENT)
                .read_until(b'\n', &mut line)
                .await;
            if !matches!(read, Ok(n) if n > 0) {
                return;
            }
            match serde_json::from_slice(&line) {
                Ok(event) => {
                    if sender.send(event).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the VMM's event cannot be read: giving it up");
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

fn remove_state(state: &StateDir) {
    if let Err(error) = state.remove() {
        tracing::warn!(path = %state.path().display(), %error, "removing the state directory");
    }
}
