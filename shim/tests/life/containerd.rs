//! containerd's part: bundles, the shim's command line, the event service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, ForwardRequest,
    KillRequest, ShutdownRequest, StartRequest, WaitRequest,
};
use containerd_shim_protos::events::task::{TaskExit, TaskStart};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};
use containerd_shim_protos::ttrpc::{self, context};
use containerd_shim_protos::types::mount::Mount;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

pub const NAMESPACE: &str = "test";
const ADDRESS: &str = "/run/containerd/containerd.sock";
/// Longest that anything may take; only a broken shim takes so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the state directory keeps for later pods.
const STAYS: [&str; 4] = [
    "uids.lock",
    "reconcile.lock",
    "no-network",
    "no-network.lock",
];

/// The node: a configuration, directories, and the events that were heard.
pub struct Node {
    dir: tempfile::TempDir,
    heard: Heard,
    _server: Server,
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Events for Heard {
    async fn forward(&self, _: &TtrpcContext, r: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = r.envelope.unwrap();
        assert_eq!(envelope.namespace, NAMESPACE);
        let text = match envelope.topic.as_str() {
            "/tasks/exit" => {
                let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
                format!("exit {} {}", exit.id, exit.exit_status)
            }
            "/tasks/start" => {
                let start = TaskStart::parse_from_bytes(&envelope.event.value).unwrap();
                format!("start {}", start.container_id)
            }
            topic => topic.trim_start_matches("/tasks/").to_owned(),
        };
        self.0.lock().unwrap().push(text);
        Ok(Empty::new())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its directory could not be removed with a mount in it. There is none without a VM.
        let _ = umount2(&self.path("state/no-network"), MntFlags::MNT_DETACH);
    }
}

impl Node {
    /// A node whose configuration has `extra` lines.
    pub async fn new(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // What a kernel and an agent look like from outside.
        let this = std::env::current_exe().unwrap();
        fs::write(path("agent.cpio"), "070701").unwrap();
        let config = format!(
            "kernel = {this:?}\nvmm = {this:?}\nagent = {:?}\nstate_dir = {:?}\n\
             data_dir = {:?}\nscratch_mib = 16\ntemplates = false\n{extra}\n",
            path("agent.cpio"),
            path("state"),
            path("data"),
        );
        fs::write(path("config.toml"), config).unwrap();
        let heard = Heard::default();
        let mut server = Server::new()
            .bind(&format!("unix://{}", path("events.sock").display()))
            .unwrap()
            .register_service(create_events(Arc::new(heard.clone())));
        server.start().await.unwrap();
        Self {
            dir,
            heard,
            _server: server,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle with this spec.
    pub fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.bundle_dir(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        nix::unistd::mkfifo(&bundle.join("log"), Mode::S_IRWXU).unwrap();
        bundle
    }

    /// Where a bundle is.
    pub fn bundle_dir(&self, id: &str) -> PathBuf {
        self.path("bundles").join(id)
    }

    /// Changes a path in the configuration.
    pub fn reconfigure(&self, key: &str, value: &str) {
        let text = fs::read_to_string(self.path("config.toml")).unwrap();
        let lines: Vec<_> = text
            .lines()
            .map(|line| match line.split_once(" = ") {
                Some((name, _)) if name == key => format!("{key} = {value:?}"),
                _ => line.to_owned(),
            })
            .collect();
        fs::write(self.path("config.toml"), lines.join("\n")).unwrap();
    }

    fn blob_paths(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("data/layers"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "erofs"))
            .collect()
    }

    /// What was kept of sandboxes that died, one after the other.
    pub fn obituaries(&self) -> String {
        shim::host::dead::list(&self.path("data"))
            .iter()
            .map(|dead| fs::read_to_string(&dead.path).unwrap())
            .collect()
    }

    /// How many image blobs there are.
    pub fn blobs(&self) -> usize {
        self.blob_paths().len()
    }

    /// Overwrites the superblock of each blob.
    pub fn damage_blobs(&self) {
        for path in self.blob_paths() {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 64], 1024).unwrap();
        }
    }

    /// Runs the shim's `start` or `delete` in a bundle.
    pub fn shim(&self, id: &str, action: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_containerd-shim-joey-v2"))
            .args(["-namespace", NAMESPACE, "-address", ADDRESS, "-id", id])
            .arg(action)
            .current_dir(self.bundle_dir(id))
            .env("TTRPC_ADDRESS", self.path("events.sock"))
            .env("JOEY_CONFIG", self.path("config.toml"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs the operator's tool.
    pub fn joeyctl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_joeyctl"))
            .args(arguments)
            .env("JOEY_CONFIG", self.path("config.toml"))
            .env("TMPDIR", self.temporary())
            .output()
            .unwrap()
    }

    /// Where joeyctl may put what it needs for a while.
    pub fn temporary(&self) -> PathBuf {
        let path = self.path("tmp");
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Starts the shim for a bundle and connects to it.
    pub async fn start(&self, id: &str, spec: &Value) -> Shim {
        self.bundle(id, spec);
        self.start_bundle(id).await
    }

    /// Starts the shim in a bundle without a spec, as the Sandbox API does.
    pub async fn start_without_spec(&self, id: &str) -> Shim {
        self.bundle(id, &Value::Null);
        fs::remove_file(self.bundle_dir(id).join("config.json")).unwrap();
        self.start_bundle(id).await
    }

    async fn start_bundle(&self, id: &str) -> Shim {
        let bundle = self.bundle_dir(id);
        let output = self.shim(id, "start");
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        // This program is no containerd 2.
        assert_eq!(answer["version"], 2);
        assert_eq!(answer["protocol"], "ttrpc");
        let address = answer["address"].as_str().unwrap().to_owned();
        let kept = fs::read_to_string(bundle.join("address")).unwrap();
        assert_eq!(kept, address, "containerd 1.7 finds it when it starts anew");
        let client = Client::connect(&address).await.unwrap();
        Shim {
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client),
            address,
            bundle,
        }
    }

    /// An image of one layer, as the overlayfs snapshotter mounts it.
    pub fn rootfs(&self, id: &str) -> Vec<Mount> {
        let layer = self.path("snapshots/1/fs");
        fs::create_dir_all(layer.join("bin")).unwrap();
        let upper = self.path("snapshots").join(id);
        fs::create_dir_all(&upper).unwrap();
        vec![Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("upperdir={}", upper.display()),
                format!("lowerdir={}", layer.display()),
            ],
            ..Default::default()
        }]
    }

    /// A FIFO, and its reader.
    pub fn output(&self, name: &str) -> (String, pipe::Receiver) {
        let path = self.fifo(name);
        let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        (path, reader)
    }

    /// A FIFO.
    pub fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The events so far.
    pub fn events(&self) -> Vec<String> {
        self.heard.0.lock().unwrap().clone()
    }

    /// Checks that a pod has left nothing but what later pods use again.
    pub fn assert_clean(&self, id: &str) {
        let list = |name: &str| -> Vec<String> {
            fs::read_dir(self.path(name))
                .map(|entries| {
                    entries
                        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                        .collect()
                })
                .unwrap_or_default()
        };
        let state: Vec<_> = list("state");
        assert!(
            state.iter().all(|name| STAYS.contains(&name.as_str())),
            "left in the state directory: {state:?}"
        );
        assert!(
            !Path::new("/sys/fs/cgroup")
                .join(NAMESPACE)
                .join(id)
                .exists()
        );
        let sockets = fs::read_dir("/run/containerd/s")
            .map(Iterator::count)
            .unwrap_or_default();
        assert_eq!(sockets, 0, "left in /run/containerd/s");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            assert!(
                !command.starts_with(b"joey-vmm"),
                "a VMM is left: {:?}",
                process.path()
            );
        }
    }
}

/// A connected shim.
pub struct Shim {
    pub task: TaskClient,
    pub sandbox: SandboxClient,
    pub address: String,
    pub bundle: PathBuf,
}

/// A call's bounded context.
pub fn call() -> context::Context {
    context::with_duration(PATIENCE)
}

impl Shim {
    /// Creates the task of `bundle`.
    pub async fn create(&self, request: CreateTaskRequest) -> ttrpc::Result<u32> {
        Ok(self.task.create(call(), &request).await?.pid)
    }

    /// Creates and starts the pod's sandbox.
    pub async fn run_sandbox(&self, id: &str) -> u32 {
        let pid = self
            .create(CreateTaskRequest {
                id: id.into(),
                bundle: self.bundle.to_str().unwrap().into(),
                ..Default::default()
            })
            .await
            .unwrap();
        assert_eq!(self.start(id, "").await.unwrap(), pid);
        pid
    }

    pub async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        Ok(self.task.start(call(), &request).await?.pid)
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        args: Value,
        stdin: &str,
        stdout: &str,
    ) -> ttrpc::Result<()> {
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args});
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            stdin: stdin.into(),
            stdout: stdout.into(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.task.exec(call(), &request).await.map(drop)
    }

    pub async fn wait(&self, id: &str, exec: &str) -> u32 {
        let request = WaitRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.task.wait(call(), &request).await.unwrap().exit_status
    }

    pub async fn kill(&self, id: &str, signal: u32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: id.into(),
            signal,
            ..Default::default()
        };
        self.task.kill(call(), &request).await.map(drop)
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest {
            id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.task.delete(call(), &request).await
    }

    /// Asks the shim to end, and waits until it has.
    pub async fn shutdown(self, id: &str) {
        let request = ShutdownRequest {
            id: id.into(),
            ..Default::default()
        };
        // The connection may close before the answer is out.
        let _ = self.task.shutdown(call(), &request).await;
        let path = self.address.trim_start_matches("unix://").to_owned();
        tokio::time::timeout(PATIENCE, async {
            while Path::new(&path).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the shim ends");
    }
}

/// Everything from a FIFO until its writers are gone.
pub async fn read_all(mut reader: pipe::Receiver) -> String {
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, reader.read_to_string(&mut text))
        .await
        .expect("the output ends")
        .unwrap();
    text
}

/// The spec of a pod's sandbox.
pub fn sandbox_spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "pod",
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": "s1",
        },
        "linux": {
            "cgroupsPath": "/test/s1",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "network"}],
        },
    })
}

/// The spec of a container, in the pod of `sandbox` (its pid) or alone.
pub fn container_spec(args: Value, sandbox: Option<u32>) -> Value {
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args},
        "root": {"path": "rootfs"},
        "linux": {
            "cgroupsPath": "/test/c1",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "network"}],
        },
    });
    if let Some(pid) = sandbox {
        spec["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "s1",
        });
        spec["linux"]["namespaces"] = json!([
            {"type": "pid"}, {"type": "mount"},
            {"type": "ipc", "path": format!("/proc/{pid}/ns/ipc")},
            {"type": "uts", "path": format!("/proc/{pid}/ns/uts")},
            {"type": "network", "path": format!("/proc/{pid}/ns/net")},
        ]);
    }
    spec
}
