//! Resources and the cgroup's place.

use serde_json::{Value, json};

use crate::differential::case::{Case, case};

pub fn cases() -> Vec<Case> {
    [memory(), cpu(), others(), places()].concat()
}

fn memory() -> Vec<Case> {
    let memory = |name, value: Value| case(name).resources(json!({ "memory": value }));
    const MIB: i64 = 1 << 20;
    vec![
        memory("cgroup/memory-limit", json!({"limit": 64 * MIB})),
        memory(
            "cgroup/memory-and-swap",
            json!({"limit": 64 * MIB, "swap": 96 * MIB}),
        ),
        memory(
            "cgroup/memory-no-swap",
            json!({"limit": 64 * MIB, "swap": 64 * MIB}),
        ),
        memory(
            "cgroup/memory-swap-unlimited",
            json!({"limit": 64 * MIB, "swap": -1}),
        ),
        memory(
            "cgroup/memory-swap-zero",
            json!({"limit": 64 * MIB, "swap": 0}),
        ),
        memory("cgroup/memory-unlimited", json!({"limit": -1})),
        memory(
            "cgroup/memory-both-unlimited",
            json!({"limit": -1, "swap": -1}),
        ),
        memory("cgroup/memory-zero", json!({"limit": 0})),
        memory(
            "cgroup/memory-swap-below-limit",
            json!({"limit": 64 * MIB, "swap": 32 * MIB}),
        )
        .says(&["swap"]),
        memory("cgroup/memory-swap-alone", json!({"swap": 64 * MIB})).says(&["swap"]),
        memory(
            "cgroup/memory-reservation",
            json!({"limit": 64 * MIB, "reservation": 32 * MIB}),
        ),
        memory(
            "cgroup/memory-reservation-unlimited",
            json!({"reservation": -1}),
        ),
        memory(
            "cgroup/memory-old-fields",
            json!({"limit": 64 * MIB, "kernel": 32 * MIB, "kernelTCP": MIB,
            "disableOOMKiller": true, "useHierarchy": true}),
        ),
        memory("cgroup/memory-swappiness", json!({"swappiness": 10})),
        memory("cgroup/memory-too-small", json!({"limit": 4096})).says(&["memory"]),
        memory(
            "cgroup/memory-check-before-update",
            json!({"limit": 64 * MIB, "checkBeforeUpdate": true}),
        ),
        memory(
            "cgroup/memory-oom",
            json!({"limit": 32 * MIB, "swap": 32 * MIB}),
        )
        .script("dd if=/dev/zero of=/dev/null bs=128M count=1 2>/dev/null; echo $?"),
    ]
}

fn cpu() -> Vec<Case> {
    let cpu = |name, value: Value| case(name).resources(json!({ "cpu": value }));
    vec![
        cpu(
            "cgroup/cpu-quota",
            json!({"quota": 50_000, "period": 100_000}),
        ),
        cpu("cgroup/cpu-quota-alone", json!({"quota": 50_000})),
        cpu("cgroup/cpu-period-alone", json!({"period": 50_000})),
        cpu(
            "cgroup/cpu-quota-unlimited",
            json!({"quota": -1, "period": 50_000}),
        ),
        cpu(
            "cgroup/cpu-quota-too-small",
            json!({"quota": 10, "period": 100_000}),
        )
        .says(&["cpu"]),
        cpu(
            "cgroup/cpu-period-too-long",
            json!({"quota": 50_000, "period": 10_000_000}),
        )
        .says(&["cpu"]),
        cpu(
            "cgroup/cpu-burst",
            json!({"quota": 50_000, "period": 100_000, "burst": 20_000}),
        ),
        cpu(
            "cgroup/cpu-burst-above-quota",
            json!({"quota": 50_000, "period": 100_000, "burst": 90_000}),
        )
        .says(&["cpu"]),
        cpu("cgroup/cpu-shares", json!({"shares": 512})),
        cpu("cgroup/cpu-shares-default", json!({"shares": 1024})),
        cpu("cgroup/cpu-shares-least", json!({"shares": 2})),
        cpu("cgroup/cpu-shares-one", json!({"shares": 1})),
        cpu("cgroup/cpu-shares-most", json!({"shares": 262_144})),
        cpu("cgroup/cpu-shares-above", json!({"shares": 1_000_000})),
        cpu("cgroup/cpu-shares-zero", json!({"shares": 0})),
        cpu("cgroup/cpu-idle", json!({"idle": 1})),
        cpu(
            "cgroup/cpu-idle-with-shares",
            json!({"idle": 1, "shares": 512}),
        ),
        cpu("cgroup/cpu-idle-bad", json!({"idle": 2})).says(&["idle"]),
        cpu(
            "cgroup/cpu-realtime",
            json!({"realtimeRuntime": 1000, "realtimePeriod": 100_000}),
        )
        .says(&["realtime", "rt"]),
        cpu("cgroup/cpuset", json!({"cpus": "0", "mems": "0"})),
        cpu("cgroup/cpuset-missing-cpu", json!({"cpus": "4000"})).says(&["cpuset"]),
        cpu("cgroup/cpuset-words", json!({"cpus": "all"})).says(&["cpus"]),
        cpu("cgroup/cpuset-empty", json!({"cpus": "", "mems": ""})),
    ]
}

fn others() -> Vec<Case> {
    let resources = |name, value: Value| case(name).resources(value);
    let disk =
        |rate: u64| json!([{"major": "{n:disk-major}", "minor": "{n:disk-minor}", "rate": rate}]);
    vec![
        resources("cgroup/none", json!({"devices": null})),
        case("cgroup/resources-missing").linux(json!({"resources": null})),
        resources("cgroup/pids", json!({"pids": {"limit": 20}})),
        resources("cgroup/pids-unlimited", json!({"pids": {"limit": -1}})),
        resources("cgroup/pids-zero", json!({"pids": {"limit": 0}})),
        resources("cgroup/pids-are-held", json!({"pids": {"limit": 3}}))
            .script("sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait; echo done"),
        resources(
            "cgroup/io-throttle",
            json!({"blockIO": {
            "throttleReadBpsDevice": disk(1 << 20), "throttleWriteBpsDevice": disk(2 << 20),
            "throttleReadIOPSDevice": disk(100), "throttleWriteIOPSDevice": disk(200)}}),
        ),
        resources("cgroup/io-weight", json!({"blockIO": {"weight": 100}})),
        resources("cgroup/io-weight-bad", json!({"blockIO": {"weight": 5}})),
        resources(
            "cgroup/io-leaf-weight",
            json!({"blockIO": {"leafWeight": 100}}),
        ),
        resources(
            "cgroup/io-missing-device",
            json!({"blockIO": {
            "throttleReadBpsDevice": [{"major": 240, "minor": 7, "rate": 1000}]}}),
        )
        .says(&["io"]),
        resources(
            "cgroup/hugepages",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}),
        ),
        resources(
            "cgroup/hugepages-unknown-size",
            json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 4096}]}),
        )
        .says(&["huge", "3mb"]),
        resources(
            "cgroup/rdma",
            json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 100}}}),
        )
        .says(&["rdma"]),
        resources(
            "cgroup/network",
            json!({"network": {"classID": 7, "priorities": [{"name": "lo", "priority": 1}]}}),
        ),
        resources(
            "cgroup/unified",
            json!({"unified": {"memory.high": "33554432", "pids.max": "77", "cpu.weight": "55"}}),
        ),
        resources(
            "cgroup/unified-over-others",
            json!({"pids": {"limit": 20}, "unified": {"pids.max": "77"}}),
        ),
        resources(
            "cgroup/unified-max",
            json!({"unified": {"memory.max": "max"}}),
        ),
        resources(
            "cgroup/unified-unknown",
            json!({"unified": {"memory.colour": "1"}}),
        )
        .says(&["memory.colour"]),
        resources(
            "cgroup/unified-unknown-controller",
            json!({"unified": {"colour.max": "1"}}),
        )
        .says(&["colour"]),
        resources(
            "cgroup/unified-leads-out",
            json!({"unified": {"../pids.max": "1"}}),
        )
        .says(&["unified", "pids.max"]),
        resources(
            "cgroup/unified-bad-value",
            json!({"unified": {"pids.max": "many"}}),
        )
        .says(&["pids.max"]),
        resources(
            "cgroup/unified-without-dot",
            json!({"unified": {"memory": "1"}}),
        )
        .says(&["unified", "memory"]),
        resources(
            "cgroup/unified-of-the-core",
            json!({"unified": {"cgroup.max.depth": "3"}}),
        ),
        resources(
            "cgroup/all",
            json!({
            "memory": {"limit": 128 << 20, "reservation": 64 << 20, "swap": 128 << 20},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 50}}),
        ),
    ]
}

fn places() -> Vec<Case> {
    let path = |name, path: &str| case(name).linux(json!({ "cgroupsPath": path }));
    vec![
        case("cgroup/path-missing").linux(json!({"cgroupsPath": null})),
        path("cgroup/path-empty", ""),
        path("cgroup/path-relative", "differential/{id}"),
        path("cgroup/path-nested", "/differential/{id}/a/b"),
        path("cgroup/path-leads-out", "/differential/../../../differential/{id}"),
        path("cgroup/path-of-the-root", "/").says(&["cgroup"]),
        path("cgroup/path-of-systemd", "system.slice:joey:{id}"),
        path("cgroup/path-used-before", "/differential/{id}")
            .host("mkdir {cgroup}", "rmdir {cgroup} 2>/dev/null; true"),
        path("cgroup/path-in-use", "/differential/{id}")
            .host("mkdir {cgroup}; sleep 300 >/dev/null 2>&1 & echo $! >{dir}/holder; echo $! >{cgroup}/cgroup.procs",
                "kill -9 $(cat {dir}/holder); true")
            .says(&["cgroup"]),
        path("cgroup/path-with-limits-used-before", "/differential/{id}")
            .host("mkdir {cgroup}; echo 10 >{cgroup}/pids.max 2>/dev/null; true", "rmdir {cgroup} 2>/dev/null; true"),
        case("cgroup/owned-by-a-user-namespace")
            .host("chown -R 100000:100000 {rootfs}; chmod 755 {dir} {bundle}", "")
            .namespace(json!({"type": "user"}))
            .linux(json!({
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
                "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}]}))
            .without_mount("/sys/fs/cgroup")
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}))
            .script("stat -c '%n %u' /sys/fs/cgroup /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/cgroup.max.depth; mkdir /sys/fs/cgroup/sub && echo made"),
    ]
}
