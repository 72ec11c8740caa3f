//! What the node's tools ask: `joeyctl ps`, `logs`, `metrics`, `console` and `snapshot`.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::ttrpc::{self, r#async::TtrpcContext};
use protocol::shim::{
    ConsoleRequest, ConsoleResponse, Description, Empty, KernelLogResponse, MetricsResponse,
};
use protocol::shim_ttrpc::Shim;

use super::Pod;
use crate::telemetry;

/// The service.
pub struct NodeService {
    pod: Arc<Pod>,
}

impl NodeService {
    /// Tells of `pod`.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

#[async_trait]
impl Shim for NodeService {
    async fn describe(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Description> {
        Ok(self.pod.sandbox()?.describe())
    }

    async fn metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MetricsResponse> {
        let sandbox = self.pod.sandbox()?;
        let mut families = telemetry::of_shim(&sandbox.stages().list());
        // A VM that is ending has no counters any more.
        if let Ok(stats) = sandbox.vm().stats().await {
            families.extend(telemetry::of_vmm(&stats));
        }
        families.extend(telemetry::of_memory(&sandbox.vm().memory().await));
        Ok(MetricsResponse {
            families,
            ..Default::default()
        })
    }

    async fn kernel_log(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<KernelLogResponse> {
        Ok(KernelLogResponse {
            text: self.pod.sandbox()?.vm().kernel_log().await?,
            ..Default::default()
        })
    }

    async fn save(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.pod.sandbox()?.save().await?;
        Ok(Empty::default())
    }

    async fn restore(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.pod.sandbox()?.thaw().await?;
        Ok(Empty::default())
    }

    async fn console(
        &self,
        _: &TtrpcContext,
        request: ConsoleRequest,
    ) -> ttrpc::Result<ConsoleResponse> {
        Ok(self.pod.sandbox()?.console(request).await?)
    }
}
