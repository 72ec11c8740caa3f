//! The life of a container from create to delete, and what is left after failures.

mod common;

use common::{Bundle, by_version, cgroups_of};
use serde_json::{Value, json};

#[test]
fn a_command_runs_and_its_exit_code_is_seen() {
    let bundle = Bundle::new("echo hello; exit 7");
    let outcomes = bundle.take(json!([
        "create", "status", "start", "wait", "status", {"delete": {"force": false}}, "children"
    ]));
    assert_eq!(outcomes[1], "created");
    assert_eq!(outcomes[2], Value::Null);
    assert_eq!(outcomes[3]["code"], 7);
    assert_eq!(outcomes[3]["output"], "hello\n");
    assert_eq!(outcomes[4], "stopped");
    assert_eq!(outcomes[5], Value::Null);
    assert_eq!(outcomes[6], false);
}

#[test]
fn delete_leaves_nothing() {
    let bundle = Bundle::new("true");
    bundle.run();
    assert!(cgroups_of(&bundle.id).is_empty());
    assert!(!bundle.dir.join("state").join(&bundle.id).exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&bundle.id));
}

#[test]
fn the_command_waits_for_start() {
    let bundle = Bundle::new("touch /started");
    let outcomes = bundle.take(json!(["create", "state", {"delete": {"force": true}}]));
    assert_eq!(outcomes[1]["status"], "created");
    assert_eq!(outcomes[1]["id"], bundle.id.as_str());
    assert_eq!(outcomes[1]["pid"], outcomes[0]["pid"]);
    assert_eq!(outcomes[2], Value::Null);
    assert!(!bundle.rootfs().join("started").exists());
}

#[test]
fn a_container_is_found_again_by_its_id() {
    let bundle = Bundle::new("echo again");
    let outcomes = bundle.take(json!([
        "create", "load", "status", "start", "wait", "load", "status",
        {"delete": {"force": false}}, "load"
    ]));
    assert_eq!(outcomes[2], "created");
    assert_eq!(outcomes[3], Value::Null);
    assert_eq!(outcomes[4]["output"], "again\n");
    assert_eq!(outcomes[6], "stopped");
    assert_eq!(
        outcomes[8]["error"],
        format!("container {} does not exist", bundle.id)
    );
}

#[test]
fn an_id_is_taken_until_delete() {
    let bundle = Bundle::new("true");
    let outcomes = bundle.take(json!(["create", "create", "start", "wait"]));
    assert_eq!(
        outcomes[1]["error"],
        format!("container {} exists already", bundle.id)
    );
    assert_eq!(outcomes[3]["code"], 0, "the first one is not disturbed");
    let outcomes = bundle.take(json!(["load", {"delete": {"force": false}}, "create",
        {"delete": {"force": true}}]));
    assert!(outcomes[2]["pid"].is_number());
}

#[test]
fn a_running_container_is_deleted_by_force_alone() {
    let bundle = Bundle::new("sleep 1000 & sleep 1000");
    let outcomes = bundle.take(json!([
        "create", "start", "status", {"delete": {"force": false}}, {"delete": {"force": true}},
        "wait"
    ]));
    assert_eq!(outcomes[2], "running");
    assert!(
        outcomes[3]["error"]
            .as_str()
            .unwrap()
            .contains("is running")
    );
    assert_eq!(outcomes[4], Value::Null);
    assert_eq!(outcomes[5]["signal"], 9);
}

#[test]
fn start_works_once() {
    let bundle = Bundle::new("sleep 1000");
    let outcomes = bundle.take(json!(["create", "start", "start", {"delete": {"force": true}}]));
    assert!(
        outcomes[2]["error"]
            .as_str()
            .unwrap()
            .contains("only a created container can be started")
    );
}

#[test]
fn signals_reach_the_first_process_or_all() {
    let bundle = Bundle::new("trap 'exit 3' TERM; touch /ready; while :; do sleep 0.01; done");
    let ready = json!({"exec": {"process": {
        "user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["/bin/sh", "-c", "until [ -e /ready ]; do :; done"],
    }}});
    let outcomes = bundle.take(json!(["create", "start", ready, {"kill": 15}, "wait",
        {"kill": 15}, {"delete": {"force": false}}]));
    assert_eq!(outcomes[4]["code"], 3);
    assert!(
        outcomes[5]["error"]
            .as_str()
            .unwrap()
            .contains("is not running")
    );

    let bundle = Bundle::new("sleep 1000 & sleep 1000");
    let outcomes = bundle.take(json!(["create", "start", {"kill_all": 9}, "wait",
        {"delete": {"force": false}}]));
    assert_eq!(outcomes[3]["signal"], 9);
}

#[test]
fn a_paused_container_stands_still() {
    let bundle = Bundle::new("i=0; while :; do i=$((i+1)); done");
    let outcomes = bundle.take(json!([
        "create", "start", "pause", "status", "stats", "stats", "resume", "status",
        {"delete": {"force": true}}
    ]));
    assert_eq!(outcomes[2], Value::Null);
    assert_eq!(outcomes[3], "paused");
    assert_eq!(outcomes[4]["cpu_usage"], outcomes[5]["cpu_usage"]);
    assert_eq!(outcomes[7], "running");
}

#[test]
fn a_paused_container_can_be_deleted() {
    let bundle = Bundle::new("sleep 1000");
    let outcomes = bundle.take(json!([
        "create", "start", "pause", {"delete": {"force": true}}, "wait"
    ]));
    assert_eq!(outcomes[3], Value::Null);
    assert_eq!(outcomes[4]["signal"], 9);
}

#[test]
fn processes_are_listed() {
    let bundle = Bundle::new("exec sleep 1000");
    let outcomes = bundle.take(
        json!(["create", "start", "pids", {"delete": {"force": true}},
        "pids"]),
    );
    assert_eq!(outcomes[2], json!([outcomes[0]["pid"]]));
    assert_eq!(outcomes[4], json!([]));
}

#[test]
fn a_missing_command_is_told_at_create() {
    let mut bundle = Bundle::new("");
    bundle.spec["process"]["args"] = json!(["nonsense"]);
    assert_eq!(
        bundle.fail(),
        (
            "exec: \"nonsense\": executable file not found in $PATH".to_owned(),
            "command not found".to_owned()
        )
    );
    bundle.spec["process"]["args"] = json!(["/no/such"]);
    assert_eq!(
        bundle.fail(),
        (
            "exec: \"/no/such\": stat /no/such: no such file or directory".to_owned(),
            "command not found".to_owned()
        )
    );
}

#[test]
fn a_command_that_cannot_be_run_is_told_at_create() {
    let mut bundle = Bundle::new("");
    bundle.spec["process"]["args"] = json!(["/etc/passwd"]);
    assert_eq!(
        bundle.fail(),
        (
            "exec: \"/etc/passwd\": permission denied".to_owned(),
            "command not executable".to_owned()
        )
    );
    bundle.spec["process"]["args"] = json!(["/etc"]);
    assert_eq!(
        bundle.fail(),
        (
            "exec: \"/etc\": is a directory".to_owned(),
            "command not executable".to_owned()
        )
    );
}

#[test]
fn a_command_that_the_kernel_refuses_is_told_at_start() {
    use std::os::unix::fs::PermissionsExt;
    let mut bundle = Bundle::new("");
    let path = bundle.rootfs().join("bin/garbage");
    std::fs::write(&path, "\u{1}\u{2}garbage").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    bundle.spec["process"]["args"] = json!(["garbage"]);
    let outcomes = bundle.take(json!(["create", "start", "wait", "status",
        {"delete": {"force": false}}]));
    assert_eq!(outcomes[1]["kind"], "command not executable");
    assert_eq!(
        outcomes[1]["error"],
        "exec /usr/local/bin/garbage: exec format error".replace("/usr/local", "")
    );
    assert_eq!(outcomes[2]["code"], 126);
    assert_eq!(outcomes[3], "stopped");
}

#[test]
fn failures_name_their_step_and_leave_nothing() {
    let broken = |change: &dyn Fn(&mut Bundle)| {
        let mut bundle = Bundle::new("true");
        change(&mut bundle);
        bundle.fail().0
    };
    let error = broken(&|bundle| {
        bundle.push(
            "/mounts",
            json!({"destination": "/x", "type": "nofs", "source": "nofs"}),
        );
    });
    assert_eq!(
        error,
        "mount nofs on /x: this kernel has no file system nofs"
    );
    let error = broken(&|bundle| {
        bundle.push(
            "/mounts",
            json!({"destination": "/x", "type": "tmpfs", "options": ["size=much"]}),
        );
    });
    assert!(
        error.starts_with("mount tmpfs on /x: option size"),
        "{error}"
    );
    let error = broken(&|bundle| {
        bundle.push(
            "/mounts",
            json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}),
        );
    });
    assert!(
        error.starts_with("bind /no/such to /x: No such file"),
        "{error}"
    );
    let error = broken(&|bundle| bundle.spec["process"]["cwd"] = json!("/etc/passwd"));
    assert!(error.contains("/etc/passwd"), "{error}");
    let error = broken(&|bundle| {
        bundle.spec["linux"]["namespaces"][4]["path"] = json!("/proc/self/ns/uts");
    });
    assert!(
        error.starts_with("linux.namespaces[4].path: /proc/self/ns/uts is a namespace of another"),
        "{error}"
    );
    let error = broken(&|bundle| {
        bundle.spec["linux"]["resources"]["unified"] = json!({"nonsense.max": "1"});
    });
    let expected = by_version(
        "names files of cgroup version 2",
        "the nonsense controller is not available",
    );
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_wrong_spec_fails_before_anything_is_made() {
    let mut bundle = Bundle::new("true");
    bundle.spec["process"]["cwd"] = json!("relative");
    assert_eq!(
        bundle.fail(),
        (
            "process.cwd: \"relative\" is not absolute".to_owned(),
            "plan".to_owned()
        )
    );
    assert!(!bundle.dir.join("state").exists());
}
