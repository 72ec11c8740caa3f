//! Pods and containers over the CRI, timed as a CRI client sees them.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest,
};
use tonic::transport::{Channel, Endpoint, Uri};

use super::report::Run;

/// A connection to containerd's CRI.
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
    made: u32,
}

/// A running sandbox and how long it took.
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    config: PodSandboxConfig,
}

impl Cri {
    /// Connects to containerd's socket.
    pub async fn connect(socket: &'static Path) -> anyhow::Result<Cri> {
        let channel = Endpoint::from_static("http://containerd")
            .connect_with_connector(tower::service_fn(move |_: Uri| async move {
                Ok::<_, std::io::Error>(TokioIo::new(
                    tokio::net::UnixStream::connect(socket).await?,
                ))
            }))
            .await
            .with_context(|| format!("cannot reach containerd at {}", socket.display()))?;
        Ok(Cri {
            client: RuntimeServiceClient::new(channel),
            made: 0,
        })
    }

    /// RunPodSandbox with this handler, request to answer (the answer means Ready).
    pub async fn run_pod(&mut self, handler: &str) -> anyhow::Result<(Pod, Run)> {
        self.made += 1;
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: format!("bench-{handler}-{}", self.made),
                uid: format!("bench-{handler}-{}", self.made),
                namespace: "bench".into(),
                attempt: 0,
            }),
            hostname: "bench".into(),
            log_directory: "/tmp/bench-logs".into(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        let begin = Instant::now();
        let answer = self
            .client
            .run_pod_sandbox(RunPodSandboxRequest {
                config: Some(config.clone()),
                runtime_handler: handler.into(),
            })
            .await?;
        let total = begin.elapsed();
        let id = answer.into_inner().pod_sandbox_id;
        Ok((
            Pod { id, config },
            Run {
                total,
                stages: Vec::new(),
            },
        ))
    }

    /// Creates and starts a container of `image` that sleeps; its id and the time
    /// of both requests together.
    pub async fn run_container(&mut self, pod: &Pod, image: &str) -> anyhow::Result<(String, Run)> {
        self.made += 1;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: format!("c{}", self.made),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.into(),
                ..Default::default()
            }),
            command: vec!["sleep".into(), "1000".into()],
            log_path: format!("{}.log", self.made),
            ..Default::default()
        };
        let begin = Instant::now();
        let id = self
            .client
            .create_container(CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(config),
                sandbox_config: Some(pod.config.clone()),
            })
            .await?
            .into_inner()
            .container_id;
        let created = begin.elapsed();
        self.client
            .start_container(StartContainerRequest {
                container_id: id.clone(),
            })
            .await?;
        let total = begin.elapsed();
        let stages = vec![
            ("create".to_owned(), std::time::Duration::ZERO, created),
            ("start".to_owned(), created, total),
        ];
        Ok((id, Run { total, stages }))
    }

    /// Stops and removes a sandbox.
    pub async fn remove_pod(&mut self, pod: Pod) -> anyhow::Result<()> {
        let pod_sandbox_id = pod.id;
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        self.client.stop_pod_sandbox(stop).await?;
        self.client
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
            .await?;
        Ok(())
    }

    /// The pid that containerd knows of the sandbox: the VMM's.
    pub async fn sandbox_pid(&mut self, pod: &Pod) -> anyhow::Result<u32> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let info: HashMap<String, String> = self
            .client
            .pod_sandbox_status(request)
            .await?
            .into_inner()
            .info;
        let info: serde_json::Value =
            serde_json::from_str(info.get("info").context("verbose status has no info")?)?;
        let pid = info["pid"].as_u64().context("verbose status has no pid")?;
        Ok(u32::try_from(pid)?)
    }
}
