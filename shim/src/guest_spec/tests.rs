use serde_json::{Value, json};

use super::*;

const POD: Pod = Pod {
    sandbox_pid: 4242,
    container_pids: &[17],
    alone: false,
};

/// The part of containerd's spec for a pod's container that is edited.
fn cri_spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "node-1",
        "process": {
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [10]},
            "args": ["/bin/app", "--flag"],
            "env": ["A=b"],
            "cwd": "/srv",
            "apparmorProfile": "cri-containerd.apparmor.d",
            "selinuxLabel": "system_u:object_r:x",
            "oomScoreAdj": 978,
            "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_CHOWN"]},
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/dev/shm", "type": "bind", "options": ["rbind", "rprivate", "rw"],
             "source": "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/abc/shm"},
        ],
        "annotations": {
            "io.kubernetes.cri.container-name": "app",
            "io.kubernetes.cri.container-type": "container",
            "com.example.secret": "x",
        },
        "linux": {
            "cgroupsPath": "kubepods-pod1.slice:cri-containerd:abc",
            "mountLabel": "label",
            "maskedPaths": ["/proc/kcore"],
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc", "path": "/proc/4242/ns/ipc"},
                {"type": "uts", "path": "/proc/4242/ns/uts"},
                {"type": "mount"},
                {"type": "network", "path": "/proc/4242/ns/net"},
                {"type": "cgroup"},
            ],
            "resources": {
                "memory": {"limit": 67108864},
                "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-3"},
                "pids": {"limit": 100},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
                "blockIO": {"weight": 10},
                "devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
                    {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "rwm"},
                    {"allow": true, "type": "c", "access": "m"},
                ],
            },
        },
    })
}

fn edit(spec: &Value) -> Result<(Value, Vec<File>), SpecError> {
    let spec = parse(spec.to_string().as_bytes())?;
    let guest = container(&spec, "c1", &POD)?;
    Ok((serde_json::from_slice(&guest.json).unwrap(), guest.files))
}

fn error(spec: &Value) -> String {
    edit(spec).unwrap_err().to_string()
}

fn namespaces(guest: &Value) -> Vec<&str> {
    guest["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap())
        .collect()
}

fn with_mount(mount: Value) -> Value {
    let mut spec = cri_spec();
    spec["mounts"].as_array_mut().unwrap().push(mount);
    spec
}

#[test]
fn a_pods_container_keeps_what_holds_in_the_guest() {
    let (guest, files) = edit(&cri_spec()).unwrap();
    assert!(files.is_empty());
    assert_eq!(guest["process"]["args"], json!(["/bin/app", "--flag"]));
    assert_eq!(guest["process"]["user"]["uid"], 1000);
    assert_eq!(guest["process"]["cwd"], "/srv");
    assert_eq!(guest["process"]["oomScoreAdj"], 978);
    assert_eq!(guest["root"], json!({"path": "rootfs", "readonly": true}));
    assert_eq!(guest["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    let resources = &guest["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 67_108_864);
    assert_eq!(resources["cpu"]["quota"], 50_000);
    assert_eq!(resources["pids"]["limit"], 100);
    assert_eq!(guest["mounts"][1]["source"], ids_shm());
}

fn ids_shm() -> &'static str {
    protocol::ids::SHM_PATH
}

#[test]
fn a_pods_container_loses_what_is_the_hosts() {
    let (guest, _) = edit(&cri_spec()).unwrap();
    assert_eq!(namespaces(&guest), ["pid", "mount", "cgroup"]);
    assert_eq!(guest["linux"]["cgroupsPath"], "/c1");
    assert_eq!(guest["hostname"], Value::Null);
    assert_eq!(guest["process"]["apparmorProfile"], Value::Null);
    assert_eq!(guest["process"]["selinuxLabel"], Value::Null);
    assert_eq!(guest["linux"]["mountLabel"], Value::Null);
    assert_eq!(guest["annotations"]["com.example.secret"], Value::Null);
    assert_eq!(
        guest["annotations"]["io.kubernetes.cri.container-name"],
        "app"
    );
    let resources = &guest["linux"]["resources"];
    assert_eq!(resources["hugepageLimits"], Value::Null);
    assert_eq!(resources["blockIO"], Value::Null);
    assert_eq!(resources["cpu"]["cpus"], Value::Null);
    let majors: Vec<_> = resources["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["major"].as_i64())
        .collect();
    assert_eq!(majors, [None, Some(1), Some(10), None]);
}

#[test]
fn a_sandbox_with_a_namespace_of_the_host_is_refused() {
    for (kind, setting) in [
        ("network", "hostNetwork"),
        ("pid", "hostPID"),
        ("ipc", "hostIPC"),
    ] {
        let mut spec = cri_spec();
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != kind);
        let parsed = parse(spec.to_string().as_bytes()).unwrap();
        let text = check_sandbox(&parsed).unwrap_err().to_string();
        assert!(text.contains(kind) && text.contains(setting), "{text}");
        assert_eq!(error(&spec), text);
    }
    let parsed = parse(cri_spec().to_string().as_bytes()).unwrap();
    check_sandbox(&parsed).unwrap();
}

#[test]
fn pid_namespaces_are_new_the_pods_or_another_containers() {
    for (path, kept) in [("/proc/4242/ns/pid", false), ("/proc/17/ns/pid", true)] {
        let mut spec = cri_spec();
        spec["linux"]["namespaces"][0]["path"] = json!(path);
        let (guest, _) = edit(&spec).unwrap();
        assert_eq!(namespaces(&guest).contains(&"pid"), kept, "{path}");
    }
    let mut spec = cri_spec();
    spec["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid");
    assert!(error(&spec).contains("/proc/1/ns/pid"));
}

#[test]
fn a_container_alone_in_its_vm_keeps_its_name() {
    let mut spec = cri_spec();
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
        {"type": "network", "path": "/run/netns/x"},
    ]);
    assert!(error(&spec).contains("/run/netns/x"));
    let parsed = parse(spec.to_string().as_bytes()).unwrap();
    let pod = Pod { alone: true, ..POD };
    let guest = container(&parsed, "c1", &pod).unwrap();
    let guest: Value = serde_json::from_slice(&guest.json).unwrap();
    assert_eq!(namespaces(&guest), ["pid", "ipc", "uts", "mount"]);
    assert_eq!(guest["hostname"], "node-1");
}

#[test]
fn user_namespaces_hooks_and_devices_are_refused() {
    let mut spec = cri_spec();
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    assert!(error(&spec).contains("user namespaces"));

    let mut spec = cri_spec();
    spec["hooks"] = json!({"createRuntime": [{"path": "/usr/bin/hook"}]});
    assert!(error(&spec).contains("createRuntime"));
    spec["hooks"] = json!({"createRuntime": []});
    edit(&spec).unwrap();

    let mut spec = cri_spec();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/nvme0n1", "type": "b", "major": 259, "minor": 0},
    ]);
    assert!(error(&spec).contains("/dev/nvme0n1"));
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let (guest, _) = edit(&spec).unwrap();
    assert_eq!(guest["linux"]["devices"].as_array().unwrap().len(), 1);
    assert_eq!(
        guest["linux"]["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
}

#[test]
fn small_files_travel_with_the_spec() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let spec = with_mount(json!({
        "destination": "/etc/hosts", "type": "bind", "source": hosts,
        "options": ["rbind", "rprivate", "rw"],
    }));
    let (guest, files) = edit(&spec).unwrap();
    assert_eq!(guest["mounts"][2]["source"], "joey-file:0");
    assert_eq!(guest["mounts"][2]["destination"], "/etc/hosts");
    assert_eq!(files[0].data, b"127.0.0.1 localhost\n");
    assert_eq!(files[0].mode, 0o644);
}

#[test]
fn what_cannot_be_bound_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let big = dir.path().join("big");
    std::fs::write(&big, vec![0; (1 << 20) + 1]).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (source, part) in [
        (dir.path().to_owned(), "directory volumes are not supported"),
        (big, "1048577 bytes"),
        (socket, "socket"),
        (dir.path().join("none"), "cannot be read"),
        ("/dev/null".into(), "device"),
    ] {
        let text = error(&with_mount(json!({
            "destination": "/data", "type": "bind", "source": source, "options": ["rbind"],
        })));
        assert!(text.contains("/data") && text.contains(part), "{text}");
        assert!(text.contains(&source.display().to_string()), "{text}");
    }
    let text = error(&with_mount(json!({
        "destination": "/n", "type": "nfs", "source": "server:/export",
    })));
    assert!(text.contains("nfs"), "{text}");
}

#[test]
fn files_together_fit_one_message() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let mut spec = cri_spec();
    for i in 0..4 {
        if i == 3 {
            edit(&spec).unwrap();
        }
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": format!("/f{i}"), "type": "bind", "source": file, "options": ["bind"],
        }));
    }
    assert!(error(&spec).contains("/f3"));
}

#[test]
fn id_mapped_mounts_are_refused() {
    let spec = with_mount(json!({
        "destination": "/m", "type": "bind", "source": "/etc/hostname", "options": ["rbind"],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
    }));
    assert!(error(&spec).contains("user namespaces"));
}

#[test]
fn an_exec_loses_the_hosts_labels() {
    let host = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["id"], "cwd": "/", "terminal": true,
        "selinuxLabel": "x", "apparmorProfile": "y", "consoleSize": {"height": 24, "width": 80},
    });
    let guest: Value =
        serde_json::from_slice(&process(host.to_string().as_bytes()).unwrap()).unwrap();
    assert_eq!(guest["args"], json!(["id"]));
    assert_eq!(guest["terminal"], true);
    assert_eq!(guest["consoleSize"]["height"], 24);
    assert_eq!(guest["selinuxLabel"], Value::Null);
    assert_eq!(guest["apparmorProfile"], Value::Null);
    assert!(process(b"[]").is_err());
}

#[test]
fn an_update_is_edited_like_a_spec() {
    let host = json!({"memory": {"limit": 5}, "cpu": {"cpus": "1", "shares": 2}});
    let guest: Value =
        serde_json::from_slice(&resources(host.to_string().as_bytes()).unwrap()).unwrap();
    assert_eq!(guest, json!({"memory": {"limit": 5}, "cpu": {"shares": 2}}));
}
