//! Hooks: when they run, where, what they read, and what their failures come to.

use serde_json::{Value, json};

use crate::differential::case::{Case, Step, case};

const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A hook that appends to a log outside of the container.
fn noting(word: &str, then: &str) -> Value {
    json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("{{ echo {word}; cat; echo; }} >>{{dir}}/log; {then}")],
    })
}

/// One that appends to a log in the container.
fn noting_inside(word: &str, then: &str) -> Value {
    json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("{{ echo {word}; cat; echo; }} >>/log; {then}")],
        "env": ["PATH=/bin"],
    })
}

fn hook(point: &str, then: &str) -> Value {
    match point {
        "startContainer" => noting_inside(point, then),
        _ => noting(point, then),
    }
}

/// The usual life, and the logs after it.
fn logged(case: Case) -> Case {
    case.steps(vec![
        Step::Create(vec![]),
        Step::Call(vec!["start", "{id}"]),
        Step::Wait,
        Step::Call(vec!["delete", "{id}"]),
        Step::Shell("cat {dir}/log {rootfs}/log 2>/dev/null"),
    ])
}

/// What is left is looked at whatever failed: the verbs are called by hand.
fn failing(case: Case) -> Case {
    case.steps(vec![
        Step::Call(vec![
            "create",
            "--bundle",
            "{bundle}",
            "--pid-file",
            "{dir}/pid",
            "{id}",
        ]),
        Step::Call(vec!["start", "{id}"]),
        Step::Wait,
        Step::Call(vec!["delete", "{id}"]),
        Step::Shell("cat {dir}/log 2>/dev/null"),
    ])
}

pub fn cases() -> Vec<Case> {
    let all: serde_json::Map<_, _> = POINTS
        .iter()
        .map(|point| ((*point).to_owned(), json!([hook(point, "true")])))
        .collect();
    let of = |name, point: &str, hook: Value| {
        case(name)
            .merge(json!({"hooks": {point: [hook]}}))
            .script("echo ran")
    };
    let fails = |name, point: &str| failing(of(name, point, hook(point, "exit 7"))).says(&["hook"]);
    let time = |name, point: &str| {
        let mut slow = hook(point, "exec sleep 60");
        slow["timeout"] = 1.into();
        failing(of(name, point, slow)).says(&["hook"])
    };
    let state = "exec >>{dir}/log 2>&1; cat >/dev/null; pwd; env | sort | grep -v '^_='; id -u; \
        for n in mnt net uts ipc pid cgroup user; do \
        test \"$(readlink /proc/self/ns/$n)\" = \"$(cat {dir}/ns-$n)\" && echo $n same || echo $n own; done";
    let namespaces =
        "for n in mnt net uts ipc pid cgroup user; do readlink /proc/self/ns/$n >{dir}/ns-$n; done";
    let surroundings = json!({"path": "/bin/sh", "args": ["sh", "-c", state]});
    let mut environment = surroundings.clone();
    environment["env"] = json!(["PATH=/usr/bin:/bin", "A=b"]);
    vec![
        logged(case("hooks/all").merge(json!({"hooks": all})).script("cat /log; echo ran")),
        logged(case("hooks/two-of-a-point").merge(json!({"hooks": {
            "createRuntime": [noting("first", "true"), noting("second", "true")],
            "poststop": [noting("third", "true"), noting("fourth", "true")]}})).script("echo ran")),
        logged(case("hooks/annotations").merge(json!({"annotations": {"org.example": "x"}, "hooks": {
            "createRuntime": [noting("createRuntime", "true")]}})).script("echo ran")),
        logged(of("hooks/surroundings-of-create-runtime", "createRuntime", surroundings.clone()).host(namespaces, "")),
        logged(of("hooks/surroundings-of-create-container", "createContainer", surroundings.clone()).host(namespaces, "")),
        logged(of("hooks/surroundings-of-poststop", "poststop", surroundings).host(namespaces, "")),
        logged(of("hooks/environment", "createRuntime", environment).host(namespaces, "")),
        logged(of("hooks/surroundings-of-start-container", "startContainer", json!({
            "path": "/bin/sh", "env": ["PATH=/bin"],
            "args": ["sh", "-c", "exec >/log 2>&1; cat >/dev/null; pwd; env | sort; id -u; echo $$; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status"]}))),
        logged(of("hooks/without-args", "createRuntime", json!({"path": "/bin/true"}))),
        logged(of("hooks/args-name-the-program", "createRuntime", json!({"path": "/bin/sh",
            "args": ["another", "-c", "echo $0 >{dir}/log"]}))),
        logged(of("hooks/does-not-read", "createRuntime", json!({"path": "/bin/sh", "args": ["sh", "-c", "exec 0<&-; true"]}))),
        logged(of("hooks/empty-list", "createRuntime", json!({"path": "/bin/true"}))
            .merge(json!({"hooks": {"createRuntime": []}}))),
        logged(case("hooks/mount-is-seen").merge(json!({"hooks": {"createContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", "mount -t tmpfs hooked {rootfs}/var"]}]}}))
            .script("grep -c ' /var ' /proc/self/mountinfo")),
        fails("hooks/prestart-fails", "prestart"),
        fails("hooks/create-runtime-fails", "createRuntime"),
        fails("hooks/create-container-fails", "createContainer"),
        fails("hooks/start-container-fails", "startContainer"),
        fails("hooks/poststart-fails", "poststart"),
        fails("hooks/poststop-fails", "poststop"),
        time("hooks/create-runtime-too-slow", "createRuntime"),
        time("hooks/create-container-too-slow", "createContainer"),
        time("hooks/start-container-too-slow", "startContainer"),
        time("hooks/poststart-too-slow", "poststart"),
        failing(case("hooks/second-after-failure").merge(json!({"hooks": {"createRuntime": [
            noting("first", "exit 1"), noting("second", "true")]}}))).says(&["hook"]),
        failing(case("hooks/second-poststop-after-failure").merge(json!({"hooks": {"poststop": [
            noting("first", "exit 1"), noting("second", "true")]}}))).says(&["hook"]),
        failing(case("hooks/poststop-after-failed-create").merge(json!({"hooks": {
            "createRuntime": [noting("first", "exit 1")], "poststop": [noting("poststop", "true")]}}))).says(&["hook"]),
        failing(of("hooks/missing-program", "createRuntime", json!({"path": "/nowhere"}))).says(&["/nowhere", "hook"]),
        failing(of("hooks/missing-program-inside", "startContainer", json!({"path": "/nowhere"}))).says(&["/nowhere", "hook"]),
        failing(of("hooks/relative-path", "createRuntime", json!({"path": "bin/true"}))).says(&["path", "hook"]),
        failing(of("hooks/timeout-zero", "createRuntime", json!({"path": "/bin/true", "timeout": 0}))).says(&["timeout"]),
        failing(of("hooks/timeout-negative", "createRuntime", json!({"path": "/bin/true", "timeout": -1}))).says(&["timeout"]),
        failing(of("hooks/without-path", "createRuntime", json!({"args": ["x"]}))).says(&["path", "hook"]),
        failing(of("hooks/killed", "createRuntime", json!({"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}))).says(&["hook"]),
    ]
}
