//! The tests.

use std::fs;
use std::future::Future;

use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteResponse, PidsRequest, StateRequest,
    StatsRequest, Status, UpdateTaskRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest,
    SandboxStatusRequest, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
    WaitSandboxRequest,
};
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::ttrpc::{self, Code};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::shim::Empty;
use protocol::shim_ttrpc::ShimClient;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use crate::Test;
use crate::containerd::{Node, PATIENCE, Shim, call, container_spec, read_all, sandbox_spec};

/// All of them.
pub const TESTS: [Test; 16] = [
    ("a_pod_lives_and_leaves_nothing", || run(lives())),
    ("events_keep_containerds_order", || run(order())),
    ("an_exec_reads_what_the_client_types", || run(exec())),
    ("the_vms_death_ends_everything", || run(vm_death())),
    ("a_lost_guest_is_buried_with_its_log", || run(lost())),
    ("a_hung_guest_does_not_outlive_its_stop", || run(hung())),
    ("the_nodes_tools_are_told", || run(told())),
    ("microvms_are_benched_and_leave_nothing", || run(benched())),
    ("a_killed_shim_is_cleaned_up_after", || run(shim_death())),
    (
        "errors_reach_the_caller_and_leave_nothing",
        || run(errors()),
    ),
    ("a_container_alone_has_a_vm_to_itself", || run(alone())),
    (
        "a_terminated_shim_takes_its_pod_along",
        || run(terminated()),
    ),
    ("what_does_not_exist_is_not_found", || run(not_found())),
    ("a_sandbox_by_the_sandbox_api_lives", || run(sandbox_api())),
    (
        "a_sandbox_that_the_sandbox_api_cannot_have_leaves_nothing",
        || run(sandbox_api_errors()),
    ),
    ("layers_are_shared_and_rebuilt", || run(layers())),
];

pub fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE * 2, test).await })
        .expect("the test ends in time");
}

pub fn code(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    }
}

async fn pod(node: &Node) -> (Shim, u32) {
    let shim = node.start("s1", &sandbox_spec()).await;
    let pid = shim.run_sandbox("s1").await;
    (shim, pid)
}

/// CreateSandbox's options: a pod of this name.
pub fn pod_config(hostname: &str) -> Any {
    let mut value = vec![2 << 3 | 2, u8::try_from(hostname.len()).unwrap()];
    value.extend(hostname.as_bytes());
    Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value,
        ..Default::default()
    }
}

pub fn create_sandbox(shim: &Shim, options: Any) -> CreateSandboxRequest {
    CreateSandboxRequest {
        sandbox_id: "s1".into(),
        bundle_path: shim.bundle.to_str().unwrap().into(),
        options: MessageField::some(options),
        ..Default::default()
    }
}

async fn sandbox_api() {
    let node = Node::new("").await;
    let shim = node.start_without_spec("s1").await;
    let (api, id) = (&shim.sandbox, || "s1".to_owned());
    let status = || async {
        let request = SandboxStatusRequest {
            sandbox_id: id(),
            verbose: true,
            ..Default::default()
        };
        api.sandbox_status(call(), &request).await
    };
    assert_eq!(code(status().await.unwrap_err()).0, Code::NOT_FOUND);
    let request = create_sandbox(&shim, pod_config("pod"));
    api.create_sandbox(call(), &request).await.unwrap();
    let error = api.create_sandbox(call(), &request).await.unwrap_err();
    assert_eq!(code(error).0, Code::ALREADY_EXISTS);
    assert_eq!(status().await.unwrap().state, "SANDBOX_NOTREADY");
    let start = StartSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let started = api.start_sandbox(call(), &start).await.unwrap();
    assert!(started.created_at.seconds > 0);
    let ready = status().await.unwrap();
    assert_eq!(
        (ready.state.as_str(), ready.pid),
        ("SANDBOX_READY", started.pid)
    );
    assert_eq!(ready.created_at, started.created_at);
    let info: serde_json::Value = serde_json::from_str(&ready.info["info"]).unwrap();
    assert_eq!(info["pid"], started.pid);
    let request = PlatformRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let platform = api.platform(call(), &request).await.unwrap().platform;
    assert_eq!(
        (platform.os.as_str(), platform.architecture.as_str()),
        ("linux", "amd64")
    );
    let request = PingRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    api.ping_sandbox(call(), &request).await.unwrap();
    let request = SandboxMetricsRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let metrics = api.sandbox_metrics(call(), &request).await.unwrap().metrics;
    assert_eq!(metrics.id, "s1");
    assert_eq!(metrics.data.type_url, "io.containerd.cgroups.v2.Metrics");
    let data = Metrics::parse_from_bytes(&metrics.data.value).unwrap();
    let numbers: Vec<u32> = data
        .unknown_fields()
        .iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(numbers, [shim::metrics::MEMORY_FIELD]);

    // Containers are tasks; the sandbox is none.
    let spec = container_spec(json!(["exit", "3"]), Some(started.pid));
    create(&node, &shim, "c1", &spec, "").await.unwrap();
    shim.start("c1", "").await.unwrap();
    assert_eq!(shim.wait("c1", "").await, 3);
    let request = PidsRequest {
        id: "c1".into(),
        ..Default::default()
    };
    let pids = shim.task.pids(call(), &request).await.unwrap();
    assert_eq!(pids.processes.len(), 1, "its exit is still to be asked for");
    shim.delete("c1", "").await.unwrap();
    assert_eq!(
        code(shim.delete("s1", "").await.unwrap_err()).0,
        Code::NOT_FOUND
    );
    assert_eq!(status().await.unwrap().state, "SANDBOX_READY");

    let wait = WaitSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let stop = StopSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    let (waited, stopped) = tokio::join!(
        api.wait_sandbox(call(), &wait),
        api.stop_sandbox(call(), &stop)
    );
    stopped.unwrap();
    assert_eq!(waited.unwrap().exit_status, 0);
    let ended = status().await.unwrap();
    assert_eq!(ended.state, "SANDBOX_NOTREADY");
    assert!(ended.exited_at.seconds > 0);
    let request = ShutdownSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    api.shutdown_sandbox(call(), &request).await.unwrap();
    // Asks for what happens anyway, and waits for it.
    shim.shutdown("s1").await;
    assert_eq!(node.events(), ["create", "start c1", "exit c1 3", "delete"]);
    node.assert_clean("s1");
}

async fn sandbox_api_errors() {
    for (options, part) in [
        (pod_config("refused"), "hostname refused"),
        (
            Any {
                type_url: "example.com/Other".into(),
                ..Default::default()
            },
            "example.com/Other",
        ),
    ] {
        let node = Node::new("").await;
        let shim = node.start_without_spec("s1").await;
        let request = create_sandbox(&shim, options);
        let error = shim.sandbox.create_sandbox(call(), &request).await;
        let text = code(error.unwrap_err()).1;
        assert!(text.contains(part), "{text}");
        // What containerd does then.
        let request = ShutdownSandboxRequest {
            sandbox_id: "s1".into(),
            ..Default::default()
        };
        let answer = shim.sandbox.shutdown_sandbox(call(), &request).await;
        answer.unwrap();
        shim.shutdown("s1").await;
        assert!(node.events().is_empty());
        node.assert_clean("s1");
    }
}

async fn create(
    node: &Node,
    shim: &Shim,
    id: &str,
    spec: &serde_json::Value,
    stdout: &str,
) -> ttrpc::Result<u32> {
    let bundle = node.bundle(id, spec);
    shim.create(CreateTaskRequest {
        id: id.into(),
        bundle: bundle.to_str().unwrap().into(),
        rootfs: node.rootfs(id),
        stdout: stdout.into(),
        ..Default::default()
    })
    .await
}

async fn lives() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    assert_eq!(
        fs::read_to_string("/sys/fs/cgroup/test/s1/vmm/cgroup.procs")
            .unwrap()
            .trim(),
        vmm.to_string()
    );
    let connect = ConnectRequest {
        id: "s1".into(),
        ..Default::default()
    };
    assert_eq!(
        shim.task.connect(call(), &connect).await.unwrap().task_pid,
        vmm
    );
    let stats = StatsRequest {
        id: "s1".into(),
        ..Default::default()
    };
    let stats = shim
        .task
        .stats(call(), &stats)
        .await
        .unwrap()
        .stats
        .unwrap();
    assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    Metrics::parse_from_bytes(&stats.value).unwrap();

    let (stdout, reader) = node.output("stdout");
    let spec = container_spec(json!(["echo", "hello"]), Some(vmm));
    let pid = create(&node, &shim, "c1", &spec, &stdout).await.unwrap();
    assert_eq!(shim.start("c1", "").await.unwrap(), pid);
    assert_eq!(shim.wait("c1", "").await, 0);
    let deleted = shim.delete("c1", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 0));
    assert_eq!(read_all(reader).await, "hello");

    shim.kill("s1", 9).await.unwrap();
    assert_eq!(shim.wait("s1", "").await, 137);
    assert_eq!(
        code(shim.kill("s1", 9).await.unwrap_err()).0,
        Code::NOT_FOUND
    );
    let deleted = shim.delete("s1", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (vmm, 137));
    shim.shutdown("s1").await;
    assert_eq!(
        node.events(),
        [
            "create",
            "start s1",
            "create",
            "start c1",
            "exit c1 0",
            "delete",
            "exit s1 137",
            "delete"
        ]
    );
    node.assert_clean("s1");
    // containerd runs it after every end.
    let output = node.shim("s1", "delete");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

async fn order() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    // Its exit is reported before its start is answered.
    let spec = container_spec(json!(["exit", "3"]), Some(vmm));
    create(&node, &shim, "c1", &spec, "").await.unwrap();
    shim.start("c1", "").await.unwrap();
    assert_eq!(shim.wait("c1", "").await, 3);
    // Its exec is reported dead after itself.
    let spec = container_spec(json!(["sleep"]), Some(vmm));
    create(&node, &shim, "c2", &spec, "").await.unwrap();
    shim.start("c2", "").await.unwrap();
    shim.exec("c2", "e1", json!(["sleep"]), "", "")
        .await
        .unwrap();
    shim.start("c2", "e1").await.unwrap();
    let error = shim.delete("c2", "").await.unwrap_err();
    assert_eq!(code(error).0, Code::FAILED_PRECONDITION);
    shim.kill("c2", 15).await.unwrap();
    assert_eq!(shim.wait("c2", "").await, 143);
    shim.delete("c2", "e1").await.unwrap();
    shim.delete("c2", "").await.unwrap();
    shim.delete("c1", "").await.unwrap();
    shim.kill("s1", 15).await.unwrap();
    assert_eq!(shim.wait("s1", "").await, 0);
    shim.delete("s1", "").await.unwrap();
    shim.shutdown("s1").await;
    assert_eq!(
        node.events()[2..],
        [
            "create",
            "start c1",
            "exit c1 3",
            "create",
            "start c2",
            "exec-added",
            "exec-started",
            "exit e1 137",
            "exit c2 143",
            "delete",
            "delete",
            "exit s1 0",
            "delete"
        ]
    );
    node.assert_clean("s1");
}

async fn exec() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    let spec = container_spec(json!(["sleep"]), Some(vmm));
    create(&node, &shim, "c1", &spec, "").await.unwrap();
    shim.start("c1", "").await.unwrap();

    let stdin = node.fifo("stdin");
    let (stdout, reader) = node.output("stdout");
    shim.exec("c1", "e1", json!(["cat"]), &stdin, &stdout)
        .await
        .unwrap();
    let error = shim
        .exec("c1", "e1", json!(["cat"]), "", "")
        .await
        .unwrap_err();
    assert_eq!(code(error).0, Code::ALREADY_EXISTS);
    shim.start("c1", "e1").await.unwrap();
    let mut client = pipe::OpenOptions::new().open_sender(&stdin).unwrap();
    client.write_all(b"typed").await.unwrap();
    let close = CloseIORequest {
        id: "c1".into(),
        exec_id: "e1".into(),
        stdin: true,
        ..Default::default()
    };
    shim.task.close_io(call(), &close).await.unwrap();
    drop(client);
    assert_eq!(read_all(reader).await, "typed");
    assert_eq!(shim.wait("c1", "e1").await, 0);
    shim.delete("c1", "e1").await.unwrap();
    let state = StateRequest {
        id: "c1".into(),
        ..Default::default()
    };
    let state = shim.task.state(call(), &state).await.unwrap();
    assert_eq!(state.status.enum_value(), Ok(Status::RUNNING));
    end(&node, shim).await;
}

async fn vm_death() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    let spec = container_spec(json!(["sleep"]), Some(vmm));
    create(&node, &shim, "c1", &spec, "").await.unwrap();
    shim.start("c1", "").await.unwrap();
    shim.exec("c1", "e1", json!(["sleep"]), "", "")
        .await
        .unwrap();
    shim.start("c1", "e1").await.unwrap();
    kill(Pid::from_raw(vmm as i32), Signal::SIGKILL).unwrap();
    let (exec, container, sandbox) = tokio::join!(
        shim.wait("c1", "e1"),
        shim.wait("c1", ""),
        shim.wait("s1", "")
    );
    assert_eq!((exec, container, sandbox), (137, 137, 137));
    // containerd goes on: it kills what is dead, asks, and deletes.
    assert_eq!(
        code(shim.kill("c1", 9).await.unwrap_err()).0,
        Code::NOT_FOUND
    );
    let spec = container_spec(json!(["sleep"]), Some(vmm));
    let error = create(&node, &shim, "c2", &spec, "").await.unwrap_err();
    assert_eq!(code(error).0, Code::FAILED_PRECONDITION);
    shim.delete("c1", "").await.unwrap();
    shim.delete("s1", "").await.unwrap();
    shim.shutdown("s1").await;
    assert_eq!(
        node.events()[6..],
        [
            "exit e1 137",
            "exit c1 137",
            "exit s1 137",
            "delete",
            "delete"
        ]
    );
    node.assert_clean("s1");

    // The same, in the middle of a request.
    let (shim, vmm) = pod_again(&node).await;
    let spec = container_spec(json!(["die"]), Some(vmm));
    create(&node, &shim, "c3", &spec, "").await.unwrap();
    shim.start("c3", "").await.unwrap_err();
    assert_eq!(shim.wait("c3", "").await, 137);
    end(&node, shim).await;
}

/// What a guest says last is in the error and in a file, whatever ends it.
async fn lost() {
    let node = Node::new("").await;
    let (mut shim, mut vmm) = pod(&node).await;
    for (does, reason) in [
        ("panic", "guest panic"),
        ("leave", "the guest's agent is gone"),
        ("die", "the VMM has died"),
    ] {
        let spec = container_spec(json!([does]), Some(vmm));
        create(&node, &shim, "c3", &spec, "").await.unwrap();
        shim.start("c3", "").await.unwrap_err();
        assert_eq!(shim.wait("c3", "").await, 137);
        end(&node, shim).await;
        let kept = node.obituaries();
        assert!(kept.contains(reason), "{does}: {kept}");
        assert_eq!(
            kept.contains("the kernel said this"),
            does != "die",
            "{kept}"
        );
        fs::remove_dir_all(node.bundle_dir("c3")).unwrap();
        (shim, vmm) = pod_again(&node).await;
    }
    // An end that was asked for is no death.
    let kept = node.obituaries();
    end(&node, shim).await;
    assert_eq!(node.obituaries(), kept);
}

async fn hung() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    let spec = container_spec(json!(["sleep"]), Some(vmm));
    create(&node, &shim, "c1", &spec, "").await.unwrap();
    shim.start("c1", "").await.unwrap();
    kill(Pid::from_raw(vmm as i32), Signal::SIGSTOP).unwrap();
    // containerd's stop: a signal, the grace period, another.
    shim.kill("c1", 15).await.unwrap();
    shim.kill("c1", 9).await.unwrap();
    let (container, sandbox) = tokio::join!(shim.wait("c1", ""), shim.wait("s1", ""));
    assert_eq!((container, sandbox), (137, 137));
    shim.delete("c1", "").await.unwrap();
    shim.delete("s1", "").await.unwrap();
    shim.shutdown("s1").await;
    assert_eq!(
        node.events()[4..],
        ["exit c1 137", "exit s1 137", "delete", "delete"]
    );
    let kept = node.obituaries();
    assert!(kept.contains("the guest hangs"), "{kept}");
    node.assert_clean("s1");
}

async fn told() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    let spec = container_spec(json!(["sleep"]), Some(vmm));
    create(&node, &shim, "c1", &spec, "").await.unwrap();
    shim.start("c1", "").await.unwrap();
    let tools = ShimClient::new(Client::connect(&shim.address).await.unwrap());
    let told = tools.describe(call(), &Empty::new()).await.unwrap();
    assert_eq!(told.state, "running");
    assert_eq!(told.containers.len(), 1);
    assert_eq!(told.containers[0].id, "c1");
    assert_eq!(told.containers[0].state, "running");
    let metrics = tools.metrics(call(), &Empty::new()).await.unwrap();
    let names: Vec<_> = metrics
        .families
        .iter()
        .map(|family| family.name.as_str())
        .collect();
    for name in ["joey_shim_requests_total", "joey_vmm_net_sent_bytes_total"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let memory = |part: &str| {
        let families = metrics.families.iter();
        let mut samples = families
            .filter(|family| family.name == "joey_sandbox_memory_bytes")
            .flat_map(|family| &family.samples);
        samples
            .find(|sample| sample.labels["part"] == part)
            .unwrap()
            .value
    };
    // The played VMM's program passes for the guest's kernel.
    for part in ["vmm", "shim", "guest_private", "shared"] {
        assert!(memory(part) > 4096.0, "{part}: {}", memory(part));
    }
    let log = tools.kernel_log(call(), &Empty::new()).await.unwrap();
    assert_eq!(log.text, "[    1.000000] the kernel said this\n");

    let output = node.joeyctl(&["bench", "--running", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["starts"], 1, "{output:?}");
    let stages = told["stages"].as_array().unwrap();
    assert!(stages.iter().any(|stage| stage["name"] == "load"), "{told}");
    end(&node, shim).await;
}

async fn benched() {
    let node = Node::new("").await;
    let output = node.joeyctl(&["bench", "--runs", "3"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("\n3 starts: median "), "{text}");
    for stage in ["spawn", "load", "run", "ready", "first call"] {
        let drawn = |line: &str| line.starts_with(stage) && line.ends_with('#');
        assert!(text.lines().any(drawn), "no {stage} in {text}");
    }
    assert_eq!(fs::read_dir(node.temporary()).unwrap().count(), 0);
    node.assert_clean("none");

    // Nor does one that fails leave anything.
    node.reconfigure("vmm", "/bin/false");
    let output = node.joeyctl(&["bench"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("cannot boot"),
        "{text}"
    );
    assert_eq!(fs::read_dir(node.temporary()).unwrap().count(), 0);
    let output = node.joeyctl(&["bench", "--running"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no sandbox runs"), "{text}");
}

async fn pod_again(node: &Node) -> (Shim, u32) {
    fs::remove_dir_all(node.bundle_dir("s1")).unwrap();
    pod(node).await
}

async fn shim_death() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    kill_shim(&shim, vmm).await;
    let output = node.shim("s1", "delete");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((response.pid, response.exit_status), (vmm, 137));
    node.assert_clean("s1");

    // Nobody asks for its removal, as after a crash of containerd too.
    let (shim, vmm) = pod_again(&node).await;
    kill_shim(&shim, vmm).await;
    let output = node.joeyctl(&["reconcile"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("test/s1"),
        "{output:?}"
    );
    fs::remove_file(shim.address.trim_start_matches("unix://")).unwrap();
    node.assert_clean("s1");
}

/// Kills the shim, and stops its VMM: one that hangs does not even notice that its owner
/// is gone.
async fn kill_shim(shim: &Shim, vmm: u32) {
    let connect = ConnectRequest {
        id: "s1".into(),
        ..Default::default()
    };
    let pid = shim.task.connect(call(), &connect).await.unwrap().shim_pid;
    kill(Pid::from_raw(vmm as i32), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    // It is nobody's child here, and gone when its socket takes no more.
    let path = shim.address.trim_start_matches("unix://").to_owned();
    while std::os::unix::net::UnixStream::connect(&path).is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn errors() {
    for (extra, part) in [
        ("[no_such_table]", "no_such_table"),
        ("uid_base = 0", "uid_base"),
    ] {
        let text = refused(extra, &sandbox_spec()).await;
        assert!(
            text.contains(part) && text.contains("config.toml"),
            "{text}"
        );
    }
    let mut spec = sandbox_spec();
    spec["hostname"] = json!("refused");
    let text = refused("", &spec).await;
    assert!(text.contains("hostname refused"), "{text}");
    let mut spec = sandbox_spec();
    spec["linux"]["namespaces"] = json!([{"type": "pid"}]);
    assert!(refused("", &spec).await.contains("hostNetwork"));
    let mut spec = sandbox_spec();
    spec["linux"]["namespaces"][4]["path"] = json!("/run/netns/none");
    assert!(refused("", &spec).await.contains("/run/netns/none"));

    for file in ["kernel", "vmm", "agent"] {
        let node = Node::new("").await;
        node.reconfigure(file, "/no/such/file");
        let text = refused_by(&node, &sandbox_spec()).await;
        assert!(text.contains("/no/such/file"), "{text}");
        node.reconfigure(file, "/etc/passwd");
        fs::remove_dir_all(node.bundle_dir("s1")).unwrap();
        let text = refused_by(&node, &sandbox_spec()).await;
        assert!(text.contains("/etc/passwd is not"), "{text}");
    }

    // A container that fails leaves its pod whole.
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    let spec = container_spec(json!(["no-such-command"]), Some(vmm));
    let (code, text) = code(create(&node, &shim, "c1", &spec, "").await.unwrap_err());
    assert_eq!(code, Code::NOT_FOUND);
    assert!(text.contains("no-such-command"), "{text}");

    // The VM grows.
    let update = UpdateTaskRequest {
        id: "s1".into(),
        resources: MessageField::some(Any {
            value: json!({"memory": {"limit": 1 << 30}})
                .to_string()
                .into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    shim.task.update(call(), &update).await.unwrap();

    end(&node, shim).await;
}

/// The text of the error that containerd gets for this sandbox.
async fn refused(extra: &str, spec: &serde_json::Value) -> String {
    refused_by(&Node::new(extra).await, spec).await
}

async fn refused_by(node: &Node, spec: &serde_json::Value) -> String {
    let shim = node.start("s1", spec).await;
    let request = CreateTaskRequest {
        id: "s1".into(),
        bundle: shim.bundle.to_str().unwrap().into(),
        ..Default::default()
    };
    let text = code(shim.create(request).await.unwrap_err()).1;
    // What containerd does then.
    let error = shim.delete("s1", "").await.unwrap_err();
    assert_eq!(code(error).0, Code::NOT_FOUND);
    shim.shutdown("s1").await;
    node.assert_clean("s1");
    text
}

async fn alone() {
    let node = Node::new("").await;
    let spec = container_spec(json!(["echo", "alone"]), None);
    let shim = node.start("c1", &spec).await;
    let (stdout, reader) = node.output("stdout");
    let pid = shim
        .create(CreateTaskRequest {
            id: "c1".into(),
            bundle: shim.bundle.to_str().unwrap().into(),
            rootfs: node.rootfs("c1"),
            stdout,
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(shim.start("c1", "").await.unwrap(), pid);
    assert_eq!(shim.wait("c1", "").await, 0);
    assert_eq!(read_all(reader).await, "alone");
    assert_eq!(shim.delete("c1", "").await.unwrap().exit_status, 0);
    shim.shutdown("c1").await;
    assert_eq!(node.events(), ["create", "start c1", "exit c1 0", "delete"]);
    node.assert_clean("c1");
}

async fn terminated() {
    let node = Node::new("").await;
    let (shim, _) = pod(&node).await;
    let connect = ConnectRequest {
        id: "s1".into(),
        ..Default::default()
    };
    let pid = shim.task.connect(call(), &connect).await.unwrap().shim_pid;
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    // Asks for what happens anyway, and waits for it.
    shim.shutdown("s1").await;
    assert_eq!(node.events().last().unwrap(), "exit s1 137");
    node.assert_clean("s1");
}

async fn not_found() {
    let node = Node::new("").await;
    let (shim, _) = pod(&node).await;
    for (id, exec) in [("c9", ""), ("s1", "e9"), ("c9", "e9")] {
        let error = shim.delete(id, exec).await.unwrap_err();
        assert_eq!(code(error).0, Code::NOT_FOUND, "{id} {exec}");
        let error = shim.start(id, exec).await.unwrap_err();
        assert_eq!(code(error).0, Code::NOT_FOUND, "{id} {exec}");
    }
    // A second shim is not started for a pod that has one, nor for a container
    // whose pod is gone.
    let spec = container_spec(json!(["sleep"]), Some(1));
    node.bundle("c1", &spec);
    let output = node.shim("c1", "start");
    assert!(String::from_utf8_lossy(&output.stdout).contains(&shim.address));
    end(&node, shim).await;
    let output = node.shim("c1", "start");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("sandbox s1 is not running"), "{text}");
}

async fn layers() {
    let node = Node::new("").await;
    let (shim, vmm) = pod(&node).await;
    for id in ["c1", "c2"] {
        let spec = container_spec(json!(["exit", "0"]), Some(vmm));
        create(&node, &shim, id, &spec, "").await.unwrap();
        shim.start(id, "").await.unwrap();
        shim.wait(id, "").await;
    }
    assert_eq!(node.blobs(), 1);
    for id in ["c1", "c2"] {
        shim.delete(id, "").await.unwrap();
    }
    // A blob that rots is made anew, without a word to the user.
    node.damage_blobs();
    let spec = container_spec(json!(["exit", "0"]), Some(vmm));
    create(&node, &shim, "c3", &spec, "").await.unwrap();
    assert_eq!(node.blobs(), 1);
    // A container that never started can be removed.
    shim.delete("c3", "").await.unwrap();
    end(&node, shim).await;
}

/// Stops the pod, deletes what is left and ends the shim.
async fn end(node: &Node, shim: Shim) {
    // It may have died.
    let _ = shim.kill("s1", 9).await;
    assert_eq!(shim.wait("s1", "").await, 137);
    for id in ["c1", "c2", "c3"] {
        let _ = shim.delete(id, "").await;
    }
    shim.delete("s1", "").await.unwrap();
    shim.shutdown("s1").await;
    node.assert_clean("s1");
}
