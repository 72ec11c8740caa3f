//! Pods on the host's kernel: no VMM is played, the containers are real. Their root file
//! systems are overlays over this machine's own.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, KillRequest, PauseRequest, PidsRequest, ResizePtyRequest,
    ResumeRequest, StateRequest, StatsRequest, Status, UpdateTaskRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, SandboxStatusRequest, ShutdownSandboxRequest, StartSandboxRequest,
    StopSandboxRequest, WaitSandboxRequest,
};
use containerd_shim_protos::ttrpc::Code;
use containerd_shim_protos::types::mount::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::Test;
use crate::containerd::{Node, Shim, call, container_spec, read_all, sandbox_spec};
use crate::pods::{code, create_sandbox, pod_config, run};

/// All of them.
pub const TESTS: [Test; 9] = [
    ("shared_a_pod_lives_and_leaves_nothing", || run(lives())),
    ("shared_an_exec_reads_and_writes", || run(exec())),
    ("shared_a_terminal_is_carried", || run(terminal())),
    ("shared_what_is_asked_of_a_container", || run(asked())),
    ("shared_without_pids_of_its_own_all_end", || run(siblings())),
    ("shared_a_killed_shim_is_cleaned_up_after", || run(killed())),
    ("shared_a_shim_that_nobody_knows_ends_with_delete", || {
        run(unknown())
    }),
    ("shared_errors_leave_nothing", || run(errors())),
    ("shared_a_sandbox_by_the_sandbox_api_lives", || {
        run(sandbox_api())
    }),
];

async fn node() -> Node {
    Node::new("mode = \"runc\"").await
}

/// A root file system: this machine's, with a layer of its own.
fn rootfs(id: &str) -> Vec<Mount> {
    let own = Path::new("/run/uppers").join(id);
    let (upper, work) = (own.join("fs"), own.join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let options = ["lowerdir=/".to_owned()]
        .into_iter()
        .chain([format!("upperdir={}", upper.display())])
        .chain([format!("workdir={}", work.display())]);
    vec![Mount {
        type_: "overlay".into(),
        source: "overlay".into(),
        options: options.collect(),
        ..Default::default()
    }]
}

fn request_of(node: &Node, id: &str) -> CreateTaskRequest {
    CreateTaskRequest {
        id: id.into(),
        bundle: node.bundle_dir(id).to_str().unwrap().into(),
        rootfs: rootfs(id),
        ..Default::default()
    }
}

fn spec(args: Value) -> Value {
    let mut spec = container_spec(args, None);
    spec["process"]["env"] = json!(["PATH=/usr/bin:/bin"]);
    spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
    ]);
    spec
}

/// A container by itself, which runs a script.
async fn alone(node: &Node, script: &str, stdout: &str) -> (Shim, u32) {
    let shim = node.start("c1", &spec(json!(["sh", "-c", script]))).await;
    let request = CreateTaskRequest {
        stdout: stdout.into(),
        ..request_of(node, "c1")
    };
    let pid = shim.create(request).await.unwrap();
    assert_eq!(shim.start("c1", "").await.unwrap(), pid);
    (shim, pid)
}

fn assert_clean(node: &Node, ids: &[&str]) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for id in ids {
        node.assert_clean(id);
        let bundle = node.bundle_dir(id);
        assert!(!mounts.contains(bundle.to_str().unwrap()), "{mounts}");
        assert!(!bundle.join("joey").exists());
    }
}

async fn lives() {
    let node = node().await;
    let mut sandbox = sandbox_spec();
    sandbox["process"] = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["sleep", "1000"], "env": ["PATH=/usr/bin:/bin"]});
    sandbox["root"] = json!({"path": "rootfs"});
    let shim = node.start("s1", &sandbox).await;
    let holder = shim.create(request_of(&node, "s1")).await.unwrap();
    shim.start("s1", "").await.unwrap();

    let mut spec = spec(json!(["sh", "-c", "hostname; echo oops >&2; exit 7"]));
    spec["annotations"] = container_spec(json!([]), Some(holder))["annotations"].clone();
    spec["linux"]["namespaces"] =
        container_spec(json!([]), Some(holder))["linux"]["namespaces"].clone();
    node.bundle("c1", &spec);
    // The pod's shim serves it.
    assert!(node.shim("c1", "start").status.success());
    let ((stdout, out), (stderr, err)) = (node.output("out"), node.output("err"));
    let create = CreateTaskRequest {
        stdout,
        stderr,
        ..request_of(&node, "c1")
    };
    let pid = shim.create(create).await.unwrap();
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/ns/uts")).unwrap(),
        fs::read_link(format!("/proc/{holder}/ns/uts")).unwrap()
    );
    let state = StateRequest {
        id: "c1".into(),
        ..Default::default()
    };
    let status = || async { shim.task.state(call(), &state).await.unwrap() };
    assert_eq!(status().await.status, Status::CREATED.into());
    shim.start("c1", "").await.unwrap();
    assert_eq!(shim.wait("c1", "").await, 7);
    assert_eq!(read_all(out).await, "pod\n");
    assert_eq!(read_all(err).await, "oops\n");
    let stopped = status().await;
    assert_eq!((stopped.exit_status, stopped.pid), (7, pid));
    let error = code(shim.kill("c1", 9).await.unwrap_err());
    assert_eq!(error.0, Code::NOT_FOUND);
    let deleted = shim.delete("c1", "").await.unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (7, pid));

    shim.kill("s1", 9).await.unwrap();
    assert_eq!(shim.wait("s1", "").await, 137);
    shim.delete("s1", "").await.unwrap();
    shim.shutdown("s1").await;
    let expected = [
        "create",
        "start s1",
        "create",
        "start c1",
        "exit c1 7",
        "delete",
        "exit s1 137",
        "delete",
    ];
    assert_eq!(node.events(), expected);
    assert_clean(&node, &["s1", "c1"]);
}

async fn exec() {
    let node = node().await;
    let (shim, _) = alone(&node, "exec sleep 1000", "").await;
    let (stdin, (stdout, out)) = (node.fifo("in"), node.output("out"));
    shim.exec("c1", "e1", json!(["cat"]), &stdin, &stdout)
        .await
        .unwrap();
    let error = shim.exec("c1", "e1", json!(["cat"]), "", "").await;
    assert_eq!(code(error.unwrap_err()).0, Code::ALREADY_EXISTS);
    let pid = shim.start("c1", "e1").await.unwrap();
    let pids = PidsRequest {
        id: "c1".into(),
        ..Default::default()
    };
    let listed = shim.task.pids(call(), &pids).await.unwrap().processes;
    assert!(
        listed
            .iter()
            .any(|one| one.pid == pid && one.info.is_some())
    );
    let mut client = pipe::OpenOptions::new().open_sender(&stdin).unwrap();
    client.write_all(b"typed\n").await.unwrap();
    drop(client);
    let close = CloseIORequest {
        id: "c1".into(),
        exec_id: "e1".into(),
        stdin: true,
        ..Default::default()
    };
    shim.task.close_io(call(), &close).await.unwrap();
    assert_eq!(shim.wait("c1", "e1").await, 0);
    assert_eq!(read_all(out).await, "typed\n");
    shim.delete("c1", "e1").await.unwrap();

    // A command that is not there is told, and nobody waits for it.
    shim.exec("c1", "e2", json!(["/nowhere"]), "", "")
        .await
        .unwrap();
    let error = code(shim.start("c1", "e2").await.unwrap_err());
    assert!(error.1.contains("/nowhere"), "{error:?}");
    assert_eq!(shim.wait("c1", "e2").await, 255);
    shim.delete("c1", "e2").await.unwrap();

    // One that runs ends, and is told, before its container.
    shim.exec("c1", "e3", json!(["sleep", "1000"]), "", "")
        .await
        .unwrap();
    shim.start("c1", "e3").await.unwrap();
    shim.kill("c1", 9).await.unwrap();
    shim.wait("c1", "").await;
    shim.delete("c1", "").await.unwrap();
    shim.shutdown("c1").await;
    let exits: Vec<_> = node
        .events()
        .into_iter()
        .filter(|event| event.starts_with("exit"))
        .collect();
    assert_eq!(exits, ["exit e1 0", "exit e3 137", "exit c1 137"]);
    assert_clean(&node, &["c1"]);
}

async fn terminal() {
    let node = node().await;
    let script = "stty size; read line; echo got-$line; test -t 1";
    let shim = node.start("c1", &spec(json!(["sh", "-c", script]))).await;
    let (stdin, (stdout, out)) = (node.fifo("in"), node.output("out"));
    let mut client = None;
    let create = CreateTaskRequest {
        stdin: stdin.clone(),
        stdout,
        terminal: true,
        ..request_of(&node, "c1")
    };
    shim.create(create).await.unwrap();
    let resize = ResizePtyRequest {
        id: "c1".into(),
        width: 101,
        height: 33,
        ..Default::default()
    };
    shim.task.resize_pty(call(), &resize).await.unwrap();
    shim.start("c1", "").await.unwrap();
    let typed = client.insert(pipe::OpenOptions::new().open_sender(&stdin).unwrap());
    typed.write_all(b"hello\n").await.unwrap();
    assert_eq!(shim.wait("c1", "").await, 0);
    let said = read_all(out).await;
    assert!(
        said.contains("33 101") && said.contains("got-hello"),
        "{said}"
    );
    shim.delete("c1", "").await.unwrap();
    shim.shutdown("c1").await;
    assert_clean(&node, &["c1"]);
}

async fn asked() {
    let node = node().await;
    let (shim, pid) = alone(
        &node,
        "trap 'exit 5' TERM; while :; do sleep 0.05; done",
        "",
    )
    .await;
    let id = || "c1".to_owned();
    let pause = PauseRequest {
        id: id(),
        ..Default::default()
    };
    shim.task.pause(call(), &pause).await.unwrap();
    let frozen = fs::read_to_string("/sys/fs/cgroup/test/c1/cgroup.events").unwrap();
    assert!(frozen.contains("frozen 1"), "{frozen}");
    assert!(shim.task.pause(call(), &pause).await.is_err());
    let resume = ResumeRequest {
        id: id(),
        ..Default::default()
    };
    shim.task.resume(call(), &resume).await.unwrap();
    let stats = StatsRequest {
        id: id(),
        ..Default::default()
    };
    let stats = shim.task.stats(call(), &stats).await.unwrap().stats;
    let metrics = Metrics::parse_from_bytes(&stats.value).unwrap();
    assert!(metrics.cpu.usage_usec > 0);
    let update = UpdateTaskRequest {
        id: id(),
        resources: MessageField::some(Any {
            value: b"{\"pids\": {\"limit\": \"x\"}}".to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let error = shim.task.update(call(), &update).await.unwrap_err();
    assert_eq!(code(error).0, Code::INVALID_ARGUMENT);
    assert!(shim.delete("c1", "").await.is_err(), "it runs");
    let bad = KillRequest {
        id: id(),
        signal: 65,
        ..Default::default()
    };
    assert!(shim.task.kill(call(), &bad).await.is_err());
    shim.kill("c1", 15).await.unwrap();
    assert_eq!(shim.wait("c1", "").await, 5);
    // Listed until it is deleted, for a containerd that is started anew.
    let pids = PidsRequest {
        id: id(),
        ..Default::default()
    };
    let listed = shim.task.pids(call(), &pids).await.unwrap().processes;
    assert_eq!(listed.iter().map(|one| one.pid).collect::<Vec<_>>(), [pid]);
    shim.delete("c1", "").await.unwrap();
    shim.shutdown("c1").await;
    assert_clean(&node, &["c1"]);
}

/// In a pid namespace of others nobody but the shim ends what the first process leaves.
async fn siblings() {
    let node = node().await;
    let mut spec = spec(json!(["sh", "-c", "setsid sleep 1000 & sleep 0.2; exit 3"]));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    spec["mounts"] = json!([]);
    let shim = node.start("c1", &spec).await;
    let (stdout, out) = node.output("out");
    let create = CreateTaskRequest {
        stdout,
        ..request_of(&node, "c1")
    };
    shim.create(create).await.unwrap();
    shim.start("c1", "").await.unwrap();
    assert_eq!(shim.wait("c1", "").await, 3);
    // It held the output open.
    assert_eq!(read_all(out).await, "");
    shim.delete("c1", "").await.unwrap();
    shim.shutdown("c1").await;
    assert_clean(&node, &["c1"]);
}

async fn killed() {
    let node = node().await;
    let (shim, pid) = alone(&node, "exec sleep 1000", "").await;
    // Another of the pod, which containerd 2 does not ask about.
    let mut other = spec(json!(["sleep", "1000"]));
    other["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "c1",
    });
    other["linux"]["cgroupsPath"] = json!("/test/c2");
    node.bundle("c2", &other);
    assert!(node.shim("c2", "start").status.success());
    shim.create(request_of(&node, "c2")).await.unwrap();
    shim.start("c2", "").await.unwrap();
    let shim_pid: i32 = fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        .unwrap();
    kill(Pid::from_raw(shim_pid), Signal::SIGKILL).unwrap();
    drop(shim);
    let output = node.shim("c1", "delete");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_clean(&node, &["c1", "c2"]);
    // Again, as after a normal end.
    assert!(node.shim("c1", "delete").status.success());
}

/// containerd was killed when it had started the shim and not yet learnt of it.
async fn unknown() {
    let node = node().await;
    let shim = node.start_without_spec("s1").await;
    let api = shim.sandbox.clone();
    let request = create_sandbox(&shim, pod_config("pod"));
    api.create_sandbox(call(), &request).await.unwrap();
    drop(shim);
    let output = node.shim("s1", "delete");
    assert!(output.status.success(), "{output:?}");
    assert_clean(&node, &["s1"]);
    let bundle = node.bundle_dir("s1");
    let served = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| fs::read_link(process.path().join("cwd")).ok())
            .any(|cwd| cwd == bundle)
    };
    while served() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn errors() {
    let node = node().await;
    let shim = node.start("c1", &spec(json!(["/nowhere"]))).await;
    let error = code(shim.create(request_of(&node, "c1")).await.unwrap_err());
    assert!(error.1.contains("/nowhere"), "{error:?}");
    assert_clean_but_for_the_socket(&node);
    // A root file system that cannot be.
    let create = CreateTaskRequest {
        rootfs: vec![Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec!["lowerdir=/nowhere".into()],
            ..Default::default()
        }],
        ..request_of(&node, "c1")
    };
    let error = code(shim.create(create).await.unwrap_err());
    assert!(error.1.contains("overlay root file system"), "{error:?}");
    // A stream that cannot be.
    let create = CreateTaskRequest {
        stdout: "/etc/passwd".into(),
        ..request_of(&node, "c1")
    };
    let error = code(shim.create(create).await.unwrap_err());
    assert!(error.1.contains("FIFO"), "{error:?}");
    assert_clean_but_for_the_socket(&node);
    assert_eq!(
        code(shim.kill("c1", 9).await.unwrap_err()).0,
        Code::NOT_FOUND
    );
    shim.shutdown("c1").await;
    assert_eq!(node.events(), [""; 0]);
    assert_clean(&node, &["c1"]);
}

/// A network namespace as the CNI leaves one.
fn netns() -> String {
    let path = "/run/netns-of-a-pod";
    fs::write(path, "").unwrap();
    let make = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let own = Some("/proc/thread-self/ns/net");
        mount(own, path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    });
    make.join().unwrap();
    path.to_owned()
}

/// Nobody gives it a pause container: what holds its namespaces is the shim's affair.
async fn sandbox_api() {
    let node = node().await;
    let shim = node.start_without_spec("s1").await;
    let (api, id) = (&shim.sandbox, || "s1".to_owned());
    // By its configuration the operator chooses; the request's options are the pod's.
    let request = CreateSandboxRequest {
        netns_path: netns(),
        ..create_sandbox(&shim, pod_config("pod"))
    };
    api.create_sandbox(call(), &request).await.unwrap();
    let error = api.create_sandbox(call(), &request).await.unwrap_err();
    assert_eq!(code(error).0, Code::ALREADY_EXISTS);
    let start = StartSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let holder = api.start_sandbox(call(), &start).await.unwrap().pid;
    let status = SandboxStatusRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let state = || async { api.sandbox_status(call(), &status).await.unwrap().state };
    assert_eq!(state().await, "SANDBOX_READY");

    // In its pid namespace too, whose first process is the holder: orphans are collected.
    let script = "hostname; cat /etc/hostname; stat -fc %T /dev/shm; (sleep 0.1 &); sleep 0.3; \
                  grep -l '^State:.Z' /proc/[0-9]*/status; echo $$; exec sleep 1000";
    let mut spec = spec(json!(["sh", "-c", script]));
    spec["annotations"] = container_spec(json!([]), Some(holder))["annotations"].clone();
    let joined = ["pid", "ipc", "uts", "network"].map(|kind| {
        let name = if kind == "network" { "net" } else { kind };
        json!({"type": kind, "path": format!("/proc/{holder}/ns/{name}")})
    });
    spec["linux"]["namespaces"] = json!([&joined[..], &[json!({"type": "mount"})]].concat());
    node.bundle("c1", &spec);
    assert!(node.shim("c1", "start").status.success());
    let (stdout, out) = node.output("out");
    let create = CreateTaskRequest {
        stdout,
        ..request_of(&node, "c1")
    };
    shim.create(create).await.unwrap();
    shim.start("c1", "").await.unwrap();
    shim.exec("c1", "e1", json!(["sleep", "1000"]), "", "")
        .await
        .unwrap();
    shim.start("c1", "e1").await.unwrap();

    let stop = StopSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let wait = WaitSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let mut lines = String::new();
    let mut out = tokio::io::BufReader::new(out);
    for _ in 0..4 {
        out.read_line(&mut lines).await.unwrap();
    }
    assert_eq!(lines, "pod\npod\ntmpfs\n2\n");
    api.stop_sandbox(call(), &stop).await.unwrap();
    let ended = api.wait_sandbox(call(), &wait).await.unwrap();
    assert_eq!(ended.exit_status, 0, "it was asked to");
    assert_eq!(state().await, "SANDBOX_NOTREADY");
    assert_eq!(shim.wait("c1", "").await, 137);
    shim.delete("c1", "").await.unwrap();
    let shutdown = ShutdownSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    api.shutdown_sandbox(call(), &shutdown).await.unwrap();
    shim.shutdown("s1").await;
    assert!(!node.events().iter().any(|event| event.contains("s1")));
    assert_clean(&node, &["s1", "c1"]);
}

fn assert_clean_but_for_the_socket(node: &Node) {
    assert!(!node.bundle_dir("c1").join("joey").exists());
    assert!(!Path::new("/sys/fs/cgroup/test/c1").exists());
}
