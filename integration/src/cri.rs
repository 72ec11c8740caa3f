//! Pods and containers over the CRI, for the programs that drive containerd from
//! inside the test host.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListPodSandboxRequest, Mount, PodSandboxConfig, PodSandboxMetadata, PodSandboxState,
    PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
pub use k8s_cri::v1::{ContainerState, PodSandbox};
use tonic::transport::{Channel, Endpoint, Uri};

/// containerd's socket in the test host.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image that pods run; it has to be pulled before.
pub const IMAGE: &str = "127.0.0.1:5000/busybox:latest";

/// Takes all the memory of a guest, in one call: a program that takes a little at a time
/// lives long at the limit, with the kernel reading its code again and again.
pub const ALL_MEMORY: &str =
    "dd if=/dev/zero of=/dev/null bs=$(awk '/^MemTotal/ {print $2}' /proc/meminfo)k";

/// Namespace and log directory of the pods that are made here.
const OWNER: &str = "driver";
const LOGS: &str = "/tmp/driver-logs";

/// A connection to containerd's CRI. It outlives restarts of containerd.
#[derive(Clone)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
}

/// What a pod is made from.
#[derive(Clone)]
pub struct PodPlan {
    /// Its runtime handler.
    pub handler: String,
    config: PodSandboxConfig,
}

/// A running sandbox.
#[derive(Clone)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    config: PodSandboxConfig,
}

/// What a container is made from.
#[derive(Clone, Default)]
pub struct ContainerPlan {
    /// Its first process.
    pub command: Vec<String>,
    /// Whether it has all that the pod's kernel can give.
    pub privileged: bool,
    /// A directory of the host, and where the container sees it.
    pub volume: Option<(String, String)>,
}

impl PodPlan {
    /// A pod of this name with this handler.
    pub fn new(handler: &str, name: &str, privileged: bool) -> PodPlan {
        PodPlan {
            handler: handler.to_owned(),
            config: PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: name.to_owned(),
                    uid: name.to_owned(),
                    namespace: OWNER.into(),
                    attempt: 0,
                }),
                hostname: name.to_owned(),
                log_directory: LOGS.into(),
                linux: Some(LinuxPodSandboxConfig {
                    security_context: Some(LinuxSandboxSecurityContext {
                        privileged,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            },
        }
    }
}

impl ContainerPlan {
    /// A container that does nothing.
    pub fn idle() -> ContainerPlan {
        ContainerPlan {
            command: ["sleep", "100000"].map(str::to_owned).into(),
            ..Default::default()
        }
    }
}

impl Cri {
    /// Connects to containerd's socket, at the first request.
    pub fn connect() -> Cri {
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(
            tower::service_fn(|_: Uri| async {
                Ok::<_, std::io::Error>(TokioIo::new(
                    tokio::net::UnixStream::connect(Path::new(SOCKET)).await?,
                ))
            }),
        );
        Cri {
            client: RuntimeServiceClient::new(channel),
        }
    }

    /// RunPodSandbox; the answer means that it is ready.
    pub async fn run_pod(&mut self, plan: &PodPlan) -> anyhow::Result<Pod> {
        let answer = self
            .client
            .run_pod_sandbox(RunPodSandboxRequest {
                config: Some(plan.config.clone()),
                runtime_handler: plan.handler.clone(),
            })
            .await
            .context("RunPodSandbox")?;
        Ok(Pod {
            id: answer.into_inner().pod_sandbox_id,
            config: plan.config.clone(),
        })
    }

    /// CreateContainer; the container's id.
    pub async fn create(
        &mut self,
        pod: &Pod,
        name: &str,
        plan: &ContainerPlan,
    ) -> anyhow::Result<String> {
        let mounts = plan.volume.iter().map(|(host, container)| Mount {
            host_path: host.clone(),
            container_path: container.clone(),
            ..Default::default()
        });
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.into(),
                ..Default::default()
            }),
            command: plan.command.clone(),
            mounts: mounts.collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    privileged: plan.privileged,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer = self.client.create_container(request).await;
        Ok(answer.context("CreateContainer")?.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start(&mut self, container: &str) -> anyhow::Result<()> {
        let container_id = container.to_owned();
        self.client
            .start_container(StartContainerRequest { container_id })
            .await
            .context("StartContainer")?;
        Ok(())
    }

    /// ExecSync, which must end with 0; its standard output.
    pub async fn exec(&mut self, container: &str, script: &str) -> anyhow::Result<String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).into(),
            timeout: 0,
        };
        let answer = self.client.exec_sync(request).await.context("ExecSync")?;
        let answer = answer.into_inner();
        anyhow::ensure!(
            answer.exit_code == 0,
            "`{script}` ended with {}: {}",
            answer.exit_code,
            String::from_utf8_lossy(&answer.stderr)
        );
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    /// StopContainer with this grace period.
    pub async fn stop(&mut self, container: &str, grace: Duration) -> anyhow::Result<()> {
        let request = StopContainerRequest {
            container_id: container.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        self.client
            .stop_container(request)
            .await
            .context("StopContainer")?;
        Ok(())
    }

    /// ContainerStatus.
    pub async fn status(&mut self, container: &str) -> anyhow::Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let answer = self.client.container_status(request).await;
        answer
            .context("ContainerStatus")?
            .into_inner()
            .status
            .context("ContainerStatus has no status")
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&mut self, id: &str) -> anyhow::Result<()> {
        let pod_sandbox_id = id.to_owned();
        self.client
            .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id })
            .await
            .context("StopPodSandbox")?;
        Ok(())
    }

    /// RemovePodSandbox, with its containers.
    pub async fn remove_pod(&mut self, id: &str) -> anyhow::Result<()> {
        let pod_sandbox_id = id.to_owned();
        self.client
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
            .await
            .context("RemovePodSandbox")?;
        Ok(())
    }

    /// Stops and removes a sandbox.
    pub async fn end_pod(&mut self, id: &str) -> anyhow::Result<()> {
        self.stop_pod(id).await?;
        self.remove_pod(id).await
    }

    /// All sandboxes that containerd knows, ready or not.
    pub async fn pods(&mut self) -> anyhow::Result<Vec<PodSandbox>> {
        let request = ListPodSandboxRequest::default();
        let answer = self.client.list_pod_sandbox(request).await;
        Ok(answer.context("ListPodSandbox")?.into_inner().items)
    }

    /// Whether a sandbox is ready.
    pub async fn is_ready(&mut self, id: &str) -> anyhow::Result<bool> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.client.pod_sandbox_status(request).await;
        let status = answer.context("PodSandboxStatus")?.into_inner().status;
        let status = status.context("PodSandboxStatus has no status")?;
        Ok(status.state() == PodSandboxState::SandboxReady)
    }
}
