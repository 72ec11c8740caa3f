//! What the Task API acts on: a pod in a VM ([`Sandbox`]), or one on the host's kernel
//! ([`SharedPod`]).

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest,
    ResumeRequest, StartRequest, StatsRequest, StatsResponse, UpdateTaskRequest,
};

use crate::error::Result;
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::shared::SharedPod;

/// Processes, and what containerd does with them.
#[async_trait]
pub trait Tasks: Send + Sync {
    /// A process by containerd's pair of ids.
    fn find(&self, id: &str, exec: &str) -> Result<Arc<Process>>;
    /// Starts a process; answers with its pid.
    async fn start(&self, request: &StartRequest) -> Result<u32>;
    /// Adds a process.
    async fn exec(&self, request: &ExecProcessRequest) -> Result<()>;
    /// Sends a signal.
    async fn kill(&self, request: &KillRequest) -> Result<()>;
    /// Freezes a container, or the whole pod.
    async fn pause(&self, request: &PauseRequest) -> Result<()>;
    /// Thaws it.
    async fn resume(&self, request: &ResumeRequest) -> Result<()>;
    /// Sets the size of a terminal.
    async fn resize(&self, request: &ResizePtyRequest) -> Result<()>;
    /// Changes a container's limits.
    async fn update(&self, request: &UpdateTaskRequest) -> Result<()>;
    /// A container's processes.
    async fn pids(&self, request: &PidsRequest) -> Result<PidsResponse>;
    /// What a container uses.
    async fn stats(&self, request: &StatsRequest) -> Result<StatsResponse>;
}

#[async_trait]
impl Tasks for Sandbox {
    fn find(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        self.find(id, exec)
    }

    async fn start(&self, request: &StartRequest) -> Result<u32> {
        if self.is_itself(&request.id) {
            let process = self.find(&request.id, &request.exec_id)?;
            self.start_sandbox(&process)
        } else {
            self.start_process(request).await
        }
    }

    async fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        self.exec(request).await
    }

    async fn kill(&self, request: &KillRequest) -> Result<()> {
        self.kill(request).await
    }

    async fn pause(&self, request: &PauseRequest) -> Result<()> {
        if self.is_itself(&request.id) {
            return self.freeze().await;
        }
        self.pause(request).await
    }

    async fn resume(&self, request: &ResumeRequest) -> Result<()> {
        if self.is_itself(&request.id) {
            return self.thaw().await;
        }
        self.resume(request).await
    }

    async fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        self.resize(request).await
    }

    async fn update(&self, request: &UpdateTaskRequest) -> Result<()> {
        self.update(request).await
    }

    async fn pids(&self, request: &PidsRequest) -> Result<PidsResponse> {
        self.pids(request).await
    }

    async fn stats(&self, request: &StatsRequest) -> Result<StatsResponse> {
        self.stats(request).await
    }
}

#[async_trait]
impl Tasks for SharedPod {
    fn find(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        self.find(id, exec)
    }

    async fn start(&self, request: &StartRequest) -> Result<u32> {
        self.start(&request.id, &request.exec_id).await
    }

    async fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        self.exec(request)
    }

    async fn kill(&self, request: &KillRequest) -> Result<()> {
        self.kill(request)
    }

    async fn pause(&self, request: &PauseRequest) -> Result<()> {
        self.pause(&request.id)
    }

    async fn resume(&self, request: &ResumeRequest) -> Result<()> {
        self.resume(&request.id)
    }

    async fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        self.resize(request)
    }

    async fn update(&self, request: &UpdateTaskRequest) -> Result<()> {
        self.update(request)
    }

    async fn pids(&self, request: &PidsRequest) -> Result<PidsResponse> {
        self.pids(&request.id)
    }

    async fn stats(&self, request: &StatsRequest) -> Result<StatsResponse> {
        self.stats(&request.id)
    }
}
