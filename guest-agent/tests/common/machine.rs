//! An agent in this process, a host that calls it over Unix sockets, and containers
//! that see this machine's /usr.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::{self, Mount};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use guest_agent::server;
use guest_agent::storage::Storage;
use guest_agent::tasks::Tasks;
use protocol::guest::{CreateOptions, File, Volume};
use protocol::guest_ttrpc::GuestClient;
use protocol::ids::CREATE_OPTIONS;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use ttrpc::r#async::transport::Listener;
use ttrpc::context::Context;
use ttrpc::{Code, Error};

/// The agent and its host.
pub struct Machine {
    pub tasks: TaskClient,
    pub guest: GuestClient,
    pub directory: TempDir,
    /// Ends when the agent wants the machine off.
    pub agent: JoinHandle<()>,
}

/// Runs `body` against a new agent.
pub fn with_machine(body: impl AsyncFnOnce(&Machine)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("agent")).unwrap();
        let missing = PathBuf::from("/dev/missing");
        let storage = Storage::new(missing.clone(), missing, path("agent"));
        let tasks = Arc::new(Tasks::new(path("agent"), storage).unwrap());
        let calls = Listener::from(UnixListener::bind(path("rpc")).unwrap());
        let streams = UnixListener::bind(path("streams")).unwrap();
        let forwards = UnixListener::bind(path("forwards")).unwrap();
        let agent = tokio::spawn(async move {
            server::serve(tasks, calls, streams, forwards)
                .await
                .unwrap()
        });
        let address = format!("unix://{}", path("rpc").display());
        let client = Client::connect(&address).await.unwrap();
        let machine = Machine {
            tasks: TaskClient::new(client.clone()),
            guest: GuestClient::new(client),
            directory,
            agent,
        };
        body(&machine).await;
    });
}

pub fn context() -> Context {
    ttrpc::context::with_timeout(20_000_000_000)
}

/// A spec whose container runs `script` in a shell.
pub fn spec(script: &str) -> Value {
    let bind = |path: &str, source: &str| json!({"destination": path, "type": "bind", "source": source, "options": ["rbind", "ro"]});
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "replaced"},
        "process": process(script),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
            bind("/usr", "/usr"),
        ],
        "linux": {
            "cgroupsPath": "k8s.slice:cri:whatever",
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
        },
    })
}

/// A process that runs `script` in a shell.
pub fn process(script: &str) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "cwd": "/",
        "args": ["/usr/bin/sh", "-c", script],
        "env": ["PATH=/usr/sbin:/usr/bin"],
    })
}

/// A container to be made; its streams are numbers.
pub struct Recipe<'a> {
    pub id: &'a str,
    pub spec: Value,
    pub stdin: &'a str,
    pub stdout: &'a str,
    pub stderr: &'a str,
    pub terminal: bool,
    pub files: Vec<File>,
    pub volumes: Vec<Volume>,
}

impl<'a> Recipe<'a> {
    pub fn new(id: &'a str, script: &str) -> Self {
        Self {
            id,
            spec: spec(script),
            stdin: "",
            stdout: "",
            stderr: "",
            terminal: false,
            files: Vec::new(),
            volumes: Vec::new(),
        }
    }
}

impl Machine {
    fn rootfs(&self, id: &str) -> Mount {
        let root = self
            .directory
            .path()
            .join("roots")
            .join(id.replace('/', "_"));
        for directory in ["proc", "dev", "sys/fs/cgroup", "usr", "etc", "tmp"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for link in ["bin", "lib", "lib64"] {
            if Path::new("/usr").join(link).exists() && !root.join(link).is_symlink() {
                std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).unwrap();
            }
        }
        Mount {
            type_: "bind".into(),
            source: root.to_str().unwrap().into(),
            ..Default::default()
        }
    }

    pub async fn create(&self, new: Recipe<'_>) -> Result<u32, (Code, String)> {
        let options = CreateOptions {
            spec: serde_json::to_vec(&new.spec).unwrap(),
            files: new.files,
            volumes: new.volumes,
            ..Default::default()
        };
        let request = api::CreateTaskRequest {
            id: new.id.into(),
            bundle: "/run/containerd/bundle".into(),
            rootfs: vec![self.rootfs(new.id)],
            terminal: new.terminal,
            stdin: new.stdin.into(),
            stdout: new.stdout.into(),
            stderr: new.stderr.into(),
            options: MessageField::some(Any {
                type_url: CREATE_OPTIONS.into(),
                value: options.write_to_bytes().unwrap(),
                ..Default::default()
            }),
            ..Default::default()
        };
        Ok(self
            .tasks
            .create(context(), &request)
            .await
            .map_err(status)?
            .pid)
    }

    pub async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: &Value,
        stdout: &str,
        terminal: bool,
    ) {
        let request = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            stdout: stdout.into(),
            terminal,
            spec: MessageField::some(Any {
                value: serde_json::to_vec(process).unwrap(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.tasks.exec(context(), &request).await.unwrap();
    }

    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32, (Code, String)> {
        let request = api::StartRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        Ok(self
            .tasks
            .start(context(), &request)
            .await
            .map_err(status)?
            .pid)
    }

    pub async fn kill(&self, id: &str, exec_id: &str, signal: i32) -> Result<(), (Code, String)> {
        let request = api::KillRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        self.tasks
            .kill(context(), &request)
            .await
            .map_err(status)
            .map(drop)
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let request = api::WaitRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.tasks
            .wait(context(), &request)
            .await
            .unwrap()
            .exit_status
    }

    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<u32, (Code, String)> {
        let request = api::DeleteRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        Ok(self
            .tasks
            .delete(context(), &request)
            .await
            .map_err(status)?
            .exit_status)
    }

    pub async fn status(&self, id: &str, exec_id: &str) -> Result<api::Status, (Code, String)> {
        let request = api::StateRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let state = self
            .tasks
            .state(context(), &request)
            .await
            .map_err(status)?;
        Ok(state.status.enum_value().unwrap())
    }

    /// A stream's connection.
    pub async fn stream(&self, id: u64) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("streams"))
            .await
            .unwrap();
        stream.write_u64_le(id).await.unwrap();
        stream
    }

    /// Everything that comes out of a stream.
    pub async fn output(&self, id: u64) -> String {
        let mut text = String::new();
        self.stream(id)
            .await
            .read_to_string(&mut text)
            .await
            .unwrap();
        text
    }

    /// What the agent keeps of containers, and has mounted for them.
    pub fn left(&self) -> Vec<String> {
        let agent = self.directory.path().join("agent");
        let mut left: Vec<String> = Vec::new();
        for directory in ["containers", "state"] {
            for entry in fs::read_dir(agent.join(directory)).into_iter().flatten() {
                left.push(entry.unwrap().path().display().to_string());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let ours = mounts
            .lines()
            .filter(|line| line.contains(agent.to_str().unwrap()));
        left.extend(ours.map(str::to_owned));
        left
    }
}

fn status(error: Error) -> (Code, String) {
    match error {
        Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    }
}

/// Reads until `text` has come.
pub async fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "the stream ended before {text:?}: {all:?}");
        all.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    all
}
