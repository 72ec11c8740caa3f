//! Specs that are wrong in one place.

use super::*;
use serde_json::{Value, json};

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
        "root": {"path": std::env::temp_dir()},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}]},
    })
}

fn plan(change: impl Fn(&mut Value)) -> Result<Plan, PlanError> {
    let mut spec = spec();
    change(&mut spec);
    Plan::new(&serde_json::from_value(spec).unwrap(), Path::new("/"), "c1")
}

/// The field that is found wrong.
fn wrong(change: impl Fn(&mut Value)) -> String {
    plan(change).unwrap_err().field
}

#[test]
fn a_right_spec_is_planned() {
    let plan = plan(|_| {}).unwrap();
    assert_eq!(plan.cgroup, Path::new("c1"));
    assert_eq!(plan.process.umask, 0o022);
}

#[test]
fn the_wrong_field_is_named() {
    assert_eq!(
        wrong(|spec| spec["ociVersion"] = json!("2.0")),
        "ociVersion"
    );
    assert_eq!(wrong(|spec| spec["process"] = json!(null)), "process");
    assert_eq!(wrong(|spec| spec["linux"] = json!(null)), "linux");
    assert_eq!(
        wrong(|spec| spec["process"]["args"] = json!([])),
        "process.args"
    );
    assert_eq!(
        wrong(|spec| spec["process"]["args"] = json!(["a\0b"])),
        "process.args"
    );
    for entry in ["A", "=b", "A=\0"] {
        assert_eq!(
            wrong(|spec| spec["process"]["env"] = json!(["X=1", entry])),
            "process.env[1]"
        );
    }
    assert_eq!(
        wrong(|spec| spec["process"]["cwd"] = json!("x")),
        "process.cwd"
    );
    assert_eq!(
        wrong(|spec| spec["process"]["oomScoreAdj"] = json!(1001)),
        "process.oomScoreAdj"
    );
    assert_eq!(
        wrong(|spec| spec["root"]["path"] = json!("/no/such")),
        "root.path"
    );
    assert_eq!(wrong(|spec| spec["root"]["path"] = json!("/")), "root.path");
    assert_eq!(wrong(|spec| spec["hostname"] = json!("x")), "hostname");
    assert_eq!(
        wrong(|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]);
            spec["domainname"] = json!("x".repeat(65));
        }),
        "domainname"
    );
    assert_eq!(
        wrong(
            |spec| spec["mounts"] = json!([{"destination": "/a", "source": "/tmp",
            "options": ["bind", "ro", "size=1m"]}])
        ),
        "mounts[/a]"
    );
    assert_eq!(
        wrong(|spec| spec["linux"]["cgroupsPath"] = json!("/../x")),
        "linux.cgroupsPath"
    );
    assert_eq!(
        wrong(|spec| spec["linux"]["maskedPaths"] = json!(["proc"])),
        "linux.maskedPaths"
    );
    assert_eq!(
        wrong(|spec| spec["linux"]["rootfsPropagation"] = json!("odd")),
        "linux.rootfsPropagation"
    );
    assert_eq!(
        wrong(|spec| spec["linux"]["intelRdt"] = json!({"closID": "a/b"}))
            .trim_end_matches(".closID"),
        "linux.intelRdt"
    );
    for (host, name) in [
        ("a b", ""),
        ("eth0", "/"),
        ("", "x"),
        ("eth0", "a23456789b123456"),
    ] {
        assert_eq!(
            wrong(|spec| {
                spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network"}]);
                spec["linux"]["netDevices"] = json!({host: {"name": name}});
            }),
            format!("linux.netDevices[{host}]")
        );
    }
    assert_eq!(
        wrong(|spec| spec["linux"]["netDevices"] = json!({"eth0": {}})),
        "linux.netDevices"
    );
    for policy in [
        json!({"mode": "MPOL_BIND"}),
        json!({"mode": "MPOL_DEFAULT", "nodes": "0"}),
        json!({"mode": "MPOL_BIND", "nodes": "0-"}),
    ] {
        assert_eq!(
            wrong(|spec| spec["linux"]["memoryPolicy"] = policy.clone()),
            "linux.memoryPolicy.nodes"
        );
    }
    assert_eq!(
        wrong(|spec| spec["linux"]["resources"] = json!({"memory": {"limit": 10, "swap": 5}})),
        "linux.resources.memory.swap"
    );
    assert_eq!(
        wrong(|spec| spec["hooks"] = json!({"poststop": [{"path": "relative"}]})),
        "hooks.poststop[0]"
    );
}

#[test]
fn namespaces_must_fit_what_is_asked_of_them() {
    let namespaces =
        |list: Value| move |spec: &mut Value| spec["linux"]["namespaces"] = list.clone();
    plan(namespaces(json!([]))).unwrap();
    assert_eq!(
        wrong(namespaces(json!([{"type": "user"}]))),
        "linux.namespaces"
    );
    assert_eq!(
        wrong(namespaces(json!([{"type": "mount"}, {"type": "mount"}]))),
        "linux.namespaces"
    );
    assert_eq!(
        wrong(namespaces(json!([{"type": "mount"}, {"type": "user"}]))),
        "linux.uidMappings"
    );
    assert_eq!(
        wrong(|spec| spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}})),
        "linux.timeOffsets"
    );
    let path = |kind: &str, path: &str| {
        namespaces(json!([{"type": "mount"},
        {"type": kind, "path": path}]))
    };
    for (kind, file) in [
        ("network", "/proc/self/ns/uts"),
        ("network", "/etc/passwd"),
        ("network", "/no/such"),
        ("network", "proc/self/ns/net"),
    ] {
        assert_eq!(
            wrong(path(kind, file)),
            "linux.namespaces[1].path",
            "{file}"
        );
    }
    assert_eq!(
        wrong(|spec| {
            spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        }),
        "linux.gidMappings"
    );
    let user = |user: Value| {
        move |spec: &mut Value| {
            let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 100}]);
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}]);
            spec["linux"]["uidMappings"] = maps.clone();
            spec["linux"]["gidMappings"] = maps;
            spec["process"]["user"] = user.clone();
        }
    };
    assert!(plan(user(json!({"uid": 99, "gid": 0, "additionalGids": [7]}))).is_ok());
    assert_eq!(wrong(user(json!({"uid": 100}))), "process.user.uid");
    assert_eq!(wrong(user(json!({"gid": 100}))), "process.user.gid");
    assert_eq!(
        wrong(user(json!({"additionalGids": [0, 100]}))),
        "process.user.additionalGids"
    );
    assert_eq!(
        wrong(|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "time"}]);
            spec["linux"]["timeOffsets"] =
                json!({"monotonic": {"secs": 1, "nanosecs": 1_000_000_000}});
        }),
        "linux.timeOffsets[monotonic].nanosecs"
    );
    // The host's network by another name.
    assert_eq!(
        wrong(|spec| {
            path("network", "/proc/self/ns/net")(spec);
            spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "1"});
        }),
        "linux.sysctl[net.core.somaxconn]"
    );
    let overlap = json!([
        {"containerID": 0, "hostID": 100, "size": 10},
        {"containerID": 9, "hostID": 200, "size": 10},
    ]);
    assert_eq!(
        wrong(|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}]);
            spec["linux"]["uidMappings"] = overlap.clone();
            spec["linux"]["gidMappings"] = overlap.clone();
        }),
        "linux.uidMappings"
    );
}

#[test]
fn only_parameters_of_the_container_s_own_namespaces_are_set() {
    let set = |name: &str| {
        let name = name.to_owned();
        plan(move |spec| spec["linux"]["sysctl"] = json!({&name: "1"}))
    };
    assert_eq!(
        set("kernel.msgmax").unwrap().sysctls,
        [(PathBuf::from("kernel/msgmax"), "1".to_owned())]
    );
    assert!(set("fs.mqueue.msg_max").is_ok());
    for name in [
        "net.core.somaxconn",
        "kernel.panic",
        "vm.swappiness",
        "fs/mqueue/../x",
        "kernel.hostname",
    ] {
        assert!(set(name).is_err(), "{name}");
    }
}

#[test]
fn parts_of_parameters_may_have_dots() {
    assert_eq!(
        sysctl_path("net.ipv4.conf.eth0/1.x"),
        "net/ipv4/conf/eth0.1/x"
    );
    assert_eq!(
        sysctl_path("net/ipv4/conf/eth0.1/x"),
        "net/ipv4/conf/eth0.1/x"
    );
}
