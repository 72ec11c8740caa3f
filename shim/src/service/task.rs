//! containerd's Task API, by its messages of version 3; version 2 has the same.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::{self, r#async::TtrpcContext};
use protocol::ids;

use super::{Pod, serve};
use crate::error::{Error, Result};
use crate::process::wait_response;

/// The service.
pub struct TaskService {
    pod: Arc<Pod>,
}

impl TaskService {
    /// Serves `pod`.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

/// Ids become names in the guest, and paths.
fn check_exec(exec: &str) -> Result<()> {
    if ids::is_valid(exec) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{exec:?} is not a valid exec id")))
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> ttrpc::Result<StateResponse> {
        let process = self.pod.settled().await?.find(&r.id, &r.exec_id)?;
        Ok(process.state_response())
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        r: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let (id, exec) = (r.id.clone(), String::new());
        serve(&self.pod, "create", (&id, &exec), |pod| async move {
            Ok(CreateTaskResponse {
                pid: pod.create(&r).await?,
                ..Default::default()
            })
        })
        .await
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> ttrpc::Result<StartResponse> {
        let (id, exec) = (r.id.clone(), r.exec_id.clone());
        serve(&self.pod, "start", (&id, &exec), |pod| async move {
            Ok(StartResponse {
                pid: pod.tasks()?.start(&r).await?,
                ..Default::default()
            })
        })
        .await
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let (id, exec) = (r.id.clone(), r.exec_id.clone());
        serve(&self.pod, "delete", (&id, &exec), |pod| async move {
            pod.delete(&r.id, &r.exec_id).await
        })
        .await
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let (id, exec) = (r.id.clone(), String::new());
        serve(&self.pod, "pids", (&id, &exec), |pod| async move {
            pod.settled().await?.pids(&r).await
        })
        .await
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (r.id.clone(), String::new());
        serve(&self.pod, "pause", (&id, &exec), |pod| async move {
            pod.tasks()?.pause(&r).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (r.id.clone(), String::new());
        serve(&self.pod, "resume", (&id, &exec), |pod| async move {
            pod.tasks()?.resume(&r).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(Error::Unsupported("containers cannot be checkpointed".into()).into())
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (r.id.clone(), r.exec_id.clone());
        serve(&self.pod, "kill", (&id, &exec), |pod| async move {
            pod.tasks()?.kill(&r).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (r.id.clone(), r.exec_id.clone());
        serve(&self.pod, "exec", (&id, &exec), |pod| async move {
            check_exec(&r.exec_id)?;
            pod.tasks()?.exec(&r).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (r.id.clone(), r.exec_id.clone());
        serve(&self.pod, "resize", (&id, &exec), |pod| async move {
            pod.tasks()?.resize(&r).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.pod.tasks()?.find(&r.id, &r.exec_id)?;
        if r.stdin
            && let Some(streams) = process.streams().as_mut()
        {
            streams.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (r.id.clone(), String::new());
        serve(&self.pod, "update", (&id, &exec), |pod| async move {
            pod.tasks()?.update(&r).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.pod.tasks()?.find(&r.id, &r.exec_id)?;
        Ok(wait_response(process.wait().await))
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let (id, exec) = (r.id.clone(), String::new());
        serve(&self.pod, "stats", (&id, &exec), |pod| async move {
            pod.tasks()?.stats(&r).await
        })
        .await
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = self
            .pod
            .tasks()
            .and_then(|tasks| tasks.find(&r.id, ""))
            .map_or(0, |process| process.state().pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.pod.shutdown(r.now);
        Ok(Empty::new())
    }
}
