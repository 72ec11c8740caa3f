//! Verbs in all orders, and those that ask about or change a container that runs.

use serde_json::json;

use crate::differential::case::{Case, Step, case};
use Step::{Call, Create, Shape, Shell, Until, Wait};

/// A container that waits for its end.
const IDLE: &str = "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.1; done";
const READY: &str = "test -e {rootfs}/ready";

/// What is done with a container that runs, between its start and its forced end.
fn running(name: &'static str, steps: Vec<Step>) -> Case {
    let around = [
        vec![Create(vec![]), Call(vec!["start", "{id}"]), Until(READY)],
        steps,
        vec![Call(vec!["delete", "--force", "{id}"])],
    ];
    case(name).script(IDLE).steps(around.concat())
}

fn created(name: &'static str, steps: Vec<Step>) -> Case {
    let around = [
        vec![Create(vec![])],
        steps,
        vec![Call(vec!["delete", "--force", "{id}"])],
    ];
    case(name).script(IDLE).steps(around.concat())
}

/// One more process of a container that runs.
fn exec(name: &'static str, words: Vec<&'static str>) -> Case {
    running(name, vec![Call([vec!["exec"], words].concat())])
}

pub fn cases() -> Vec<Case> {
    [
        order(),
        signals(),
        execs(),
        questions(),
        updates(),
        freezing(),
        running_directly(),
    ]
    .concat()
}

fn order() -> Vec<Case> {
    let call = |words: &[&'static str]| Call(words.to_vec());
    let alone = |name, words: &[&'static str]| case(name).steps(vec![Call(words.to_vec())]);
    vec![
        alone("verbs/start-nothing", &["start", "{id}"]).says(&[
            "exist",
            "no container",
            "not found",
            "unknown",
        ]),
        alone("verbs/state-nothing", &["state", "{id}"]).says(&[
            "exist",
            "no container",
            "not found",
            "unknown",
        ]),
        alone("verbs/kill-nothing", &["kill", "{id}", "KILL"]).says(&[
            "exist",
            "no container",
            "not found",
            "unknown",
        ]),
        alone("verbs/delete-nothing", &["delete", "{id}"]).says(&[
            "exist",
            "no container",
            "not found",
            "unknown",
        ]),
        alone(
            "verbs/delete-nothing-by-force",
            &["delete", "--force", "{id}"],
        ),
        alone("verbs/exec-nothing", &["exec", "{id}", "true"]).says(&[
            "exist",
            "no container",
            "not found",
            "unknown",
        ]),
        alone("verbs/pause-nothing", &["pause", "{id}"]).says(&[
            "exist",
            "no container",
            "not found",
            "unknown",
        ]),
        alone("verbs/unknown-verb", &["dance", "{id}"]),
        alone("verbs/unknown-flag", &["state", "--dance", "{id}"]),
        alone("verbs/no-id", &["state"]),
        alone("verbs/two-ids", &["state", "{id}", "other"]),
        alone(
            "verbs/bad-id",
            &["create", "--bundle", "{bundle}", "../{id}"],
        )
        .says(&["id"]),
        alone("verbs/odd-id", &["create", "--bundle", "{bundle}", "a b"]).says(&["id"]),
        alone("verbs/empty-id", &["create", "--bundle", "{bundle}", ""]).says(&["id"]),
        alone("verbs/dot-id", &["create", "--bundle", "{bundle}", ".."]).says(&["id"]),
        case("verbs/plus-id").steps(vec![
            call(&[
                "create",
                "--bundle",
                "{bundle}",
                "--pid-file",
                "{dir}/pid",
                "a+b_c.d-e",
            ]),
            call(&["state", "a+b_c.d-e"]),
            call(&["delete", "--force", "a+b_c.d-e"]),
        ]),
        created(
            "verbs/create-twice",
            vec![call(&["create", "--bundle", "{bundle}", "{id}"])],
        )
        .says(&["exist", "id"]),
        created(
            "verbs/second-with-the-same-cgroup",
            vec![call(&["create", "--bundle", "{bundle}", "other"])],
        )
        .says(&["cgroup"]),
        running("verbs/start-twice", vec![call(&["start", "{id}"])])
            .says(&["created", "running", "start"]),
        running("verbs/delete-running", vec![call(&["delete", "{id}"])]).says(&["running", "stop"]),
        created("verbs/delete-created", vec![call(&["delete", "{id}"])]),
        created(
            "verbs/delete-created-by-force",
            vec![
                call(&["delete", "--force", "{id}"]),
                call(&["state", "{id}"]),
            ],
        ),
        created(
            "verbs/kill-created",
            vec![
                call(&["kill", "{id}", "KILL"]),
                Wait,
                call(&["state", "{id}"]),
                call(&["delete", "{id}"]),
            ],
        ),
        created(
            "verbs/exec-created",
            vec![call(&["exec", "{id}", "/bin/echo", "early"])],
        ),
        created(
            "verbs/pause-created",
            vec![
                call(&["pause", "{id}"]),
                call(&["state", "{id}"]),
                call(&["resume", "{id}"]),
                call(&["state", "{id}"]),
            ],
        ),
        case("verbs/stopped").script("exit 5").steps(vec![
            Create(vec![]),
            call(&["start", "{id}"]),
            Wait,
            call(&["start", "{id}"]),
            call(&["kill", "{id}", "KILL"]),
            call(&["kill", "{id}", "0"]),
            call(&["exec", "{id}", "/bin/true"]),
            call(&["pause", "{id}"]),
            call(&["resume", "{id}"]),
            call(&["ps", "{id}"]),
            call(&["update", "--pids-limit", "5", "{id}"]),
            call(&["events", "--stats", "{id}"]),
            call(&["state", "{id}"]),
            call(&["delete", "{id}"]),
            call(&["delete", "{id}"]),
        ]),
        case("verbs/deleted-from-outside").script(IDLE).steps(vec![
            Create(vec![]),
            Shell("kill -9 $(cat {dir}/pid)"),
            Wait,
            call(&["state", "{id}"]),
            call(&["start", "{id}"]),
            call(&["delete", "{id}"]),
        ]),
    ]
}

fn signals() -> Vec<Case> {
    let kill = |name, words: Vec<&'static str>| {
        case(name).script(IDLE).steps(vec![
            Create(vec![]),
            Call(vec!["start", "{id}"]),
            Until(READY),
            Call(words),
            Wait,
            Call(vec!["delete", "{id}"]),
        ])
    };
    let refused = |name, words| running(name, vec![Call(words)]).says(&["signal"]);
    vec![
        kill("verbs/kill-default", vec!["kill", "{id}"]),
        kill("verbs/kill-name", vec!["kill", "{id}", "TERM"]),
        kill("verbs/kill-long-name", vec!["kill", "{id}", "SIGKILL"]),
        kill("verbs/kill-lower-case", vec!["kill", "{id}", "term"]),
        kill("verbs/kill-number", vec!["kill", "{id}", "9"]),
        kill("verbs/kill-all", vec!["kill", "--all", "{id}", "KILL"]),
        refused("verbs/kill-unknown", vec!["kill", "{id}", "NEVER"]),
        refused("verbs/kill-too-high", vec!["kill", "{id}", "99"]),
        refused("verbs/kill-negative", vec!["kill", "{id}", "-9"]),
        running("verbs/kill-zero", vec![Call(vec!["kill", "{id}", "0"])]),
        running(
            "verbs/kill-realtime",
            vec![Call(vec!["kill", "{id}", "RTMIN+1"])],
        ),
        kill("verbs/kill-paused", vec!["kill", "{id}", "KILL"]).steps(vec![
            Create(vec![]),
            Call(vec!["start", "{id}"]),
            Until(READY),
            Call(vec!["pause", "{id}"]),
            Call(vec!["kill", "{id}", "KILL"]),
            Call(vec!["resume", "{id}"]),
            Wait,
            Call(vec!["delete", "{id}"]),
        ]),
        running("verbs/delete-paused", vec![Call(vec!["pause", "{id}"])]),
        case("verbs/shared-pid-kill")
            .without_namespace("pid")
            .script("sleep 300 & touch /ready; sleep 301")
            .steps(vec![
                Create(vec![]),
                Call(vec!["start", "{id}"]),
                Until(READY),
                Call(vec!["kill", "{id}", "KILL"]),
                Wait,
                Call(vec!["delete", "{id}"]),
            ]),
        case("verbs/shared-pid-delete")
            .without_namespace("pid")
            .script("sleep 300 & exit 0")
            .steps(vec![
                Create(vec![]),
                Call(vec!["start", "{id}"]),
                Wait,
                Call(vec!["delete", "{id}"]),
            ]),
    ]
}

fn execs() -> Vec<Case> {
    vec![
        exec("exec/echo", vec!["{id}", "echo", "hello"]),
        exec("exec/view", vec!["{id}", "/probe"]),
        exec("exec/exit-code", vec!["{id}", "sh", "-c", "exit 42"]),
        exec("exec/signal", vec!["{id}", "sh", "-c", "kill -9 $$"]),
        exec("exec/not-found", vec!["{id}", "nowhere"]).says(&["nowhere"]),
        exec("exec/not-executable", vec!["{id}", "/etc/passwd"]).says(&["/etc/passwd"]),
        exec("exec/no-command", vec!["{id}"]),
        exec("exec/cwd", vec!["--cwd", "/tmp", "{id}", "pwd"]),
        exec("exec/cwd-missing", vec!["--cwd", "/nowhere", "{id}", "pwd"]),
        exec("exec/cwd-relative", vec!["--cwd", "tmp", "{id}", "pwd"]).says(&["cwd"]),
        exec(
            "exec/env",
            vec!["--env", "A=b", "--env", "C=d", "{id}", "env"],
        ),
        exec(
            "exec/env-over-path",
            vec!["--env", "PATH=/nowhere", "{id}", "env"],
        ),
        exec("exec/user", vec!["--user", "1000", "{id}", "/probe"]),
        exec(
            "exec/user-and-group",
            vec!["--user", "1000:50", "{id}", "id"],
        ),
        exec("exec/user-by-name", vec!["--user", "ann", "{id}", "id"])
            .says(&["user", "uid", "ann"]),
        exec(
            "exec/groups",
            vec![
                "--user",
                "1000",
                "--additional-gids",
                "5",
                "-g",
                "6",
                "{id}",
                "/probe",
            ],
        ),
        exec(
            "exec/capability",
            vec!["--cap", "CAP_SYS_ADMIN", "{id}", "/probe"],
        ),
        exec(
            "exec/capability-of-a-user",
            vec!["--user", "1000", "--cap", "CAP_KILL", "{id}", "/probe"],
        ),
        exec(
            "exec/capability-unknown",
            vec!["--cap", "CAP_NEVER", "{id}", "/bin/true"],
        ),
        exec(
            "exec/no-new-privileges",
            vec!["--no-new-privs", "{id}", "/probe"],
        ),
        exec(
            "exec/apparmor",
            vec!["--apparmor", "nowhere", "{id}", "/bin/true"],
        )
        .says(&["apparmor"]),
        exec(
            "exec/process-label",
            vec!["--process-label", "a:b:c:d", "{id}", "/bin/true"],
        )
        .says(&["selinux", "label"]),
        running(
            "exec/detached",
            vec![
                Call(vec![
                    "exec",
                    "--detach",
                    "--pid-file",
                    "{dir}/exec-pid",
                    "{id}",
                    "sleep",
                    "300",
                ]),
                Shell(
                    "grep -c sleep /proc/$(cat {dir}/exec-pid)/cmdline; tr '\\0' ' ' </proc/$(cat {dir}/exec-pid)/cmdline",
                ),
            ],
        ),
        running(
            "exec/process-file",
            vec![
                Shell(
                    "echo '{\"user\": {\"uid\": 1000, \"gid\": 1000, \"additionalGids\": [7], \"umask\": 63}, \"args\": [\"/probe\"], \
                \"env\": [\"PATH=/bin\", \"A=b\"], \"cwd\": \"/tmp\", \"noNewPrivileges\": true, \"oomScoreAdj\": 300, \
                \"capabilities\": {\"bounding\": [\"CAP_KILL\"], \"permitted\": [\"CAP_KILL\"], \"effective\": [\"CAP_KILL\"], \
                \"inheritable\": [\"CAP_KILL\"], \"ambient\": [\"CAP_KILL\"]}, \
                \"rlimits\": [{\"type\": \"RLIMIT_NOFILE\", \"soft\": 50, \"hard\": 60}]}' >{dir}/process.json",
                ),
                Call(vec!["exec", "--process", "{dir}/process.json", "{id}"]),
            ],
        ),
        running(
            "exec/process-file-scheduling",
            vec![
                Shell(
                    "echo '{\"user\": {\"uid\": 0, \"gid\": 0}, \"args\": [\"/probe\"], \"env\": [\"PATH=/bin\"], \"cwd\": \"/\", \
                \"scheduler\": {\"policy\": \"SCHED_BATCH\", \"nice\": 3}, \
                \"ioPriority\": {\"class\": \"IOPRIO_CLASS_IDLE\", \"priority\": 0}}' >{dir}/process.json",
                ),
                Call(vec!["exec", "--process", "{dir}/process.json", "{id}"]),
            ],
        ),
        running(
            "exec/process-file-missing",
            vec![Call(vec![
                "exec",
                "--process",
                "{dir}/nowhere.json",
                "{id}",
            ])],
        )
        .says(&["nowhere.json"]),
        running(
            "exec/process-file-not-json",
            vec![
                Shell("echo '{' >{dir}/process.json"),
                Call(vec!["exec", "--process", "{dir}/process.json", "{id}"]),
            ],
        ),
        running(
            "exec/terminal-detached-without-socket",
            vec![Call(vec!["exec", "--tty", "--detach", "{id}", "/bin/true"])],
        )
        .says(&["console", "terminal"]),
        running(
            "exec/paused",
            vec![
                Call(vec!["pause", "{id}"]),
                Call(vec!["exec", "{id}", "/bin/true"]),
                Call(vec!["resume", "{id}"]),
            ],
        )
        .says(&["pause"]),
        exec("exec/with-seccomp", vec!["{id}", "/probe"]).linux(json!({"seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}})),
        exec("exec/with-limits", vec!["{id}", "/probe"])
            .process(json!({
            "oomScoreAdj": 200, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}],
            "user": {"uid": 1000, "gid": 1000, "umask": 63, "additionalGids": [5]}, "cwd": "/tmp"}))
            .host("chmod 777 {rootfs}", ""),
        exec("exec/in-a-user-namespace", vec!["{id}", "/probe"])
            .host(
                "chown -R 100000:100000 {rootfs}; chmod 755 {dir} {bundle}",
                "",
            )
            .namespace(json!({"type": "user"}))
            .linux(json!({
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
                "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}]})),
        exec("exec/in-a-time-namespace", vec!["{id}", "/probe"])
            .namespace(json!({"type": "time"}))
            .linux(json!({"timeOffsets": {"boottime": {"secs": 1000}}})),
        exec("exec/with-host-pid", vec!["{id}", "/probe"]).without_namespace("pid"),
        exec("exec/with-ambient", vec!["{id}", "/probe"])
            .process(json!({
            "user": {"uid": 1000, "gid": 1000},
            "capabilities": {"inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}}))
            .host("chmod 777 {rootfs}", ""),
        exec(
            "exec/preserved-descriptors",
            vec!["--preserve-fds", "2", "{id}", "/probe"],
        )
        .descriptors(2),
        exec(
            "exec/sub-cgroup-missing",
            vec!["--cgroup", "/nowhere", "{id}", "/bin/true"],
        )
        .says(&["cgroup", "nowhere"]),
        exec(
            "exec/ignoring-paused",
            vec!["--ignore-paused", "{id}", "/bin/echo", "ran"],
        ),
    ]
}

fn questions() -> Vec<Case> {
    vec![
        running("verbs/state", vec![Call(vec!["state", "{id}"])])
            .merge(json!({"annotations": {"org.example": "x"}})),
        running("verbs/list", vec![
            Shell("{runtime} list | sed 's/  */ /g; s/ [0-9][0-9]* / PID /; s/ [0-9-]*T[^ ]* / TIME /'"),
        ]),
        running("verbs/list-json", vec![Call(vec!["list", "--format", "json"])]),
        running("verbs/list-quiet", vec![Call(vec!["list", "--quiet"])]),
        case("verbs/list-nothing").steps(vec![Call(vec!["list"]), Call(vec!["list", "--format", "json"]), Call(vec!["list", "-q"])]),
        running("verbs/list-bad-format", vec![Call(vec!["list", "--format", "yaml"])]).says(&["format"]),
        running("verbs/ps-json", vec![
            Shell("test \"$({runtime} ps --format json {id} | tr -d '[] \\n' | tr ',' '\\n' | grep -cx $(cat {dir}/pid))\" = 1 && echo its pid"),
            Shape(vec!["ps", "--format", "json", "{id}"]),
        ]),
        running("verbs/ps", vec![Shell("{runtime} ps {id} | grep -q ready; echo $?; {runtime} ps {id} | head -n 1 | sed 's/  */ /g'")]),
        running("verbs/ps-options", vec![Shell("{runtime} ps {id} -o pid,comm | grep -q '[0-9] sh$'; echo $?")]),
        running("verbs/ps-bad-format", vec![Call(vec!["ps", "--format", "yaml", "{id}"])]).says(&["format"]),
        running("verbs/stats", vec![Shape(vec!["events", "--stats", "{id}"])]),
        case("verbs/features").steps(vec![Shape(vec!["features"])]),
        case("verbs/version").steps(vec![Shell("{runtime} --version | sed 's/ .*//' | tail -n +2 | sort")]),
        case("verbs/spec").steps(vec![
            Call(vec!["spec", "--bundle", "{bundle}"]),
            Shell("rm {bundle}/config.json; {runtime} spec --bundle {bundle}; cat {bundle}/config.json"),
        ]),
        running("verbs/another-root", vec![
            Shell("{runtime} --root {dir}/elsewhere list -q 2>/dev/null; echo $?; ls -d {dir}/elsewhere 2>/dev/null"),
            Shell("{runtime} --root {dir}/elsewhere state {id} 2>/dev/null; echo $?"),
        ]),
        running("verbs/log-option", vec![
            Shell("{runtime} --log {dir}/log --log-format json start {id} 2>/dev/null; echo $?; sed 's/\"msg\":.*//; s/\"time\".*//' {dir}/log | head -n 1 | cut -c1-8"),
            Shell("{runtime} --log {dir}/log2 --log-format yaml state {id} >/dev/null 2>&1; echo $?"),
            Shell("head -c 0 {dir}/log; grep -c '\"level\":\"error\"' {dir}/log; grep -c '\"msg\"' {dir}/log; grep -c '\"time\"' {dir}/log"),
        ]),
    ]
}

fn updates() -> Vec<Case> {
    let look = Shell(
        "cd {cgroup}; for f in memory.max memory.low memory.swap.max cpu.max cpu.weight cpu.idle cpuset.cpus pids.max; \
        do echo $f $(cat $f 2>/dev/null); done",
    );
    let update = |name, words: Vec<&'static str>| {
        running(
            name,
            vec![Call([vec!["update"], words].concat()), look.clone()],
        )
    };
    let from_file = |name, write| {
        let file = "{dir}/resources.json";
        let call = Call(vec!["update", "--resources", file, "{id}"]);
        running(name, vec![Shell(write), call, look.clone()])
    };
    vec![
        update("update/memory", vec!["--memory", "67108864", "{id}"]),
        update(
            "update/memory-and-swap",
            vec!["--memory", "67108864", "--memory-swap", "134217728", "{id}"],
        ),
        update(
            "update/memory-unlimited",
            vec!["--memory", "-1", "--memory-swap", "-1", "{id}"],
        )
        .resources(json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}})),
        update(
            "update/memory-reservation",
            vec!["--memory-reservation", "33554432", "{id}"],
        ),
        update("update/memory-words", vec!["--memory", "64M", "{id}"]),
        update("update/memory-bad", vec!["--memory", "much", "{id}"]).says(&["memory", "much"]),
        update("update/memory-below-use", vec!["--memory", "4096", "{id}"]),
        update(
            "update/cpu",
            vec![
                "--cpu-quota",
                "50000",
                "--cpu-period",
                "100000",
                "--cpu-share",
                "512",
                "{id}",
            ],
        ),
        update("update/cpu-quota", vec!["--cpu-quota", "50000", "{id}"])
            .resources(json!({"cpu": {"quota": 10_000, "period": 20_000}})),
        update("update/cpu-idle", vec!["--cpu-idle", "1", "{id}"]),
        update(
            "update/cpu-burst",
            vec!["--cpu-quota", "50000", "--cpu-burst", "10000", "{id}"],
        ),
        update("update/cpuset", vec!["--cpuset-cpus", "0", "{id}"]),
        update("update/cpuset-bad", vec!["--cpuset-cpus", "4000", "{id}"]).says(&["cpuset"]),
        update("update/pids", vec!["--pids-limit", "99", "{id}"]),
        update("update/pids-unlimited", vec!["--pids-limit", "-1", "{id}"])
            .resources(json!({"pids": {"limit": 50}})),
        update("update/io-weight", vec!["--blkio-weight", "100", "{id}"]),
        update("update/nothing", vec!["{id}"]),
        from_file(
            "update/file",
            "echo '{\"memory\": {\"limit\": 67108864}, \"pids\": {\"limit\": 42}}' >{dir}/resources.json",
        ),
        running(
            "update/stdin",
            vec![
                Shell(
                    "echo '{\"pids\": {\"limit\": 43}}' | {runtime} update --resources - {id}; echo $?",
                ),
                look.clone(),
            ],
        ),
        from_file("update/file-bad", "echo '[' >{dir}/resources.json"),
        from_file(
            "update/file-unified",
            "echo '{\"unified\": {\"pids.max\": \"44\"}}' >{dir}/resources.json",
        ),
        running(
            "update/keeps-what-it-does-not-name",
            vec![
                Call(vec!["update", "--pids-limit", "45", "{id}"]),
                Call(vec!["update", "--cpu-share", "256", "{id}"]),
                look.clone(),
            ],
        )
        .resources(json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000}})),
    ]
}

fn freezing() -> Vec<Case> {
    vec![
        running(
            "verbs/pause",
            vec![
                Call(vec!["pause", "{id}"]),
                Call(vec!["state", "{id}"]),
                Shell("cat {cgroup}/cgroup.freeze"),
                Call(vec!["list", "--format", "json"]),
                Call(vec!["resume", "{id}"]),
                Call(vec!["state", "{id}"]),
                Shell("cat {cgroup}/cgroup.freeze"),
            ],
        ),
        running(
            "verbs/pause-twice",
            vec![Call(vec!["pause", "{id}"]), Call(vec!["pause", "{id}"])],
        )
        .says(&["pause"]),
        running("verbs/resume-running", vec![Call(vec!["resume", "{id}"])]).says(&["paused"]),
    ]
}

fn running_directly() -> Vec<Case> {
    let run = |name, options: &[&'static str]| {
        let words = [&["run", "--bundle", "{bundle}"], options, &["{id}"]].concat();
        case(name).steps(vec![Call(words), Call(vec!["state", "{id}"])])
    };
    vec![
        run("run/view", &[]),
        run("run/exit-code", &[]).script("exit 42"),
        run("run/signal", &[]).without_namespace("pid").script("kill -9 $$"),
        run("run/not-found", &[]).process(json!({"args": ["/nowhere"]})).says(&["/nowhere"]),
        run("run/not-executable", &[]).process(json!({"args": ["/etc/passwd"]})).says(&["/etc/passwd"]),
        run("run/broken-spec", &[]).merge(json!({"root": null})).says(&["root"]),
        run("run/keep", &["--keep"]).script("exit 3"),
        run("run/no-subreaper", &["--no-subreaper"]).script("exit 4"),
        run("run/hooks", &[]).script("echo ran").merge(json!({"hooks": {
            "poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "cat >/dev/null; echo poststart >>{dir}/log"]}],
            "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", "cat >/dev/null; echo poststop >>{dir}/log"]}]}}))
            .steps(vec![Call(vec!["run", "--bundle", "{bundle}", "{id}"]), Shell("cat {dir}/log")]),
        run("run/terminal-without-terminal", &[]).process(json!({"terminal": true})).script("echo ran"),
        case("run/detached").steps(vec![
            Call(vec!["run", "--detach", "--bundle", "{bundle}", "--pid-file", "{dir}/pid", "{id}"]),
            Wait,
            Call(vec!["state", "{id}"]),
            Call(vec!["delete", "{id}"]),
        ]),
        run("run/preserved-descriptors", &["--preserve-fds", "1"]).descriptors(1),
        case("run/by-working-directory").steps(vec![
            Shell("cd {bundle} && {runtime} run {id} >/dev/null; echo $?"),
        ]),
    ]
}
