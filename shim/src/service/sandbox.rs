//! containerd's Sandbox API (`sandboxer = "shim"`): a sandbox that is no task.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox as SandboxApi;
use containerd_shim_protos::ttrpc::{self, r#async::TtrpcContext};
use containerd_shim_protos::types::platform::Platform;
use serde_json::json;

use super::{Pod, serve};
use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::metrics;
use crate::process::Process;
use crate::sandbox::{By, Sandbox};
use crate::shared::{SharedPod, SharedSandbox};
use crate::task_state::TaskState;

/// The CRI's names for a sandbox's states.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// What a sandbox that was asked to stop ends with.
const STOPPED: u32 = 0;

/// The service.
pub struct SandboxService {
    pod: Arc<Pod>,
}

impl SandboxService {
    /// Serves `pod`.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

/// A sandbox that containerd has made by this service.
enum Named {
    Vm(Arc<Sandbox>),
    Shared(Arc<SharedPod>, Arc<SharedSandbox>),
}

/// The pod's sandbox, if it is the one that is meant.
fn named(pod: &Pod, id: &str) -> Result<Named> {
    let missing = || Error::NotFound(format!("sandbox {id} does not exist"));
    if let Some(shared) = pod.shared() {
        let sandbox = shared.sandbox().ok().filter(|sandbox| sandbox.id == id);
        return Ok(Named::Shared(shared.clone(), sandbox.ok_or_else(missing)?));
    }
    pod.sandbox()
        .ok()
        .filter(|sandbox| sandbox.id() == id && sandbox.by() == By::Sandbox)
        .map(Named::Vm)
        .ok_or_else(missing)
}

impl Named {
    fn process(&self) -> Result<Arc<Process>> {
        match self {
            Self::Vm(sandbox) => sandbox.process().cloned(),
            Self::Shared(_, sandbox) => Ok(sandbox.process().clone()),
        }
    }

    fn created(&self) -> SystemTime {
        match self {
            Self::Vm(sandbox) => sandbox.created(),
            Self::Shared(_, sandbox) => sandbox.created,
        }
    }

    fn start(&self) -> Result<u32> {
        match self {
            Self::Vm(sandbox) => sandbox.start_sandbox(sandbox.process()?),
            Self::Shared(_, sandbox) => sandbox.start(),
        }
    }

    async fn stop(&self) {
        match self {
            Self::Vm(sandbox) => sandbox.stop(STOPPED).await,
            Self::Shared(pod, _) => pod.stop_sandbox(STOPPED).await,
        }
    }

    async fn stats(&self) -> Result<Any> {
        match self {
            Self::Vm(sandbox) => {
                let vm = sandbox.vm();
                let memory = vm.memory().await;
                metrics::stats_of_sandbox(vm.cgroup().dir(), &memory).map_err(Error::failed)
            }
            Self::Shared(_, sandbox) => sandbox.stats(),
        }
    }

    /// What is shown of it beyond what containerd asks.
    fn info(&self) -> serde_json::Value {
        match self {
            Self::Vm(sandbox) => json!({
                "vcpus": sandbox.size().vcpus,
                "cgroup": sandbox.vm().cgroup().dir(),
            }),
            Self::Shared(_, sandbox) => sandbox.info(),
        }
    }
}

fn status(id: &str, sandbox: &Named, verbose: bool) -> Result<SandboxStatusResponse> {
    let process = sandbox.process()?;
    let process = process.state();
    let exit = process.exit();
    // One that was never started is not: containerd was killed in between.
    let ready = matches!(*process, TaskState::Running { .. });
    let mut info = HashMap::new();
    if verbose {
        // As `crictl inspectp` shows it: one document under this name.
        let mut document = sandbox.info();
        document["pid"] = json!(process.pid());
        document["processStatus"] = json!(if ready { "running" } else { "stopped" });
        info.insert("info".to_owned(), document.to_string());
    }
    Ok(SandboxStatusResponse {
        sandbox_id: id.to_owned(),
        pid: process.pid(),
        state: if ready { READY } else { NOT_READY }.to_owned(),
        info,
        created_at: MessageField::some(timestamp(sandbox.created())),
        exited_at: exit.map(|exit| timestamp(exit.at)).into(),
        ..Default::default()
    })
}

#[async_trait]
impl SandboxApi for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        r: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let id = r.sandbox_id.clone();
        serve(&self.pod, "create sandbox", (&id, ""), |pod| async move {
            pod.create_sandbox(&r).await?;
            Ok(CreateSandboxResponse::new())
        })
        .await
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        r: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = named(&self.pod, &r.sandbox_id)?;
        let pid = sandbox.start()?;
        Ok(StartSandboxResponse {
            pid,
            created_at: MessageField::some(timestamp(sandbox.created())),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        r: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        named(&self.pod, &r.sandbox_id)?;
        Ok(PlatformResponse {
            platform: MessageField::some(Platform {
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        r: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let id = r.sandbox_id.clone();
        serve(&self.pod, "stop sandbox", (&id, ""), |pod| async move {
            let _ = pod.settled().await;
            named(&pod, &r.sandbox_id)?.stop().await;
            Ok(StopSandboxResponse::new())
        })
        .await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        r: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let sandbox = named(&self.pod, &r.sandbox_id)?;
        let exit = sandbox.process()?.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        r: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let id = r.sandbox_id.clone();
        serve(&self.pod, "sandbox status", (&id, ""), |pod| async move {
            // See Pod::settled: one that is being made is worth waiting for.
            let _ = pod.settled().await;
            status(&r.sandbox_id, &named(&pod, &r.sandbox_id)?, r.verbose)
        })
        .await
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, r: PingRequest) -> ttrpc::Result<PingResponse> {
        named(&self.pod, &r.sandbox_id)?;
        Ok(PingResponse::new())
    }

    /// Also after a creation that failed: then there is only the process to end.
    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        r: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let id = r.sandbox_id.clone();
        serve(
            &self.pod,
            "shut down sandbox",
            (&id, ""),
            |pod| async move {
                let other = |id: &str| id != r.sandbox_id;
                let shared = pod.shared().and_then(|shared| shared.sandbox().ok());
                if pod.sandbox().is_ok_and(|sandbox| other(sandbox.id()))
                    || shared.is_some_and(|sandbox| other(&sandbox.id))
                {
                    return Err(Error::NotFound(format!(
                        "sandbox {} does not exist",
                        r.sandbox_id
                    )));
                }
                pod.retire().await;
                Ok(ShutdownSandboxResponse::new())
            },
        )
        .await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        r: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let sandbox = named(&self.pod, &r.sandbox_id)?;
        let data = sandbox.stats().await?;
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metric.id = r.sandbox_id;
        metric.data = MessageField::some(data);
        Ok(response)
    }
}
