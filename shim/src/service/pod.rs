//! The one pod of this process, from the first request to the last.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, DeleteResponse};
use containerd_shim_protos::events::task::TaskCreate;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use oci_spec::runtime::Spec;
use protocol::ids;
use tokio::sync::watch;
use tokio::time::sleep;

use super::options;
use super::tasks::Tasks;
use crate::bootstrap;
use crate::config::{Config, Mode};
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::guest_spec;
use crate::pod::{Kind, PodSpec, SANDBOX_ID, annotation, cri};
use crate::process::KILLED;
use crate::sandbox::{By, Request, Sandbox};
use crate::shared::{self, SharedPod};

/// Largest config.json that is read, in bytes. More than reaches a guest, so that
/// the error can name what is too large in it; CRI itself takes 16 MiB.
const MAX_SPEC: u64 = 32 << 20;

/// How long the process outlives its answer to ShutdownSandbox: containerd takes an answer
/// for lost that comes together with the connection's end.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long containerd may take from our start to its first use of us. It takes milliseconds; a
/// node under load may stand still for seconds.
const CLAIM_TIME: Duration = Duration::from_secs(60);

/// A pod and whether containerd is done with it.
pub struct Pod {
    namespace: String,
    /// Ours.
    socket: PathBuf,
    publisher: Publisher,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    /// Instead, once there was a container on the host's kernel.
    shared: OnceLock<Arc<SharedPod>>,
    /// Held while the sandbox is made.
    starting: tokio::sync::Mutex<()>,
    /// A sandbox or container was asked for.
    claimed: AtomicBool,
    /// containerd asked for the end while something was left.
    ending: watch::Sender<End>,
}

/// How far the end of the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nobody has asked.
    No,
    /// When the last task is deleted.
    WhenIdle,
    /// Now.
    Now,
}

impl Pod {
    /// A pod in containerd's `namespace`, served on `socket`, which does not run yet.
    pub fn new(namespace: &str, socket: &Path, publisher: Publisher) -> Self {
        Self {
            namespace: namespace.to_owned(),
            socket: socket.to_owned(),
            publisher,
            sandbox: Mutex::new(None),
            shared: OnceLock::new(),
            starting: tokio::sync::Mutex::new(()),
            claimed: AtomicBool::new(false),
            ending: watch::Sender::new(End::No),
        }
    }

    /// The sandbox, which has a VM.
    ///
    /// # Errors
    /// When there is none.
    pub fn sandbox(&self) -> Result<Arc<Sandbox>> {
        if self.shared.get().is_some() {
            return Err(Error::Unsupported(
                "the pod runs on the host's kernel and has no VM".into(),
            ));
        }
        self.slot()
            .clone()
            .ok_or_else(|| Error::NotFound("the sandbox does not exist".into()))
    }

    /// The pod's processes.
    ///
    /// # Errors
    /// When there is no pod.
    pub fn tasks(&self) -> Result<Arc<dyn Tasks>> {
        match self.shared.get() {
            Some(shared) => Ok(shared.clone()),
            None => Ok(self.sandbox()?),
        }
    }

    /// The pod, if it runs on the host's kernel.
    pub fn shared(&self) -> Option<&Arc<SharedPod>> {
        self.shared.get()
    }

    /// The pod's processes, once nobody is making its sandbox any more: a containerd that was
    /// killed while it asked for one asks again, for what became of it.
    ///
    /// # Errors
    /// As [`Pod::tasks`].
    pub async fn settled(&self) -> Result<Arc<dyn Tasks>> {
        let _starting = self.starting.lock().await;
        self.tasks()
    }

    /// As [`Pod::sandbox`], when nobody is making it.
    async fn settled_sandbox(&self) -> Result<Arc<Sandbox>> {
        let _starting = self.starting.lock().await;
        self.sandbox()
    }

    /// Makes what a bundle holds: the sandbox, a container in it, or both at
    /// once for a container without a pod. Returns the pid.
    ///
    /// # Errors
    /// Names what cannot be honoured, is missing or failed.
    pub async fn create(&self, request: &CreateTaskRequest) -> Result<u32> {
        check_id(&request.id)?;
        let bundle = PathBuf::from(&request.bundle);
        let spec = read_spec(&bundle)?;
        let kind = Kind::of(&spec);
        if let Some(shared) = self.shared.get()
            && kind == Kind::Container
        {
            return shared.create(request, spec).await;
        }
        let config = options::config(request.options.as_ref().filter(|any| !is_empty(any)));
        if kind != Kind::Container
            && config
                .as_ref()
                .is_ok_and(|config| config.mode == Mode::Runc)
        {
            return self.making(self.share()?.create(request, spec)).await;
        }
        match kind {
            Kind::Sandbox => {
                let start = self.start_by_task(request, &spec, bundle, By::Task, config?);
                let pid = self.making(start).await?.vm().pid();
                self.publisher.publish(&TaskCreate {
                    container_id: request.id.clone(),
                    bundle: request.bundle.clone(),
                    rootfs: request.rootfs.clone(),
                    pid,
                    ..Default::default()
                });
                Ok(pid)
            }
            Kind::Container => {
                let sandbox = self.sandbox()?;
                let named = annotation(&spec, SANDBOX_ID).unwrap_or_default();
                if named != sandbox.id() {
                    return Err(Error::Invalid(format!(
                        "container {} belongs to sandbox {named}, but this is sandbox {}",
                        request.id,
                        sandbox.id()
                    )));
                }
                sandbox.create_container(request, &spec).await
            }
            Kind::Alone => {
                let both = async {
                    let sandbox = self
                        .start_by_task(request, &spec, bundle, By::Container, config?)
                        .await?;
                    let made = sandbox.create_container(request, &spec).await;
                    if made.is_err() {
                        self.remove(&sandbox).await;
                    }
                    made
                };
                self.making(both).await
            }
        }
    }

    /// The pod on the host's kernel, made with its first container.
    fn share(&self) -> Result<&Arc<SharedPod>> {
        match self.shared.get() {
            Some(shared) => Ok(shared),
            None => {
                let shared = SharedPod::new(self.publisher.clone())?;
                Ok(self.shared.get_or_init(|| shared))
            }
        }
    }

    /// Makes a sandbox while everybody else who needs it settled waits.
    async fn making<T>(&self, make: impl Future<Output = Result<T>>) -> Result<T> {
        self.claimed.store(true, Ordering::Relaxed);
        let starting = self.starting.lock().await;
        let made = make.await;
        drop(starting);
        // The end may have been asked for meanwhile.
        self.end_if_idle();
        made
    }

    /// Makes the sandbox that the Sandbox API asks for.
    ///
    /// # Errors
    /// As [`Pod::create`].
    pub async fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<()> {
        let id = &request.sandbox_id;
        check_id(id)?;
        let bundle = PathBuf::from(&request.bundle_path);
        // The request's options are the pod's own; the handler's came to `start`.
        let config = options::config(read_options(&bundle)?.as_ref())?;
        if config.mode == Mode::Runc {
            let (options, netns) = (request.options.as_ref(), &request.netns_path);
            let plan = cri::shared(options, netns, &self.namespace, id)?;
            let id = id.clone();
            let create = async {
                self.share()?
                    .create_sandbox(shared::Request { id, bundle, plan })
            };
            return self.making(create).await;
        }
        let pod = cri::pod(
            request.options.as_ref(),
            &request.netns_path,
            &self.namespace,
            id,
            &config,
        )?;
        self.making(self.start(id, bundle, By::Sandbox, pod, config))
            .await?;
        Ok(())
    }

    async fn start_by_task(
        &self,
        request: &CreateTaskRequest,
        spec: &Spec,
        bundle: PathBuf,
        by: By,
        config: Config,
    ) -> Result<Arc<Sandbox>> {
        let pod =
            PodSpec::of_oci(spec, &self.namespace, &request.id, &config).map_err(Error::invalid)?;
        self.start(&request.id, bundle, by, pod, config).await
    }

    async fn start(
        &self,
        id: &str,
        bundle: PathBuf,
        by: By,
        pod: PodSpec,
        config: Config,
    ) -> Result<Arc<Sandbox>> {
        if let Some(sandbox) = &*self.slot() {
            return Err(Error::Exists(format!(
                "sandbox {} exists already",
                sandbox.id()
            )));
        }
        let sandbox = Sandbox::start(Request {
            id: id.to_owned(),
            namespace: self.namespace.clone(),
            bundle,
            by,
            pod,
            socket: self.socket.clone(),
            config: Arc::new(config),
            publisher: self.publisher.clone(),
        })
        .await?;
        *self.slot() = Some(sandbox.clone());
        Ok(sandbox)
    }

    /// Removes a process that has ended or was never started.
    ///
    /// # Errors
    /// When there is none, or it runs.
    pub async fn delete(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        if let Some(shared) = self.shared.get() {
            return self.delete_shared(shared, id, exec).await;
        }
        let sandbox = self.settled_sandbox().await?;
        if !exec.is_empty() {
            return sandbox.delete_exec(id, exec).await;
        }
        let response = if sandbox.is_itself(id) {
            sandbox.delete().await?
        } else {
            let response = sandbox.delete_container(id).await?;
            if sandbox.alone() {
                self.remove(&sandbox).await;
            }
            response
        };
        if !sandbox.in_use() {
            self.slot().take();
            self.end_if_idle();
        }
        Ok(response)
    }

    async fn delete_shared(
        &self,
        shared: &SharedPod,
        id: &str,
        exec: &str,
    ) -> Result<DeleteResponse> {
        if !exec.is_empty() {
            return shared.delete_exec(id, exec).await;
        }
        let response = shared.delete(id).await?;
        self.end_if_idle();
        Ok(response)
    }

    async fn remove(&self, sandbox: &Sandbox) {
        sandbox.stop(KILLED).await;
        self.slot().take();
    }

    /// containerd is done with this process; it ends when the last task is gone.
    pub fn shutdown(&self, now: bool) {
        self.ending.send_modify(|end| {
            *end = match *end {
                _ if now => End::Now,
                End::No => End::WhenIdle,
                other => other,
            }
        });
        self.end_if_idle();
    }

    /// Stops whatever runs, and ends.
    pub async fn terminate(&self) {
        self.stop().await;
        self.shutdown(true);
    }

    /// Stops whatever runs, and ends when the request that asks for it is answered.
    pub async fn retire(self: &Arc<Self>) {
        self.stop().await;
        let pod = self.clone();
        tokio::spawn(async move {
            sleep(FAREWELL).await;
            pod.shutdown(true);
        });
    }

    /// Stops whatever runs.
    async fn stop(&self) {
        if let Some(shared) = self.shared.get() {
            shared.stop().await;
        } else if let Ok(sandbox) = self.settled_sandbox().await {
            sandbox.stop(KILLED).await;
        }
    }

    /// Waits until the process is to end.
    pub async fn wait_end(&self) {
        let mut ending = self.ending.subscribe();
        // The sender is a field of ours, so waiting cannot fail.
        let _ = ending.wait_for(|end| *end == End::Now).await;
    }

    /// Waits until nobody can be expected to ask for a pod any more: containerd, or our `start`,
    /// was killed before containerd had learnt of this process.
    pub async fn wait_forgotten(&self) {
        sleep(CLAIM_TIME).await;
        if self.claimed.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    fn end_if_idle(&self) {
        let idle = self.starting.try_lock().is_ok()
            && self.slot().is_none()
            && !self.shared.get().is_some_and(|shared| shared.in_use());
        self.ending.send_if_modified(|end| {
            let now = idle && *end == End::WhenIdle;
            if now {
                *end = End::Now;
            }
            now
        });
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_id(id: &str) -> Result<()> {
    if ids::is_valid(id) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{id:?} is not a valid id")))
}

fn is_empty(any: &Any) -> bool {
    any.type_url.is_empty() && any.value.is_empty()
}

/// What [`bootstrap::start`] kept. Newer containerds put a document there that is
/// no `Any`, and says nothing that counts here.
fn read_options(bundle: &Path) -> Result<Option<Any>> {
    let path = bundle.join(bootstrap::OPTIONS);
    match std::fs::read(&path) {
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => Ok(Any::parse_from_bytes(&bytes).ok()),
        Err(error) => Err(Error::Failed(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
    }
}

fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let failed = |error: std::io::Error| Error::Failed(format!("{}: {error}", path.display()));
    let size = std::fs::metadata(&path).map_err(failed)?.len();
    if size > MAX_SPEC {
        return Err(Error::Invalid(format!(
            "{} has {size} bytes; at most {MAX_SPEC} are read",
            path.display()
        )));
    }
    let json = std::fs::read(&path).map_err(failed)?;
    guest_spec::parse(&json).map_err(Error::invalid)
}

#[cfg(test)]
mod tests {
    use super::super::tests::pod;
    use super::*;

    fn request(bundle: &Path, spec: &str) -> CreateTaskRequest {
        std::fs::write(bundle.join("config.json"), spec).unwrap();
        CreateTaskRequest {
            id: "abc".into(),
            bundle: bundle.to_str().unwrap().into(),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn an_idle_process_ends_when_asked() {
        let pod = pod();
        pod.shutdown(false);
        pod.wait_end().await;
    }

    #[tokio::test]
    async fn an_end_that_waits_for_the_last_task_can_be_had_at_once() {
        let pod = pod();
        // As if a sandbox were there.
        let _ = pod.ending.send(End::WhenIdle);
        pod.terminate().await;
        pod.wait_end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_asked_for_waits_for_its_answer() {
        let pod = Arc::new(pod());
        pod.retire().await;
        assert!(!matches!(*pod.ending.borrow(), End::Now));
        pod.wait_end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_nobody_uses_ends() {
        pod().wait_forgotten().await;
        let pod = pod();
        pod.making(async { Ok(()) }).await.unwrap();
        let waited = tokio::time::timeout(2 * CLAIM_TIME, pod.wait_forgotten());
        assert!(waited.await.is_err(), "it is used");
    }

    #[tokio::test]
    async fn what_never_was_is_not_found() {
        let pod = pod();
        for error in [
            pod.sandbox().err().unwrap(),
            pod.delete("abc", "").await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::NotFound(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_container_needs_its_sandbox() {
        let pod = pod();
        let bundle = tempfile::tempdir().unwrap();
        let spec = r#"{"annotations": {"io.kubernetes.cri.container-type": "container"}}"#;
        let error = pod.create(&request(bundle.path(), spec)).await.unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
    }

    #[tokio::test]
    async fn a_pod_in_the_hosts_network_is_refused_before_anything_is_made() {
        let pod = pod();
        let bundle = tempfile::tempdir().unwrap();
        let spec = r#"{"annotations": {"io.kubernetes.cri.container-type": "sandbox"},
                       "linux": {"namespaces": [{"type": "pid"}]}}"#;
        let error = pod.create(&request(bundle.path(), spec)).await.unwrap_err();
        assert!(error.to_string().contains("hostNetwork"), "{error}");
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 1);
        // The same process may try again, or end.
        pod.shutdown(false);
        pod.wait_end().await;
    }

    #[tokio::test]
    async fn ids_that_are_paths_are_refused() {
        let mut request = request(tempfile::tempdir().unwrap().path(), "{}");
        request.id = "../abc".into();
        let error = pod().create(&request).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
}
