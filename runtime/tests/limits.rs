//! Limits and counters of the cgroup. What needs a controller that this machine does not have says
//! so and is tested where there is one.

mod common;

use common::{Bundle, by_version, cgroup_version, has_controller};
use serde_json::json;

#[test]
fn devices_are_allowed_by_rules() {
    let mut bundle = Bundle::new(
        "echo x > /dev/null && mknod /tmp/d c 10 229 && echo made; cat < /tmp/d; \
         mknod /tmp/full c 1 7; echo x > /tmp/full",
    );
    bundle.spec["linux"]["devices"] = json!([]);
    let outcomes = bundle.take(json!(["create", "start", "wait", {"delete": {"force": false}}]));
    assert_eq!(
        outcomes[2]["output"],
        "made\n/bin/sh: can't open /tmp/d: Operation not permitted\n\
         sh: write error: No space left on device\n"
    );
}

#[test]
fn device_rules_are_changed_at_once() {
    let bundle = Bundle::new("exec sleep 1000");
    let look = json!({"exec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["sh", "-c", "mknod /tmp/k c 10 229 2>/dev/null; true < /tmp/k"]}}});
    let allow = json!({"update": {"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]}});
    let deny = json!({"update": {"devices": [{"allow": false, "access": "rwm"}]}});
    let outcomes = bundle.take(json!(["create", "start", look, allow, look, deny, look,
        {"delete": {"force": true}}]));
    // Past the rules, a kernel without a driver for the device has an error of its own.
    let refused = |at: usize| {
        let output = outcomes[at]["output"].as_str().unwrap();
        output.contains("Operation not permitted")
    };
    assert_eq!([refused(2), refused(4), refused(6)], [true, false, true]);
}

#[test]
fn processes_are_limited() {
    if !has_controller("pids") {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000 & sleep 1000 & sleep 1000 & wait");
    bundle.spec["linux"]["resources"]["pids"] = json!({"limit": 3});
    let outcomes = bundle.take(json!(["create", "stats", "start", "wait", "stats",
        {"update": {"pids": {"limit": 100}}}, "stats", {"delete": {"force": true}}]));
    assert_eq!(outcomes[1]["pids"], 1);
    assert_eq!(outcomes[1]["pids_limit"], 3);
    assert!(
        outcomes[3]["output"]
            .as_str()
            .unwrap()
            .contains("can't fork"),
        "{}",
        outcomes[3]
    );
    assert_eq!(outcomes[6]["pids_limit"], 100);
}

#[test]
fn memory_is_limited_and_an_oom_kill_is_counted() {
    if !has_controller("memory") {
        return;
    }
    let mut bundle = Bundle::new("dd if=/dev/zero of=/dev/null bs=100M count=1");
    bundle.spec["linux"]["resources"]["memory"] = json!({"limit": 20 << 20, "swap": 20 << 20});
    let outcomes = bundle.take(json!(["create", "stats", "start", "wait", "stats",
        {"delete": {"force": false}}]));
    assert_eq!(outcomes[1]["memory_limit"], 20 << 20);
    assert!(
        outcomes[1]["memory"].as_u64().unwrap() > 0,
        "the process is inside from its birth"
    );
    assert_ne!(outcomes[3]["code"], 0);
    assert!(outcomes[4]["oom_kill"].as_u64().unwrap() >= 1);
}

#[test]
fn a_memory_limit_below_what_is_in_use_can_be_refused() {
    if !has_controller("memory") {
        return;
    }
    let bundle = Bundle::new("exec sleep 1000");
    let outcomes = bundle.take(json!(["create", "start",
        {"update": {"memory": {"limit": 4096, "checkBeforeUpdate": true}}}, "status",
        {"delete": {"force": true}}]));
    assert!(
        outcomes[2]["error"]
            .as_str()
            .unwrap()
            .contains("is below the"),
        "{}",
        outcomes[2]
    );
    assert_eq!(outcomes[3], "running");
}

#[test]
fn processor_time_is_limited_and_counted() {
    if !has_controller("cpu") {
        return;
    }
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.spec["linux"]["resources"]["cpu"] =
        json!({"shares": 1024, "quota": 50000, "period": 100_000});
    let look = look(by_version(
        "cd /sys/fs/cgroup/cpu; echo $(cat cpu.cfs_quota_us cpu.cfs_period_us); cat cpu.shares",
        "cd /sys/fs/cgroup; cat cpu.max cpu.weight",
    ));
    let outcomes = bundle.take(json!(["create", "start", look, "stats",
        {"update": {"cpu": {"period": 50000}}}, look,
        {"update": {"cpu": {"quota": -1, "shares": 2}}}, look, {"delete": {"force": true}}]));
    assert_eq!(
        outcomes[2]["output"],
        by_version("50000 100000\n1024\n", "50000 100000\n100\n")
    );
    assert!(outcomes[3]["cpu_usage"].as_u64().unwrap() > 0);
    assert_eq!(
        outcomes[5]["output"],
        by_version("50000 50000\n1024\n", "50000 50000\n100\n")
    );
    assert_eq!(
        outcomes[7]["output"],
        by_version("-1 50000\n2\n", "max 50000\n1\n")
    );
}

/// A process that runs a script.
fn look(script: &str) -> serde_json::Value {
    json!({"exec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["sh", "-c", script]}}})
}

#[test]
fn memory_and_swap_are_raised_and_lowered_together() {
    if !has_controller("memory") {
        return;
    }
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 96 << 20});
    let look = look(by_version(
        "cd /sys/fs/cgroup/memory; cat memory.limit_in_bytes memory.memsw.limit_in_bytes",
        "cd /sys/fs/cgroup; cat memory.max memory.swap.max",
    ));
    let to = |limit: i64, swap: i64| json!({"update": {"memory": {"limit": limit << 20, "swap": swap << 20}}});
    let outcomes = bundle.take(
        json!(["create", "start", look, to(128, 256), look, to(32, 48), look,
        {"update": {"memory": {"limit": 40 << 20}}}, look,
        {"update": {"memory": {"swap": 60 << 20}}}, look,
        {"update": {"memory": {"limit": -1, "swap": -1}}}, "stats", {"delete": {"force": true}}]),
    );
    // Version 1 counts memory and swap together, version 2 swap alone.
    let apart = |limit: i64, both: i64| {
        let swap = if cgroup_version() == 1 {
            both
        } else {
            both - limit
        };
        format!("{}\n{}\n", limit << 20, swap << 20)
    };
    assert_eq!(outcomes[2]["output"], apart(64, 96));
    assert_eq!(outcomes[4]["output"], apart(128, 256));
    assert_eq!(outcomes[6]["output"], apart(32, 48));
    assert_eq!(outcomes[8]["output"], apart(40, 48));
    assert_eq!(outcomes[10]["output"], apart(40, 60));
    assert_eq!(outcomes[12]["memory_limit"], serde_json::Value::Null);
}

#[test]
fn the_first_process_is_in_every_hierarchy() {
    let mut bundle = Bundle::new("cat /proc/self/cgroup");
    bundle.without_namespace("cgroup");
    let path = format!("/joey-test/{}", bundle.id);
    let table = bundle.run();
    assert!(
        table.contains(&format!("0::{path}\n")) || cgroup_version() == 1,
        "{table}"
    );
    for line in table.lines().filter(|_| cgroup_version() == 1) {
        assert!(line.ends_with(&path), "{line}");
    }
}

#[test]
fn version_1_shows_a_directory_for_each_controller() {
    if cgroup_version() == 2 {
        return;
    }
    let bundle = Bundle::new(
        "cd /sys/fs/cgroup; for d in memory pids systemd; do grep -c . $d/cgroup.procs; done; \
         mkdir new 2>/dev/null || echo read-only; mkdir memory/new 2>/dev/null || echo read-only",
    );
    // The shell and grep.
    assert_eq!(bundle.run(), "2\n2\n2\nread-only\nread-only\n");
}

#[test]
fn a_frozen_container_is_killed() {
    let bundle = Bundle::new("sleep 1000 & sleep 1000");
    let outcomes = bundle.take(json!(["create", "start", "pause", "status",
        {"delete": {"force": true}}, "wait"]));
    assert_eq!(outcomes[3], "paused");
    assert_eq!(outcomes[4], serde_json::Value::Null);
    assert_eq!(outcomes[5]["signal"], 9);
    assert!(common::cgroups_of(&bundle.id).is_empty());
}

#[test]
fn processors_are_chosen() {
    if !has_controller("cpuset") {
        return;
    }
    let mut bundle = Bundle::new("grep Cpus_allowed_list /proc/self/status");
    bundle.spec["linux"]["resources"]["cpu"] = json!({"cpus": "0"});
    assert_eq!(bundle.run(), "Cpus_allowed_list:\t0\n");
}

#[test]
fn a_limit_without_its_controller_is_an_error() {
    if has_controller("rdma") {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.spec["linux"]["resources"]["rdma"] = json!({"mlx5_1": {"hcaHandles": 3}});
    assert!(
        bundle
            .fail()
            .0
            .starts_with("resources.rdma: the rdma controller is not available in ")
    );
}

#[test]
fn shares_of_caches_need_the_resctrl_file_system() {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    if table.contains(" - resctrl ") {
        eprintln!("not tested here: this machine has resctrl mounted");
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.spec["linux"]["intelRdt"] = json!({"schemata": ["L3:0=f"]});
    let (error, kind) = bundle.fail();
    assert_eq!(kind, "plan");
    assert!(
        error.starts_with("linux.intelRdt: the resctrl file system is not mounted"),
        "{error}"
    );
}
