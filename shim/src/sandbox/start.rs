//! Bringing a sandbox up: from a request to an agent that is configured.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::ttrpc;
use tokio::sync::watch as channel;

use super::growth::{self, Growth};
use super::{By, Sandbox, watch};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::forward::Forwarder;
use crate::guest::{self, Guest};
use crate::host::record;
use crate::images::blobs::BlobStore;
use crate::images::window::Window;
use crate::pod::{self, PodSpec};
use crate::process::Process;
use crate::stages::{self, Stages};
use crate::streams::Stdio;
use crate::task_state::TaskState;
use crate::vm::{Events, Plan, Vm};
use crate::volumes::Volumes;

/// Bytes of the host's randomness that a guest starts with.
const ENTROPY: usize = 64;

/// What a sandbox is started from, whichever of containerd's services asks.
pub struct Request {
    /// The sandbox's id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's directory of it.
    pub bundle: PathBuf,
    /// Which of containerd's services asks.
    pub by: By,
    /// What the pod asks for.
    pub pod: PodSpec,
    /// The shim's socket, where the node's tools find this sandbox.
    pub socket: PathBuf,
    /// The operator's settings.
    pub config: Arc<Config>,
    /// Where events go.
    pub publisher: Publisher,
}

impl Sandbox {
    /// Starts a sandbox.
    ///
    /// # Errors
    /// Names what is missing or failed; nothing is left then.
    pub async fn start(request: Request) -> Result<Arc<Self>> {
        let stages = Arc::new(Stages::default());
        let mut plan = Plan {
            id: request.id.clone(),
            namespace: request.namespace.clone(),
            bundle: Some(request.bundle.clone()),
            netns: request.pod.netns.clone(),
            cgroups_path: request.pod.cgroups_path.clone(),
            pod: request.pod.name.clone(),
            socket: request.socket.clone(),
            size: request.pod.size,
            templates: true,
            config: request.config.clone(),
        };
        let (vm, guest, events) = match bring_up(&request, &plan, &stages).await {
            Err(Error::Template(reason)) => {
                tracing::warn!(
                    reason,
                    "a VM from the template is of no use: the sandbox boots"
                );
                plan.templates = false;
                bring_up(&request, &plan, &stages).await?
            }
            other => other?,
        };
        let report = stages.report(&request.id);
        tracing::debug!(stages = report, "sandbox started");
        vm.note(stages::FILE, report.as_bytes());
        let sandbox = Self::run(request, vm, guest, events, stages);
        if sandbox.alone() {
            // Nobody asks for its start.
            sandbox.afterwards();
        }
        Ok(sandbox)
    }

    fn run(
        request: Request,
        vm: Arc<Vm>,
        guest: Guest,
        events: Events,
        stages: Arc<Stages>,
    ) -> Arc<Self> {
        let streams = AtomicU64::new(1);
        let process = (request.by != By::Container).then(|| {
            let state = TaskState::Created { pid: vm.pid() };
            let bundle = request.bundle.to_string_lossy();
            Arc::new(Process::new(
                &request.id,
                "",
                &bundle,
                &streams,
                Stdio::default(),
                state,
            ))
        });
        let config = &request.config;
        let state_dir = record::path(&config.state_dir, &request.namespace, &request.id);
        // After the start, which must not wait for it.
        let forwarder = request
            .pod
            .netns
            .map(|netns| Forwarder::start(netns, vm.vsock().clone()));
        let sandbox = Arc::new(Self {
            volumes: Volumes::new(config.virtiofsd.clone(), state_dir),
            blobs: BlobStore::new(request.config.data_dir.join("layers")),
            id: request.id,
            first_pid: vm.pid(),
            vm,
            guest,
            stages,
            publisher: request.publisher,
            listed: AtomicBool::new(request.by == By::Task),
            by: request.by,
            created: SystemTime::now(),
            etc: request.pod.etc,
            process,
            containers: Mutex::new(HashMap::new()),
            window: tokio::sync::Mutex::new(Window::default()),
            standing: Mutex::default(),
            growth: Growth::new(config, request.pod.size),
            streams,
            forwarder: Mutex::new(forwarder),
            requested: Mutex::new(None),
            silent: Mutex::new(None),
            unanswered: Mutex::new(None),
            pausing: tokio::sync::Mutex::default(),
            ended: channel::Sender::new(false),
        });
        tokio::spawn(watch::vm(sandbox.clone(), events));
        tokio::spawn(watch::agent(sandbox.clone()));
        tokio::spawn(watch::volumes(sandbox.clone()));
        tokio::spawn(growth::keep(sandbox.clone()));
        sandbox
    }
}

/// A VM whose agent is configured. Of one that does not get there nothing is left.
///
/// # Errors
/// When there is no VM, or its agent refuses or does not answer.
async fn bring_up(
    request: &Request,
    plan: &Plan,
    stages: &Arc<Stages>,
) -> Result<(Arc<Vm>, Guest, Events)> {
    let (vm, mut events) = Vm::start(plan, stages).await?;
    let configured = tokio::select! {
        configured = configure(request, &vm, stages) => configured,
        // Its socket is ours too, and would have us wait.
        reason = vm_end(&mut events) => Err(Error::Failed(reason)),
    };
    let error = match configured {
        Ok(guest) => return Ok((vm, guest, events)),
        // An agent that refuses is not dead.
        Err(error @ Error::Guest(ttrpc::Error::RpcStatus(_))) => error,
        Err(error) => vm.lost(vm.bury(&error.to_string()).await),
    };
    vm.release().await;
    Err(error)
}

/// Waits for the VM's end; tells why.
async fn vm_end(events: &mut Events) -> String {
    loop {
        match events.recv().await {
            Some(vmm::Event::Stopped { reason }) => return reason,
            // Nobody has asked for anything yet.
            Some(_) => {}
            None => return "the VMM has died".into(),
        }
    }
}

/// One message carries everything that the guest needs to know.
async fn configure(request: &Request, vm: &Arc<Vm>, stages: &Arc<Stages>) -> Result<Guest> {
    let guest = stages
        .time("connect", Guest::connect(vm.vsock().clone()))
        .await
        .map_err(Error::failed)?;
    let mut entropy = vec![0; ENTROPY];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut entropy))
        .map_err(|error| Error::Failed(format!("cannot read /dev/urandom: {error}")))?;
    let endpoint = vm.endpoint();
    let message = pod::configuration(&request.pod, &request.id, endpoint, clock_ns(), entropy);
    stages
        .time(
            "configure",
            guest.guest.configure(guest::bounded(), &message),
        )
        .await
        .map_err(|error| Error::from(error).context("cannot configure the guest"))?;
    Ok(guest)
}

/// The wall clock, in nanoseconds since 1970.
pub(super) fn clock_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or_default())
}
