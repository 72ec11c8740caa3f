//! Hooks: when they run, where, and what they are told.

mod common;

use common::{Bundle, cgroups_of};
use serde_json::{Value, json};

/// A hook that appends its name and what `what` prints to a log of the bundle.
fn hook(bundle: &Bundle, name: &str, what: &str) -> Value {
    let log = bundle.dir.join("log");
    json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("{{ echo {name}; {what}; }} >> {} 2>&1", log.display())],
        "env": ["PATH=/usr/bin:/bin"],
    }])
}

#[test]
fn they_run_in_order_with_the_state() {
    let mut bundle = Bundle::new("echo command >> /log");
    std::fs::write(bundle.rootfs().join("log"), "").unwrap();
    let state = "grep -o '\"status\":\"[a-z]*\"'";
    bundle.spec["hooks"] = json!({
        "prestart": hook(&bundle, "prestart", state),
        "createRuntime": hook(&bundle, "createRuntime", state),
        "createContainer": hook(&bundle, "createContainer", state),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c",
            format!("{{ echo startContainer; {state}; }} >> /log")], "env": ["PATH=/bin"]}],
        "poststart": hook(&bundle, "poststart", state),
        "poststop": hook(&bundle, "poststop", state),
    });
    bundle.run();
    assert_eq!(
        std::fs::read_to_string(bundle.dir.join("log")).unwrap(),
        "prestart\n\"status\":\"creating\"\ncreateRuntime\n\"status\":\"creating\"\n\
         createContainer\n\"status\":\"creating\"\npoststart\n\"status\":\"running\"\n\
         poststop\n\"status\":\"stopped\"\n"
    );
    assert_eq!(
        std::fs::read_to_string(bundle.rootfs().join("log")).unwrap(),
        "startContainer\n\"status\":\"created\"\ncommand\n"
    );
}

#[test]
fn they_run_in_their_namespaces_with_the_mounts_made() {
    let mut bundle = Bundle::new("cat /injected");
    let uts = "readlink /proc/self/ns/uts";
    let inject = format!(
        "{uts}; echo from the hook > {root}/injected; grep -c {root}/dev/pts /proc/self/mountinfo",
        root = bundle.rootfs().display()
    );
    bundle.spec["hooks"] = json!({
        "createRuntime": hook(&bundle, "createRuntime",
            &format!("{uts}; pid=$(grep -o '\"pid\":[0-9]*' | cut -d: -f2); readlink /proc/$pid/ns/uts")),
        "createContainer": hook(&bundle, "createContainer", &inject),
    });
    assert_eq!(bundle.run(), "from the hook\n");
    let log = std::fs::read_to_string(bundle.dir.join("log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    let own = std::fs::read_link("/proc/self/ns/uts").unwrap();
    assert_eq!(lines[1], own.to_str().unwrap());
    assert_ne!(lines[2], lines[1], "the process has its namespaces already");
    assert_eq!(lines[4], lines[2], "createContainer runs in them");
    assert_eq!(
        lines[5], "1",
        "the mounts are made and the root is not yet entered"
    );
}

#[test]
fn a_failing_one_fails_the_create() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::new("true");
        bundle.spec["hooks"] = json!({
            kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 4"]}],
            "poststop": hook(&bundle, "poststop", "true"),
        });
        let error = bundle.fail().0;
        assert!(
            error.ends_with(&format!("{kind} hook /bin/sh: exited with 4: because")),
            "{error}"
        );
        assert_eq!(
            std::fs::read_to_string(bundle.dir.join("log")).unwrap(),
            "poststop\n"
        );
    }
}

#[test]
fn a_hanging_one_is_ended() {
    let mut bundle = Bundle::new("true");
    bundle.spec["hooks"] = json!({
        "createContainer": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}],
    });
    let error = bundle.fail().0;
    assert!(error.ends_with("timed out after 1 s"), "{error}");
}

#[test]
fn a_failing_start_hook_fails_the_start() {
    let mut bundle = Bundle::new("true");
    bundle.spec["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]});
    let outcomes = bundle.take(json!(["create", "start", "wait", "status",
        {"delete": {"force": false}}]));
    assert_eq!(
        outcomes[1]["error"],
        "run the hooks: startContainer hook /bin/false: exited with 1"
    );
    assert_eq!(outcomes[3], "stopped");
}

#[test]
fn failing_late_ones_change_nothing() {
    let mut bundle = Bundle::new("echo ran");
    bundle.spec["hooks"] = json!({
        "poststart": [{"path": "/bin/false"}],
        "poststop": [{"path": "/bin/false"}],
    });
    assert_eq!(bundle.run(), "ran\n");
    assert!(cgroups_of(&bundle.id).is_empty());
}
