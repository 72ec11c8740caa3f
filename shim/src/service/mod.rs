//! containerd's services, and what they share: the pod.

pub mod node;
mod options;
mod pod;
pub mod sandbox;
pub mod task;
mod tasks;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::{self, asynchronous::Service};

use protocol::shim_ttrpc::create_shim;
use tracing::Instrument;

use crate::error::{Error, Result};
use crate::telemetry;
pub use pod::Pod;

/// The Task API's names: containerd 2 has renamed it, and changed nothing else.
const TASK_3: &str = "containerd.task.v3.Task";
const TASK_2: &str = "containerd.task.v2.Task";

/// All that is served for `pod`, by name.
pub fn all(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let mut services = create_sandbox(Arc::new(sandbox::SandboxService::new(pod.clone())));
    let task = Arc::new(task::TaskService::new(pod.clone()));
    for name in [TASK_3, TASK_2] {
        // One entry, by the newer name.
        let service = create_task(task.clone()).into_values();
        services.extend(service.map(|service| (name.to_owned(), service)));
    }
    services.extend(create_shim(Arc::new(node::NodeService::new(pod.clone()))));
    services
}

/// Serves one request to its end, even if containerd stops waiting: half a creation
/// or deletion would be worse than one that nobody asks about.
async fn serve<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
    pod: &Arc<Pod>,
    name: &'static str,
    (container, exec): (&str, &str),
    serve: impl FnOnce(Arc<Pod>) -> F,
) -> ttrpc::Result<T> {
    let span = tracing::info_span!("request", request = name, container, exec);
    let served = serve(pod.clone()).instrument(span.clone());
    let result = match tokio::spawn(served).await {
        Ok(result) => result,
        Err(error) => Err(Error::Failed(format!("{name}: {error}"))),
    };
    telemetry::request(name, result.is_err());
    result.map_err(|error| {
        tracing::debug!(parent: &span, %error, "refused");
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Forward, Publisher};
    use containerd_shim_protos::api::ForwardRequest;
    use std::path::Path;

    struct Nowhere;

    impl Forward for Nowhere {
        async fn forward(&mut self, _: &ForwardRequest) -> std::result::Result<(), ttrpc::Error> {
            Ok(())
        }
    }

    /// A pod whose events nobody hears.
    pub(super) fn pod() -> Pod {
        Pod::new(
            "k8s.io",
            Path::new("/run/socket"),
            Publisher::new("k8s.io", Nowhere),
        )
    }

    #[tokio::test]
    async fn both_names_of_the_task_api_and_all_else_are_served() {
        let services = all(&Arc::new(pod()));
        assert_eq!(services.len(), 4);
        assert!(services.contains_key("containerd.runtime.sandbox.v1.Sandbox"));
        assert_eq!(
            services[TASK_2].methods.len(),
            services[TASK_3].methods.len()
        );
    }
}
