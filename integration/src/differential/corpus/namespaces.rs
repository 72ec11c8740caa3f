//! Namespaces: new ones, the host's, those joined by path, and users' mappings.

use serde_json::json;

use crate::differential::case::{Case, case};

/// Makes a namespace that a mount keeps.
const NET: &str = "touch {dir}/ns && unshare --net={dir}/ns true";
const UTS: &str = "touch {dir}/ns && unshare --uts={dir}/ns hostname joined";
const IPC: &str = "touch {dir}/ns && unshare --ipc={dir}/ns true";
const CGROUP: &str = "touch {dir}/ns && unshare --cgroup={dir}/ns true";
const USER: &str = "touch {dir}/ns; \
    unshare --user sleep 300 >/dev/null 2>&1 & echo $! >{dir}/holder; sleep 0.3; \
    echo 0 100000 65536 >/proc/$(cat {dir}/holder)/uid_map && echo 0 100000 65536 >/proc/$(cat {dir}/holder)/gid_map && \
    mount --bind /proc/$(cat {dir}/holder)/ns/user {dir}/ns; chown -R 100000:100000 {rootfs}";
/// One whose first process stays.
const PID: &str = "unshare --pid --fork sleep 300 >/dev/null 2>&1 & echo $! >{dir}/holder; sleep 0.3; \
    touch {dir}/ns && mount --bind /proc/$(cat {dir}/holder)/ns/pid_for_children {dir}/ns";
const MOUNT: &str = "unshare --mount --propagation private sleep 300 >/dev/null 2>&1 & echo $! >{dir}/holder; sleep 0.3; \
    ln -s /proc/$(cat {dir}/holder)/ns/mnt {dir}/ns";
const TIME: &str = "unshare --time --fork --boottime 1000 sleep 300 >/dev/null 2>&1 & echo $! >{dir}/holder; sleep 0.3; \
    touch {dir}/ns && mount --bind /proc/$(cat {dir}/holder)/ns/time_for_children {dir}/ns";
const UNMOUNT: &str = "umount {dir}/ns";
const KILL: &str = "umount {dir}/ns 2>/dev/null; pkill -9 -P $(cat {dir}/holder); kill -9 $(cat {dir}/holder); true";

pub fn cases() -> Vec<Case> {
    [shared(), joined(), users(), time()].concat()
}

fn shared() -> Vec<Case> {
    vec![
        case("namespaces/host-pid").without_namespace("pid"),
        case("namespaces/host-ipc")
            .without_namespace("ipc")
            .without_mount("/dev/mqueue"),
        case("namespaces/host-uts")
            .without_namespace("uts")
            .merge(json!({"hostname": null}))
            .script("readlink /proc/self/ns/uts >/dev/null && hostname"),
        case("namespaces/host-network")
            .without_namespace("network")
            .script("ls /sys/class/net | sort"),
        case("namespaces/host-cgroup").without_namespace("cgroup"),
        // Without masks runc changes the propagation of the host's own mounts.
        case("namespaces/host-mount-with-masks")
            .without_namespace("mount")
            .says(&["mount", "mask", "mnt"]),
        case("namespaces/none")
            .linux(json!({"namespaces": []}))
            .merge(json!({"hostname": null}))
            .says(&["mount", "mnt"]),
        case("namespaces/unknown")
            .namespace(json!({"type": "galaxy"}))
            .says(&["galaxy"]),
        case("namespaces/twice")
            .namespace(json!({"type": "ipc"}))
            .says(&["ipc", "namespace"]),
        case("namespaces/without-type")
            .namespace(json!({"path": "/proc/self/ns/net"}))
            .says(&["namespace", "type"]),
        case("namespaces/empty-type")
            .namespace(json!({"type": ""}))
            .says(&["namespace"]),
    ]
}

fn joined() -> Vec<Case> {
    let join = |name, kind: &'static str| {
        case(name)
            .without_namespace(kind)
            .namespace(json!({"type": kind, "path": "{dir}/ns"}))
    };
    vec![
        join("namespaces/join-network", "network").host(NET, UNMOUNT),
        join("namespaces/join-network-with-sysctl", "network")
            .host(NET, UNMOUNT)
            .linux(json!({"sysctl": {"net.core.somaxconn": "321"}})),
        join("namespaces/join-uts", "uts")
            .host(UTS, UNMOUNT)
            .merge(json!({"hostname": null})),
        join("namespaces/join-uts-with-hostname", "uts").host(UTS, UNMOUNT),
        join("namespaces/join-ipc", "ipc").host(IPC, UNMOUNT),
        join("namespaces/join-cgroup", "cgroup").host(CGROUP, UNMOUNT),
        join("namespaces/join-pid", "pid")
            .host(PID, KILL)
            .script("ps -o comm | grep -c sleep; echo $$ | wc -l"),
        join("namespaces/join-mount", "mount")
            .host(MOUNT, KILL)
            .script("echo ran"),
        join("namespaces/join-missing", "network").says(&["ns"]),
        join("namespaces/join-a-file", "network")
            .host("touch {dir}/ns", "")
            .says(&["ns", "network"]),
        join("namespaces/join-wrong-type", "network")
            .host(UTS, UNMOUNT)
            .says(&["ns", "network"]),
        case("namespaces/join-relative")
            .without_namespace("network")
            .namespace(json!({"type": "network", "path": "ns"}))
            .host(NET, UNMOUNT)
            .says(&["ns"]),
        case("namespaces/join-own-network")
            .without_namespace("network")
            .namespace(json!({"type": "network", "path": "/proc/self/ns/net"}))
            .script("ls /sys/class/net | sort"),
    ]
}

fn users() -> Vec<Case> {
    let map =
        |mappings: serde_json::Value| json!({"uidMappings": mappings, "gidMappings": mappings});
    let all = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let own = "chown -R 100000:100000 {rootfs}; chmod 755 {dir} {bundle}";
    let user = |name| case(name).namespace(json!({"type": "user"})).host(own, "");
    vec![
        user("users/namespace").linux(map(all.clone())),
        user("users/namespace-with-user")
            .linux(map(all.clone()))
            .process(json!({"user": {"uid": 1000, "gid": 1000, "additionalGids": [50]}})),
        user("users/namespace-with-ambient").linux(map(all.clone())).process(json!({
            "user": {"uid": 1000, "gid": 1000},
            "capabilities": {"inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}})),
        user("users/namespace-two-ranges").linux(map(json!([
            {"containerID": 0, "hostID": 100_000, "size": 1000},
            {"containerID": 1000, "hostID": 200_000, "size": 1000},
        ]))),
        user("users/namespace-of-root").linux(map(json!([{"containerID": 0, "hostID": 0, "size": 65536}]))),
        user("users/namespace-with-readonly-root").linux(map(all.clone())).merge(json!({"root": {"readonly": true}})),
        user("users/namespace-with-masks-and-devices").linux(map(all.clone()))
            .linux(json!({"devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}]}))
            .push("/linux/resources/devices", json!({"allow": true, "access": "rwm", "type": "c", "major": 10, "minor": 229})),
        user("users/namespace-bind").linux(map(all.clone()))
            .host("chown -R 100000:100000 {rootfs}; chmod 755 {dir} {bundle}; mkdir {dir}/volume; chown 100000 {dir}/volume", "")
            .mount(json!({"destination": "/volume", "type": "bind", "source": "{dir}/volume", "options": ["rbind", "ro"]})),
        user("users/namespace-without-mappings").says(&["mapping"]),
        user("users/namespace-without-gids").linux(json!({"uidMappings": all})).says(&["gid", "mapping"]),
        user("users/namespace-empty-mappings").linux(map(json!([]))).says(&["mapping"]),
        user("users/namespace-overlap")
            .linux(map(json!([
                {"containerID": 0, "hostID": 100_000, "size": 1000},
                {"containerID": 500, "hostID": 200_000, "size": 1000},
            ])))
            .says(&["uid_map", "map"]),
        user("users/namespace-size-zero")
            .linux(map(json!([{"containerID": 0, "hostID": 100_000, "size": 0}])))
            .says(&["map"]),
        user("users/namespace-root-unmapped")
            .linux(map(json!([{"containerID": 1, "hostID": 100_000, "size": 10}])))
            .says(&["map", "root"]),
        user("users/namespace-user-unmapped")
            .linux(map(json!([{"containerID": 0, "hostID": 100_000, "size": 10}])))
            .process(json!({"user": {"uid": 1000}}))
            .says(&["uid", "1000", "map"]),
        case("users/mappings-without-namespace").linux(map(all.clone())).says(&["mapping", "user"]),
        case("users/join-namespace")
            .namespace(json!({"type": "user", "path": "{dir}/ns"}))
            .host(USER, KILL),
        case("users/join-namespace-with-mappings")
            .namespace(json!({"type": "user", "path": "{dir}/ns"}))
            .linux(map(all))
            .host(USER, KILL)
            .says(&["mapping", "user"]),
    ]
}

fn time() -> Vec<Case> {
    let offsets = json!({"timeOffsets": {"boottime": {"secs": 1000, "nanosecs": 5}, "monotonic": {"secs": 2000}}});
    vec![
        case("namespaces/time")
            .namespace(json!({"type": "time"}))
            .linux(offsets.clone()),
        case("namespaces/time-without-offsets").namespace(json!({"type": "time"})),
        case("namespaces/time-unknown-clock")
            .namespace(json!({"type": "time"}))
            .linux(json!({"timeOffsets": {"realtime": {"secs": 1}}}))
            .says(&["realtime", "timens", "time"]),
        case("namespaces/time-before-the-start")
            .namespace(json!({"type": "time"}))
            .linux(json!({"timeOffsets": {"boottime": {"secs": -1_000_000_000}}}))
            .says(&["time"]),
        case("namespaces/offsets-without-time")
            .linux(offsets.clone())
            .says(&["time"]),
        case("namespaces/join-time")
            .namespace(json!({"type": "time", "path": "{dir}/ns"}))
            .host(TIME, KILL),
        case("namespaces/join-time-with-offsets")
            .namespace(json!({"type": "time", "path": "{dir}/ns"}))
            .linux(offsets)
            .host(TIME, KILL)
            .says(&["time"]),
    ]
}
