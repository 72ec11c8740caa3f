use serde_json::{Value, json};

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::*;
use crate::volumes::{ReadOnly, ShareSource};

const POD: Pod<'static> = Pod {
    sandbox_pids: [4242, 4343],
    container_pids: &[17],
    alone: false,
    etc: None,
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

fn edit(spec: &Value) -> Result<(Value, Wanted), SpecError> {
    let spec = parse(spec.to_string().as_bytes())?;
    let guest = container(&spec, "c1", &POD)?;
    Ok((serde_json::from_slice(&guest.json).unwrap(), guest.wanted))
}

#[test]
fn a_sandbox_that_is_no_task_brings_its_own_files() {
    let etc = Etc {
        hostname: "web-0\n".into(),
        hosts: b"127.0.0.1 localhost\n".to_vec(),
        resolv_conf: b"nameserver 10.0.0.10\n".to_vec(),
    };
    let mut spec = cri_spec();
    // As the container's own spec has it, and a file of the kubelet's.
    let hosts = tempfile::NamedTempFile::new().unwrap();
    spec["mounts"] = json!([
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
        {"destination": "/etc/hosts", "type": "bind", "source": hosts.path(), "options": ["rbind"]},
    ]);
    let spec = parse(spec.to_string().as_bytes()).unwrap();
    let pod = Pod {
        etc: Some(&etc),
        ..POD
    };
    let guest = container(&spec, "c1", &pod).unwrap();
    let json: Value = serde_json::from_slice(&guest.json).unwrap();
    let mounts: Vec<_> = json["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| {
            (
                mount["destination"].as_str().unwrap(),
                mount["source"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        mounts,
        [
            ("/etc/hosts", "joey-volume:0"),
            ("/etc/hostname", "joey-file:0"),
            ("/etc/resolv.conf", "joey-file:1"),
            ("/dev/shm", "/run/joey/shm"),
        ]
    );
    assert_eq!(guest.wanted.files[0].data, b"web-0\n");
    assert_eq!(guest.wanted.files[1].mode, 0o644);
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
    let (guest, wanted) = edit(&cri_spec()).unwrap();
    assert!(wanted.files.is_empty() && wanted.volumes.is_empty() && wanted.disks.is_empty());
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
    for (path, kept) in [
        ("/proc/4242/ns/pid", false),
        ("/proc/4343/ns/pid", false),
        ("/proc/17/ns/pid", true),
    ] {
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
fn hooks_and_devices_are_refused() {
    let mut spec = cri_spec();
    spec["hooks"] = json!({"createRuntime": [{"path": "/usr/bin/hook"}]});
    assert!(error(&spec).contains("createRuntime"));
    spec["hooks"] = json!({"createRuntime": []});
    edit(&spec).unwrap();

    let mut spec = cri_spec();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232},
    ]);
    assert!(error(&spec).contains("/dev/kvm"));
}

#[test]
fn a_privileged_containers_devices_are_the_guests() {
    let metadata = std::fs::metadata("/dev/zero").unwrap();
    let mut spec = cri_spec();
    spec["linux"]["devices"] = json!([
        // As the host has it, though it is no block device: what counts is the number.
        {"path": "/dev/zero", "type": "b", "major": 1, "minor": 5},
        {"path": "/dev/data", "type": "b", "major": 253, "minor": 7},
    ]);
    assert_eq!(metadata.rdev(), nix::sys::stat::makedev(1, 5));
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let (guest, wanted) = edit(&spec).unwrap();
    assert_eq!(guest["linux"]["devices"], json!([]));
    assert_eq!(
        guest["linux"]["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
    // What it asked for by another name it gets.
    assert_eq!(wanted.disks.len(), 1);
    assert_eq!(wanted.disks[0].path, Path::new("/dev/data"));
}

#[test]
fn block_devices_become_disks_with_the_access_of_their_rule() {
    let mut spec = cri_spec();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/a", "type": "b", "major": 254, "minor": 0, "fileMode": 0o640, "gid": 6},
        {"path": "/dev/b", "type": "b", "major": 254, "minor": 16},
    ]);
    spec["linux"]["resources"]["devices"]
        .as_array_mut()
        .unwrap()
        .push(json!({"allow": true, "type": "b", "major": 254, "minor": 0, "access": "rm"}));
    let (guest, wanted) = edit(&spec).unwrap();
    assert_eq!(guest["linux"]["devices"], json!([]));
    let found: Vec<_> = wanted
        .disks
        .iter()
        .map(|disk| {
            (
                disk.path.to_str().unwrap(),
                disk.access.as_str(),
                disk.mode,
                disk.gid,
            )
        })
        .collect();
    assert_eq!(
        found,
        [("/dev/a", "rm", 0o640, 6), ("/dev/b", "", 0o660, 0)]
    );
    assert_eq!(wanted.disks[1].number, nix::sys::stat::makedev(254, 16));
}

/// A directory as kubelet and containerd lay them out.
fn tree(paths: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in paths {
        let path = dir.path().join(path);
        if path.to_str().unwrap().ends_with('/') {
            std::fs::create_dir_all(path).unwrap();
        } else {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "content").unwrap();
        }
    }
    dir
}

fn bind(destination: &str, source: impl AsRef<Path>, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source.as_ref(), "options": options})
}

#[test]
fn files_made_for_the_pod_travel_with_the_spec() {
    let dir = tree(&["sandboxes/abc/hosts", "pods/u/containers/web/0123abcd"]);
    let mut spec = with_mount(bind(
        "/etc/hosts",
        dir.path().join("sandboxes/abc/hosts"),
        &["rbind", "rprivate", "rw"],
    ));
    spec["mounts"].as_array_mut().unwrap().push(bind(
        "/dev/termination-log",
        dir.path().join("pods/u/containers/web/0123abcd"),
        &["rbind", "rprivate", "rw"],
    ));
    let (guest, wanted) = edit(&spec).unwrap();
    assert_eq!(guest["mounts"][2]["source"], "joey-file:0");
    assert_eq!(guest["mounts"][2]["destination"], "/etc/hosts");
    assert_eq!(guest["mounts"][3]["source"], "joey-file:1");
    let files = &wanted.files;
    assert_eq!(files[0].data, b"content");
    assert_eq!((files[0].mode, files[0].give_back), (0o644, false));
    // What the container leaves here is for kubelet.
    assert!(files[1].give_back);
    assert_eq!(wanted.given_back.keys().collect::<Vec<_>>(), [&1]);
    assert!(wanted.volumes.is_empty());
}

fn share(volume: &VolumeSource) -> &ShareSource {
    match volume {
        VolumeSource::Share(share) => share,
        VolumeSource::EmptyDir(_) => panic!("an emptyDir"),
    }
}

#[test]
fn directories_and_other_files_are_shared() {
    let dir = tree(&["data/file"]);
    let data = dir.path().join("data");
    let mut spec = cri_spec();
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(bind("/rw", &data, &["rbind", "rslave", "rw"]));
    mounts.push(bind("/ro", &data, &["bind", "ro"]));
    mounts.push(bind("/rro", &data, &["rbind", "rro", "rprivate"]));
    mounts.push(bind("/file", data.join("file"), &["rbind", "ro"]));
    let (guest, wanted) = edit(&spec).unwrap();
    let sources: Vec<_> = (2..6)
        .map(|i| guest["mounts"][i]["source"].clone())
        .collect();
    assert_eq!(
        sources,
        [
            "joey-volume:0",
            "joey-volume:1",
            "joey-volume:2",
            "joey-volume:3"
        ]
    );
    let found: Vec<_> = wanted
        .volumes
        .iter()
        .map(share)
        .map(|share| (share.recursive, share.follow, share.read_only))
        .collect();
    assert_eq!(
        found,
        [
            (true, true, ReadOnly::No),
            (false, false, ReadOnly::Top),
            (true, false, ReadOnly::Recursively),
            (true, false, ReadOnly::Top),
        ]
    );
    assert_eq!(guest["mounts"][3]["options"], json!(["bind", "ro"]));
}

#[test]
fn a_read_only_mount_leaves_what_is_mounted_below_writable() {
    // In every mount namespace something is mounted below /proc's parent.
    let (guest, wanted) = edit(&with_mount(bind("/host", "/", &["rbind", "ro"]))).unwrap();
    assert_eq!(share(&wanted.volumes[0]).read_only, ReadOnly::Top);
    assert_eq!(guest["mounts"][2]["options"], json!(["rbind"]));
    let (guest, _) = edit(&with_mount(bind("/host", "/", &["rbind", "rro"]))).unwrap();
    assert_eq!(guest["mounts"][2]["options"], json!(["rbind", "rro"]));
}

#[test]
fn an_empty_dir_is_the_guests_with_the_hosts_mode() {
    let dir = tree(&["pods/u/volumes/kubernetes.io~empty-dir/cache/"]);
    let cache = dir
        .path()
        .join("pods/u/volumes/kubernetes.io~empty-dir/cache");
    std::fs::set_permissions(&cache, std::os::unix::fs::PermissionsExt::from_mode(0o2777)).unwrap();
    let (_, wanted) = edit(&with_mount(bind("/cache", &cache, &["rbind", "rw"]))).unwrap();
    let VolumeSource::EmptyDir(empty) = &wanted.volumes[0] else {
        panic!("a share");
    };
    assert_eq!(empty.host, cache);
    let directory = &empty.directory;
    assert_eq!((directory.name.as_str(), directory.mode), ("cache", 0o2777));
    assert!(!directory.memory && directory.path.is_empty());
}

#[test]
fn what_cannot_be_bound_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (source, option, part) in [
        (socket, "rprivate", "socket"),
        (dir.path().join("none"), "rprivate", "cannot be read"),
        ("/dev/null".into(), "rprivate", "device"),
        (dir.path().to_owned(), "rshared", "HostToContainer"),
    ] {
        let text = error(&with_mount(bind("/data", &source, &["rbind", option])));
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
    let dir = tree(&["sandboxes/abc/hosts"]);
    let file = dir.path().join("sandboxes/abc/hosts");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let mut spec = cri_spec();
    for i in 0..4 {
        if i == 3 {
            edit(&spec).unwrap();
        }
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(bind(&format!("/f{i}"), &file, &["bind"]));
    }
    assert!(error(&spec).contains("/f3"));
    // One that is too large to travel is shared.
    std::fs::write(&file, vec![0; (1 << 20) + 1]).unwrap();
    let (_, wanted) = edit(&with_mount(bind("/f", &file, &["bind"]))).unwrap();
    assert_eq!((wanted.files.len(), wanted.volumes.len()), (0, 1));
}

#[test]
fn a_user_namespace_is_the_guests_with_the_pods_ids() {
    let maps = json!([{"containerID": 0, "hostID": 1000, "size": 65536}]);
    let mut spec = with_mount(json!({
        "destination": "/m", "type": "bind", "source": "/etc/hostname", "options": ["rbind"],
        "uidMappings": maps, "gidMappings": maps,
    }));
    spec["linux"]["uidMappings"] = maps.clone();
    spec["linux"]["gidMappings"] = maps.clone();
    // Without the namespace the ids mean nothing.
    let (guest, wanted) = edit(&spec).unwrap();
    assert_eq!(guest["linux"]["uidMappings"], Value::Null);
    // What the host shares is shown with these ids by the host.
    let ids = share(&wanted.volumes[0]).ids.as_ref().unwrap();
    assert_eq!(ids.uids[0].host_id(), 1000);
    assert!(!ids.recursive);

    let mut with_path = |path: &str| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "user");
        namespaces.push(json!({"type": "user", "path": path}));
        spec.clone()
    };
    let (guest, _) = edit(&with_path("/proc/4242/ns/user")).unwrap();
    let list = guest["linux"]["namespaces"].as_array().unwrap();
    let user = list.iter().find(|namespace| namespace["type"] == "user");
    assert_eq!(user, Some(&json!({"type": "user"})));
    assert_eq!(guest["linux"]["uidMappings"], maps);
    assert_eq!(guest["linux"]["gidMappings"], maps);
    assert_eq!(guest["mounts"][2]["uidMappings"], maps);
    check_sandbox(&parse(with_path("/run/pinned").to_string().as_bytes()).unwrap()).unwrap();
    assert!(error(&with_path("/proc/1/ns/user")).contains("/proc/1/ns/user"));

    let mut rootless = with_path("/run/pinned");
    rootless["linux"]["gidMappings"][0]["containerID"] = json!(1);
    let rootless = parse(rootless.to_string().as_bytes()).unwrap();
    let said = check_sandbox(&rootless).unwrap_err().to_string();
    assert!(said.contains("no group id 0"), "{said}");
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
    assert_eq!(
        update(host).unwrap(),
        json!({"memory": {"limit": 5}, "cpu": {"shares": 2}})
    );
}

fn update(host: Value) -> Result<Value, SpecError> {
    let host = parse_resources(host.to_string().as_bytes())?;
    Ok(serde_json::from_slice(&resources(&host)?).unwrap())
}

#[test]
fn limits_on_what_a_guest_lacks_are_held_or_refused() {
    let guest = update(json!({
        "memory": {"limit": 5, "swap": 9, "reservation": 3},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "blockIO": {"weight": 10},
        "pids": {"limit": 7},
    }));
    assert_eq!(
        guest.unwrap(),
        json!({"memory": {"limit": 5, "reservation": 3}, "pids": {"limit": 7}})
    );
    let error = update(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]}));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("huge pages of 2MB"), "{error}");
}

#[test]
fn files_of_a_cgroup_pass_an_allow_list() {
    let qos = json!({
        "memory.high": "1", "memory.low": "2", "memory.min": "3", "memory.oom.group": "1",
    });
    let mut host = qos.clone();
    for file in [
        "memory.swap.max",
        "io.max",
        "cpuset.cpus",
        "hugetlb.2MB.max",
    ] {
        host[file] = json!("1");
    }
    assert_eq!(update(json!({"unified": host})).unwrap()["unified"], qos);
    for file in ["cgroup.procs", "memory.reclaim", "../x", "nonsense"] {
        let error = update(json!({"unified": {file: "1"}})).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
    }
}
