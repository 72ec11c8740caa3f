//! Devices: nodes in /dev and what the cgroup lets be opened.

use serde_json::{Value, json};

use crate::differential::case::{Case, case};

fn device(path: &str, kind: &str, major: i64, minor: i64) -> Value {
    json!({"path": path, "type": kind, "major": major, "minor": minor})
}

fn rule(allow: bool, rest: Value) -> Value {
    let mut rule = rest;
    rule["allow"] = allow.into();
    rule
}

pub fn cases() -> Vec<Case> {
    let rules = |name, rules: Value| case(name).resources(json!({ "devices": rules }));
    let node = |name, device: Value| case(name).linux(json!({ "devices": [device] }));
    let open = "mknod /tmp/a c 10 237; mknod /tmp/b c 1 5; mknod /tmp/c c 5 0; \
        for d in a b c; do sh -c \"head -c 0 </tmp/$d\" 2>/dev/null && echo $d reads; \
        sh -c \": >/tmp/$d\" 2>/dev/null && echo $d writes; done; true";
    vec![
        node("devices/one", device("/dev/fuse", "c", 10, 229)),
        node(
            "devices/mode-and-owner",
            json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3,
            "fileMode": 0o640, "uid": 5, "gid": 6}),
        ),
        node(
            "devices/mode-with-type",
            json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o20666}),
        ),
        node("devices/block", device("/dev/x", "b", 7, 0)),
        node("devices/unbuffered", device("/dev/x", "u", 1, 3)),
        node("devices/fifo", json!({"path": "/dev/x", "type": "p"})),
        node(
            "devices/in-a-directory",
            device("/dev/net/tun", "c", 10, 200),
        ),
        node("devices/outside-of-dev", device("/devices/x", "c", 1, 3)),
        node(
            "devices/a-standard-one",
            json!({"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}),
        ),
        node("devices/another-null", device("/dev/null", "c", 1, 5)).says(&["/dev/null"]),
        node("devices/unknown-type", device("/dev/x", "z", 1, 3)).says(&["type", "z", "device"]),
        node(
            "devices/without-type",
            json!({"path": "/dev/x", "major": 1, "minor": 3}),
        )
        .says(&["type", "device"]),
        node(
            "devices/without-path",
            json!({"type": "c", "major": 1, "minor": 3}),
        )
        .says(&["path", "device"]),
        node("devices/relative", device("x", "c", 1, 3)),
        node("devices/leads-out", device("/dev/../../../x", "c", 1, 3)),
        node("devices/over-a-file", device("/etc/passwd", "c", 1, 3)).says(&["/etc/passwd"]),
        case("devices/twice")
            .linux(json!({"devices": [device("/dev/x", "c", 1, 3), device("/dev/x", "c", 1, 3)]})),
        node("devices/at-a-link", device("/dev/x/y", "c", 1, 3))
            .without_mount("/dev")
            .without_mount("/dev/pts")
            .without_mount("/dev/shm")
            .without_mount("/dev/mqueue")
            .host(
                "mkdir {dir}/outside; ln -s {dir}/outside {rootfs}/dev/x",
                "",
            )
            .script("ls -l /dev/x/y 2>&1 | wc -l"),
        rules("devices/rules-missing", json!(null)).script(open),
        rules("devices/rules-empty", json!([])).script(open),
        rules(
            "devices/rule-allow-all",
            json!([rule(true, json!({"access": "rwm"}))]),
        )
        .script(open),
        rules(
            "devices/rule-one",
            json!([
                rule(false, json!({"access": "rwm"})),
                rule(
                    true,
                    json!({"type": "c", "major": 10, "minor": 237, "access": "rwm"})
                )
            ]),
        )
        .script(open),
        rules(
            "devices/rule-read-only",
            json!([
                rule(false, json!({"access": "rwm"})),
                rule(
                    true,
                    json!({"type": "c", "major": 1, "minor": 5, "access": "r"})
                )
            ]),
        )
        .script(open),
        rules(
            "devices/rule-wildcard-minor",
            json!([
                rule(false, json!({"access": "rwm"})),
                rule(true, json!({"type": "c", "major": 10, "access": "rw"}))
            ]),
        )
        .script(open),
        rules(
            "devices/rule-minus-one",
            json!([
                rule(false, json!({"access": "rwm"})),
                rule(
                    true,
                    json!({"type": "c", "major": -1, "minor": -1, "access": "m"})
                )
            ]),
        )
        .script(open),
        rules(
            "devices/rule-type-a",
            json!([
                rule(false, json!({"type": "a", "access": "rwm"})),
                rule(true, json!({"type": "a", "access": "rwm"}))
            ]),
        )
        .script(open),
        rules(
            "devices/rule-deny-one",
            json!([
                rule(true, json!({"access": "rwm"})),
                rule(
                    false,
                    json!({"type": "c", "major": 10, "minor": 237, "access": "rwm"})
                )
            ]),
        )
        .script(open),
        rules(
            "devices/rule-deny-a-standard-one",
            json!([
                rule(false, json!({"access": "rwm"})),
                rule(
                    false,
                    json!({"type": "c", "major": 1, "minor": 3, "access": "rwm"})
                )
            ]),
        ),
        rules(
            "devices/rule-deny-write",
            json!([
                rule(true, json!({"access": "rwm"})),
                rule(
                    false,
                    json!({"type": "c", "major": 1, "minor": 5, "access": "w"})
                )
            ]),
        )
        .script(open),
        rules(
            "devices/rule-bad-access",
            json!([rule(true, json!({"access": "rx"}))]),
        )
        .says(&["access", "device"]),
        rules(
            "devices/rule-bad-type",
            json!([rule(true, json!({"type": "z", "access": "r"}))]),
        )
        .says(&["type", "device"]),
        rules(
            "devices/rule-without-access",
            json!([
                rule(false, json!({"access": "rwm"})),
                rule(true, json!({"type": "c", "major": 10, "minor": 237}))
            ]),
        )
        .script(open),
        rules(
            "devices/rule-order",
            json!([
                rule(
                    true,
                    json!({"type": "c", "major": 10, "minor": 237, "access": "rwm"})
                ),
                rule(false, json!({"access": "rwm"}))
            ]),
        )
        .script(open),
    ]
}
