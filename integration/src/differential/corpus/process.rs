//! The process: command, environment, directory, limits and scheduling.

use serde_json::json;

use crate::differential::case::{Case, case};

pub fn cases() -> Vec<Case> {
    [command(), surroundings(), limits(), scheduling()].concat()
}

fn command() -> Vec<Case> {
    vec![
        case("process/args-empty")
            .process(json!({"args": []}))
            .says(&["args"]),
        case("process/args-missing")
            .process(json!({"args": null}))
            .says(&["args"]),
        case("process/args-not-found")
            .process(json!({"args": ["/nowhere"]}))
            .says(&["/nowhere"]),
        case("process/args-not-in-path")
            .process(json!({"args": ["nowhere"]}))
            .says(&["nowhere"]),
        case("process/args-in-path").process(json!({"args": ["echo", "found"]})),
        case("process/args-relative").process(json!({"args": ["bin/echo", "found"]})),
        case("process/args-relative-to-cwd")
            .process(json!({"args": ["./echo", "found"], "cwd": "/bin"})),
        case("process/args-empty-path")
            .process(json!({"args": ["echo", "found"], "env": ["PATH="]}))
            .says(&["echo"]),
        case("process/args-without-path")
            .process(json!({"args": ["echo", "found"], "env": []}))
            .says(&["echo"]),
        case("process/args-not-executable")
            .process(json!({"args": ["/etc/passwd"]}))
            .says(&["/etc/passwd"]),
        case("process/args-directory")
            .process(json!({"args": ["/etc"]}))
            .says(&["/etc"]),
        case("process/args-empty-word")
            .process(json!({"args": [""]}))
            .says(&["args", "exec", "empty", "\"\""]),
        case("process/args-not-a-program")
            .host(
                "printf 'no program' > {rootfs}/odd; chmod 755 {rootfs}/odd",
                "",
            )
            .process(json!({"args": ["/odd"]}))
            .says(&["/odd"]),
        case("process/args-without-interpreter")
            .host(
                "printf '#!/nowhere\\n' > {rootfs}/odd; chmod 755 {rootfs}/odd",
                "",
            )
            .process(json!({"args": ["/odd"]}))
            .says(&["/odd"]),
        case("process/args-link-cycle")
            .host("ln -s odd {rootfs}/odd", "")
            .process(json!({"args": ["/odd"]}))
            .says(&["/odd"]),
        case("process/args-with-nul")
            .process(json!({"args": ["/bin/echo", "a\u{0}b"]}))
            .says(&["nul", "args", "argument"]),
        case("process/path-skips-what-is-no-program")
            .host("mkdir {rootfs}/first; printf x > {rootfs}/first/echo", "")
            .process(json!({"args": ["echo", "found"], "env": ["PATH=/first:/bin"]})),
        case("process/exit-code").script("exit 42"),
        case("process/ends-by-signal")
            .without_namespace("pid")
            .script("kill -9 $$"),
        case("process/cannot-kill-itself").script("kill -9 $$; echo alive"),
        case("process/command-line")
            .process(json!({"args": ["/probe"], "commandLine": "/bin/false"})),
    ]
}

fn surroundings() -> Vec<Case> {
    vec![
        case("process/env-empty").process(json!({"env": []})),
        case("process/env-missing").process(json!({"env": null})),
        case("process/env-twice").process(json!({"env": ["PATH=/bin", "A=1", "A=2"]})),
        case("process/env-without-value").process(json!({"env": ["PATH=/bin", "A", "B="]})),
        case("process/env-without-name").process(json!({"env": ["PATH=/bin", "=x"]})),
        case("process/env-empty-word").process(json!({"env": ["PATH=/bin", ""]})),
        case("process/env-with-equals")
            .process(json!({"env": ["PATH=/bin", "A=b=c", "B=two words"]})),
        case("process/env-with-nul")
            .process(json!({"env": ["PATH=/bin", "A=a\u{0}b"]}))
            .says(&["nul", "env"]),
        case("process/env-home").process(json!({"env": ["PATH=/bin", "HOME=/elsewhere"]})),
        case("process/env-home-empty").process(json!({"env": ["PATH=/bin", "HOME="]})),
        case("process/env-home-of-user").process(json!({"user": {"uid": 1000, "gid": 1000}})),
        case("process/cwd").process(json!({"cwd": "/tmp"})),
        case("process/cwd-missing").process(json!({"cwd": "/made/by/runtime"})),
        case("process/cwd-link")
            .host("ln -s /etc {rootfs}/link", "")
            .process(json!({"cwd": "/link"})),
        case("process/cwd-link-outside")
            .host("mkdir {dir}/outside; ln -s {dir}/outside {rootfs}/link", "")
            .process(json!({"cwd": "/link"}))
            .says(&["cwd", "chdir", "mkdir", "directory"]),
        case("process/cwd-file")
            .process(json!({"cwd": "/etc/passwd"}))
            .says(&["/etc/passwd"]),
        case("process/cwd-relative")
            .process(json!({"cwd": "tmp"}))
            .says(&["cwd"]),
        case("process/cwd-empty")
            .process(json!({"cwd": ""}))
            .says(&["cwd"]),
        case("process/cwd-with-dots").process(json!({"cwd": "/tmp/../etc/."})),
        case("process/cwd-denied")
            .host("mkdir {rootfs}/closed; chmod 700 {rootfs}/closed", "")
            .process(json!({"cwd": "/closed", "user": {"uid": 1000, "gid": 1000}}))
            .says(&["cwd", "chdir", "/closed"]),
        case("process/cwd-of-the-users-own")
            .host(
                "mkdir {rootfs}/own; chown 1000 {rootfs}/own; chmod 700 {rootfs}/own",
                "",
            )
            .process(json!({"cwd": "/own", "user": {"uid": 1000, "gid": 1000},
                "capabilities": {"bounding": [], "effective": [], "permitted": []}})),
        case("process/umask").process(json!({"user": {"umask": 0o77}})),
        case("process/umask-zero").process(json!({"user": {"umask": 0}})),
        case("process/hostname-missing").merge(json!({"hostname": null})),
        case("process/hostname-long")
            .merge(json!({"hostname": "a".repeat(65)}))
            .says(&["hostname", "host name"]),
        case("process/domainname").merge(json!({"domainname": "example.org"})),
        case("process/hostname-without-uts")
            .without_namespace("uts")
            .says(&["hostname", "uts"]),
        case("process/domainname-without-uts")
            .merge(json!({"domainname": "example.org", "hostname": null}))
            .without_namespace("uts")
            .says(&["domainname", "uts"]),
        case("process/preserved-descriptors")
            .descriptors(2)
            .steps(preserving("2")),
        case("process/fewer-preserved-descriptors")
            .descriptors(3)
            .steps(preserving("1")),
        case("process/unpreserved-descriptors").descriptors(2),
        case("process/missing-descriptors").steps(preserving("4")),
        case("process/listen-fds")
            .descriptors(1)
            .variable("LISTEN_FDS", "1"),
        case("process/sysctl").linux(json!({"sysctl": {
            "net.core.somaxconn": "321", "kernel.shmmax": "65536", "fs.mqueue.msg_max": "11"}})),
        case("process/sysctl-with-slashes")
            .linux(json!({"sysctl": {"net/ipv4/conf/lo/forwarding": "1"}})),
        case("process/sysctl-domainname")
            .linux(json!({"sysctl": {"kernel.domainname": "example.org"}})),
        case("process/sysctl-hostname")
            .linux(json!({"sysctl": {"kernel.hostname": "other"}}))
            .says(&["kernel.hostname"]),
        case("process/sysctl-of-the-host")
            .linux(json!({"sysctl": {"vm.swappiness": "10"}}))
            .says(&["vm.swappiness"]),
        case("process/sysctl-unknown")
            .linux(json!({"sysctl": {"net.nowhere": "1"}}))
            .says(&["net.nowhere", "net/nowhere"]),
        case("process/sysctl-bad-value")
            .linux(json!({"sysctl": {"net.core.somaxconn": "many"}}))
            .says(&["somaxconn"]),
        case("process/sysctl-outside")
            .linux(json!({"sysctl": {"net.ipv4/../../../../etc/passwd": "x"}}))
            .says(&["sysctl", "passwd"]),
        case("process/sysctl-without-ipc")
            .without_namespace("ipc")
            .linux(json!({"sysctl": {"kernel.shmmax": "65536"}}))
            .says(&["kernel.shmmax"]),
        case("process/sysctl-without-network")
            .without_namespace("network")
            .linux(json!({"sysctl": {"net.core.somaxconn": "321"}}))
            .says(&["net.core.somaxconn"]),
    ]
}

fn preserving(count: &'static str) -> Vec<crate::differential::case::Step> {
    use crate::differential::case::Step;
    vec![
        Step::Create(vec!["--preserve-fds", count]),
        Step::Call(vec!["start", "{id}"]),
        Step::Wait,
        Step::Call(vec!["delete", "{id}"]),
    ]
}

fn limits() -> Vec<Case> {
    let limit = |kind: &str, soft: u64, hard: u64| json!({"rlimits": [{"type": kind, "soft": soft, "hard": hard}]});
    vec![
        case("process/rlimits").process(json!({"rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_NPROC", "soft": 1000, "hard": 2000},
            {"type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 65536},
            {"type": "RLIMIT_STACK", "soft": 8388608, "hard": u64::MAX},
        ]})),
        case("process/rlimits-missing").process(json!({"rlimits": null})),
        case("process/rlimit-twice")
            .process(json!({"rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_NOFILE", "soft": 300, "hard": 400},
            ]}))
            .says(&["rlimit"]),
        case("process/rlimit-unknown")
            .process(limit("RLIMIT_NOTHING", 1, 1))
            .says(&["rlimit_nothing"]),
        case("process/rlimit-lower-case")
            .process(limit("rlimit_nofile", 1, 1))
            .says(&["rlimit_nofile"]),
        case("process/rlimit-soft-above-hard")
            .process(limit("RLIMIT_NOFILE", 200, 100))
            .says(&["rlimit", "nofile"]),
        case("process/rlimit-too-high")
            .process(limit("RLIMIT_NOFILE", u64::MAX, u64::MAX))
            .says(&["rlimit", "nofile"]),
        case("process/rlimit-rttime").process(limit("RLIMIT_RTTIME", 1000, 2000)),
        case("process/oom-score").process(json!({"oomScoreAdj": 500})),
        case("process/oom-score-zero").process(json!({"oomScoreAdj": 0})),
        case("process/oom-score-lowest").process(json!({"oomScoreAdj": -1000})),
        case("process/oom-score-too-high")
            .process(json!({"oomScoreAdj": 1001}))
            .says(&["oom"]),
    ]
}

fn scheduling() -> Vec<Case> {
    let policy = |value: serde_json::Value| json!({ "scheduler": value });
    vec![
        case("process/scheduler-batch").process(policy(json!({"policy": "SCHED_BATCH", "nice": 5}))),
        case("process/scheduler-other").process(policy(json!({"policy": "SCHED_OTHER", "nice": -5}))),
        case("process/scheduler-idle").process(policy(json!({"policy": "SCHED_IDLE"}))),
        case("process/scheduler-fifo").process(policy(json!({"policy": "SCHED_FIFO", "priority": 10}))),
        case("process/scheduler-rr-reset")
            .process(policy(json!({"policy": "SCHED_RR", "priority": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}))),
        case("process/scheduler-deadline").process(policy(json!({
            "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 10_000_000, "period": 10_000_000}))),
        case("process/scheduler-unknown").process(policy(json!({"policy": "SCHED_NEVER"}))).says(&["sched"]),
        case("process/scheduler-empty").process(policy(json!({"nice": 1}))).says(&["sched", "policy"]),
        case("process/scheduler-nice-too-high")
            .process(policy(json!({"policy": "SCHED_OTHER", "nice": 20}))).says(&["nice"]),
        case("process/scheduler-priority-of-other")
            .process(policy(json!({"policy": "SCHED_OTHER", "priority": 5}))).says(&["priority"]),
        case("process/scheduler-deadline-of-fifo")
            .process(policy(json!({"policy": "SCHED_FIFO", "priority": 5, "deadline": 10_000_000})))
            .says(&["deadline"]),
        case("process/scheduler-unknown-flag")
            .process(policy(json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NEVER"]})))
            .says(&["flag"]),
        case("process/ioprio-best-effort")
            .process(json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}})),
        case("process/ioprio-idle")
            .process(json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}})),
        case("process/ioprio-realtime")
            .process(json!({"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 1}})),
        case("process/ioprio-unknown")
            .process(json!({"ioPriority": {"class": "IOPRIO_CLASS_NEVER", "priority": 0}}))
            .says(&["iopri"]),
        case("process/ioprio-too-high")
            .process(json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}))
            .says(&["iopri", "priority"]),
        case("process/personality").linux(json!({"personality": {"domain": "LINUX32"}})),
        case("process/personality-default").linux(json!({"personality": {"domain": "LINUX"}})),
        case("process/personality-unknown")
            .linux(json!({"personality": {"domain": "LINUX16"}}))
            .says(&["personality", "domain"]),
        case("process/personality-flags")
            .linux(json!({"personality": {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}}))
            .says(&["flag"]),
        case("process/memory-policy")
            .linux(json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}})),
        case("process/cpu-affinity")
            .process(json!({"execCPUAffinity": {"initial": "0", "final": "0"}})),
    ]
}
