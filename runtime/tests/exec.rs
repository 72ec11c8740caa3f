//! Processes that are added to a container.

mod common;

use common::{Bundle, cgroup_version, field};
use serde_json::{Value, json};

fn process(script: &str) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": true,
    })
}

/// Runs a process in a container that sleeps.
fn exec(bundle: &Bundle, process: Value) -> Value {
    let outcomes = bundle.take(json!([
        "create", "start", {"exec": {"process": process}}, {"delete": {"force": true}}, "wait",
        "children"
    ]));
    assert_eq!(outcomes[5], false, "a process is left behind");
    outcomes[2].clone()
}

#[test]
fn it_shares_the_namespaces_and_the_cgroup() {
    let list = "for n in cgroup ipc mnt net pid uts; do readlink /proc/$P/ns/$n; done; \
                cat /proc/$P/cgroup; hostname";
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.push("/process/capabilities/effective", json!("CAP_SYS_PTRACE"));
    bundle.push("/process/capabilities/permitted", json!("CAP_SYS_PTRACE"));
    bundle.push("/process/capabilities/bounding", json!("CAP_SYS_PTRACE"));
    let script = format!("P=self; {list}; P=1; {list}");
    let outcome = exec(&bundle, process(&script));
    assert_eq!(outcome["code"], 0, "{outcome}");
    let lines: Vec<_> = outcome["output"].as_str().unwrap().lines().collect();
    let (own, first) = lines.split_at(lines.len() / 2);
    assert_eq!(own, first);
    assert_eq!(own.last(), Some(&"inside"));
}

#[test]
fn exit_codes_and_signals_are_seen() {
    let bundle = Bundle::new("exec sleep 1000");
    assert_eq!(exec(&bundle, process("exit 5"))["code"], 5);
    assert_eq!(
        exec(&bundle, process("kill -TERM $$; sleep 1000"))["signal"],
        15
    );
}

#[test]
fn it_has_its_own_user_and_the_container_s_rights_and_limits() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}]);
    let mut added = process("cat /proc/self/status; cat /proc/self/limits; pwd");
    added["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [9]});
    added["cwd"] = json!("/tmp");
    let outcome = exec(&bundle, added);
    let text = outcome["output"].as_str().unwrap();
    assert_eq!(field(text, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(field(text, "Groups"), "9");
    // chown, kill, setgid, setuid, mknod
    assert_eq!(field(text, "CapBnd"), "00000000080000e1");
    assert_eq!(field(text, "CapEff"), "0000000000000000");
    assert!(field(text, "Max open files").starts_with("50"));
    assert_eq!(text.lines().last(), Some("/tmp"));
}

#[test]
fn the_seccomp_profile_holds_for_it_too() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    });
    let outcome = exec(&bundle, process("mkdir /tmp/a"));
    assert_eq!(
        outcome["output"],
        "mkdir: can't create directory '/tmp/a': Operation not permitted\n"
    );
}

#[test]
fn a_missing_command_is_told() {
    let bundle = Bundle::new("exec sleep 1000");
    let mut added = process("");
    added["args"] = json!(["nonsense"]);
    let outcome = exec(&bundle, added.clone());
    assert_eq!(outcome["kind"], "command not found");
    assert_eq!(
        outcome["error"],
        "exec: \"nonsense\": executable file not found in $PATH"
    );
    added["args"] = json!(["/etc/passwd"]);
    assert_eq!(
        exec(&bundle, added.clone())["kind"],
        "command not executable"
    );
    added["args"] = json!(["/bin/true"]);
    added["cwd"] = json!("/no/such");
    let outcome = exec(&bundle, added);
    assert!(
        outcome["error"]
            .as_str()
            .unwrap()
            .starts_with("change to the directory /no/such: "),
        "{outcome}"
    );
}

#[test]
fn a_container_that_is_not_running_takes_none() {
    let bundle = Bundle::new("true");
    let outcomes = bundle.take(json!(["create", "start", "wait",
        {"exec": {"process": process("true")}}, {"delete": {"force": false}}]));
    assert!(
        outcomes[3]["error"]
            .as_str()
            .unwrap()
            .contains("is stopped")
    );
}

#[test]
fn a_created_container_takes_one() {
    let bundle = Bundle::new("true");
    let outcomes = bundle.take(
        json!(["create", {"exec": {"process": process("echo early")}},
        "start", "wait", {"delete": {"force": false}}]),
    );
    assert_eq!(outcomes[1]["output"], "early\n");
    assert_eq!(outcomes[3]["code"], 0);
}

#[test]
fn it_goes_where_a_container_that_manages_cgroups_has_gone() {
    if cgroup_version() == 1 {
        // There a process is put into the container's own directories, which always take it.
        return;
    }
    let mut bundle = Bundle::new(
        "mkdir /sys/fs/cgroup/leaf && echo 0 > /sys/fs/cgroup/leaf/cgroup.procs && \
         exec sleep 1000",
    );
    bundle.spec["mounts"][6]["options"] = json!(["rw"]);
    let ready =
        process("until [ -e /sys/fs/cgroup/leaf ] && grep -q leaf /proc/1/cgroup; do :; done");
    let outcomes = bundle.take(json!(["create", "start", {"exec": {"process": ready}},
        {"exec": {"process": process("cat /proc/self/cgroup")}}, "pids",
        {"delete": {"force": true}}, "wait"]));
    assert_eq!(outcomes[3]["code"], 0);
    assert_eq!(outcomes[4].as_array().unwrap().len(), 1);
    assert_eq!(outcomes[5], Value::Null);
}

#[test]
fn it_can_have_a_terminal_of_the_container() {
    let bundle = Bundle::new("exec sleep 1000");
    let outcomes = bundle.take(json!(["create", "start",
        {"exec": {"process": process("tty; stty size; read x; echo got $x"), "terminal": "word\n"}},
        {"delete": {"force": true}}, "wait"]));
    let text = outcomes[2]["output"].as_str().unwrap();
    assert!(
        text.contains("/dev/pts/0") && text.contains("25 80"),
        "{text}"
    );
    assert!(text.contains("got word"), "{text}");
}
