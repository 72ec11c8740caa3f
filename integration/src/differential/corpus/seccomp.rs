//! Seccomp: actions, comparisons of arguments, architectures, and filters that are wrong.

use serde_json::{Value, json};

use crate::differential::case::{Case, case};

fn filter(default: &str, calls: Value) -> Value {
    json!({"seccomp": {"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": calls}})
}

/// Everything is allowed but one call.
fn one(action: &str, name: &str) -> Value {
    filter(
        "SCMP_ACT_ALLOW",
        json!([{"names": [name], "action": action}]),
    )
}

/// kill(2) fails when its argument compares so.
fn compared(arguments: Value) -> Value {
    filter(
        "SCMP_ACT_ALLOW",
        json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": arguments}]),
    )
}

fn with(mut filter: Value, member: &str, value: Value) -> Value {
    filter["seccomp"][member] = value;
    filter
}

pub fn cases() -> Vec<Case> {
    [actions(), arguments(), broken()].concat()
}

fn actions() -> Vec<Case> {
    vec![
        case("seccomp/errno").linux(one("SCMP_ACT_ERRNO", "mkdir")),
        case("seccomp/errno-named").linux(filter("SCMP_ACT_ALLOW",
            json!([{"names": ["mkdir", "unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]))),
        case("seccomp/errno-zero").linux(filter("SCMP_ACT_ALLOW",
            json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}]))),
        case("seccomp/errno-of-allow").linux(filter("SCMP_ACT_ALLOW",
            json!([{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "errnoRet": 5}]))),
        case("seccomp/kill").linux(one("SCMP_ACT_KILL", "mkdir")).script("mkdir /x; echo $?"),
        case("seccomp/kill-process").linux(one("SCMP_ACT_KILL_PROCESS", "mkdir")).script("mkdir /x; echo $?"),
        case("seccomp/kill-thread").linux(one("SCMP_ACT_KILL_THREAD", "mkdir")).script("mkdir /x; echo $?"),
        case("seccomp/trap").linux(one("SCMP_ACT_TRAP", "mkdir")).script("mkdir /x; echo $?"),
        case("seccomp/trace").linux(one("SCMP_ACT_TRACE", "mkdir")),
        case("seccomp/log").linux(one("SCMP_ACT_LOG", "mkdir")),
        case("seccomp/notify-without-listener").linux(one("SCMP_ACT_NOTIFY", "mkdir")).says(&["seccomp", "listener"]),
        case("seccomp/notify-with-missing-listener")
            .linux(with(one("SCMP_ACT_NOTIFY", "mkdir"), "listenerPath", json!("{dir}/nowhere")))
            .says(&["seccomp", "listener", "nowhere"]),
        case("seccomp/default-errno").linux(filter("SCMP_ACT_ERRNO", json!([{
            "names": ["execve", "exit_group", "brk", "mmap", "munmap", "write", "read", "arch_prctl",
                "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink", "getrandom", "mprotect",
                "uname", "getuid", "getpid", "getppid", "rt_sigaction", "rt_sigprocmask", "ioctl", "fstat",
                "newfstatat", "getcwd", "exit", "futex", "close", "capget", "prctl", "fcntl", "openat", "geteuid",
                "getgid", "getegid", "readlinkat", "writev", "chdir", "statx", "faccessat2", "fstatfs", "statfs",
                "getdents64", "epoll_ctl", "nanosleep", "clock_nanosleep", "tgkill", "rt_sigreturn", "sigaltstack",
                "getppid", "pipe2", "fork", "clone", "clone3", "vfork", "wait4", "dup2", "dup3", "access", "lseek",
                "pread64", "stat", "lstat", "open", "sched_yield", "gettid", "madvise", "getsockopt"],
            "action": "SCMP_ACT_ALLOW"}])))
            .script("echo ran; mkdir /x"),
        case("seccomp/new-privileges").process(json!({"noNewPrivileges": false})).linux(one("SCMP_ACT_ERRNO", "mkdir")),
        case("seccomp/new-privileges-of-a-user")
            .process(json!({"noNewPrivileges": false, "user": {"uid": 1000, "gid": 1000}}))
            .linux(one("SCMP_ACT_ERRNO", "mkdir")),
        case("seccomp/without-calls").linux(json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}})),
        case("seccomp/several-architectures").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "architectures",
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]))),
        case("seccomp/foreign-architectures").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "architectures",
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]))),
        case("seccomp/no-architectures").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "architectures", json!([]))),
        case("seccomp/without-the-own-architecture").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "architectures",
            json!(["SCMP_ARCH_AARCH64"]))),
        case("seccomp/flag-log").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "flags", json!(["SECCOMP_FILTER_FLAG_LOG"]))),
        case("seccomp/flag-tsync").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "flags", json!(["SECCOMP_FILTER_FLAG_TSYNC"]))),
        case("seccomp/flag-spec-allow").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "flags", json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]))),
        case("seccomp/no-flags").linux(with(one("SCMP_ACT_ERRNO", "mkdir"), "flags", json!([]))),
    ]
}

fn arguments() -> Vec<Case> {
    // The probe sends signal 0 to itself: argument 1 is 0.
    let one = |operator: &str, value: u64| {
        compared(json!([{"index": 1, "value": value, "op": operator}]))
    };
    vec![
        case("seccomp/argument-equal").linux(one("SCMP_CMP_EQ", 0)),
        case("seccomp/argument-equal-not").linux(one("SCMP_CMP_EQ", 1)),
        case("seccomp/argument-not-equal").linux(one("SCMP_CMP_NE", 1)),
        case("seccomp/argument-less").linux(one("SCMP_CMP_LT", 1)),
        case("seccomp/argument-less-equal").linux(one("SCMP_CMP_LE", 0)),
        case("seccomp/argument-greater").linux(one("SCMP_CMP_GT", 0)),
        case("seccomp/argument-greater-equal").linux(one("SCMP_CMP_GE", 0)),
        case("seccomp/argument-masked").linux(compared(json!([
            {"index": 1, "value": 0xf0, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]))),
        case("seccomp/argument-wide").linux(one("SCMP_CMP_LT", 1 << 40)),
        case("seccomp/arguments-all-must-hold").linux(compared(json!([
            {"index": 0, "value": 0, "op": "SCMP_CMP_GT"}, {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]))),
        case("seccomp/argument-twice").linux(compared(json!([
            {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]))),
        case("seccomp/rules-of-one-call").linux(filter("SCMP_ACT_ALLOW", json!([
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": [{"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 8, "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_LE"}]},
        ]))),
        case("seccomp/rule-and-its-opposite").linux(filter("SCMP_ACT_ALLOW", json!([
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW"},
        ]))),
        case("seccomp/argument-of-clone").linux(filter("SCMP_ACT_ALLOW", json!([
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 2_114_060_288_u64, "valueTwo": 2_114_060_288_u64, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]))),
    ]
}

fn broken() -> Vec<Case> {
    vec![
        case("seccomp/unknown-call").linux(filter(
            "SCMP_ACT_ALLOW",
            json!([
            {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO"}]),
        )),
        case("seccomp/unknown-action")
            .linux(one("SCMP_ACT_SCOLD", "mkdir"))
            .says(&["scmp_act_scold", "action"]),
        case("seccomp/unknown-default")
            .linux(filter("SCMP_ACT_SCOLD", json!([])))
            .says(&["scmp_act_scold", "action"]),
        case("seccomp/without-default")
            .linux(json!({"seccomp": {"syscalls": []}}))
            .says(&["action", "seccomp"]),
        case("seccomp/empty")
            .linux(json!({"seccomp": {}}))
            .says(&["action", "seccomp"]),
        case("seccomp/unknown-architecture")
            .linux(with(
                one("SCMP_ACT_ERRNO", "mkdir"),
                "architectures",
                json!(["SCMP_ARCH_ABACUS"]),
            ))
            .says(&["scmp_arch_abacus", "arch"]),
        case("seccomp/unknown-operator")
            .linux(compared(
                json!([{"index": 1, "value": 0, "op": "SCMP_CMP_ALMOST"}]),
            ))
            .says(&["scmp_cmp_almost", "operator"]),
        case("seccomp/unknown-flag")
            .linux(with(
                one("SCMP_ACT_ERRNO", "mkdir"),
                "flags",
                json!(["SECCOMP_FILTER_FLAG_NEVER"]),
            ))
            .says(&["seccomp_filter_flag_never", "flag"]),
        case("seccomp/argument-index")
            .linux(compared(
                json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]),
            ))
            .says(&["index", "arg", "seccomp"]),
        case("seccomp/without-names")
            .linux(filter(
                "SCMP_ACT_ALLOW",
                json!([{"names": [], "action": "SCMP_ACT_ERRNO"}]),
            ))
            .says(&["name"]),
        case("seccomp/without-action")
            .linux(filter("SCMP_ACT_ALLOW", json!([{"names": ["mkdir"]}])))
            .says(&["action"]),
        case("seccomp/without-operator")
            .linux(compared(json!([{"index": 1, "value": 0}])))
            .says(&["op"]),
        case("seccomp/notify-of-write")
            .linux(with(
                one("SCMP_ACT_NOTIFY", "write"),
                "listenerPath",
                json!("{dir}/nowhere"),
            ))
            .says(&["write", "notify"]),
        case("seccomp/errno-too-high").linux(filter(
            "SCMP_ACT_ALLOW",
            json!([{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000}]),
        )),
        case("seccomp/kill-execve").linux(one("SCMP_ACT_KILL_PROCESS", "execve")),
        case("seccomp/listener-unused").linux(with(
            one("SCMP_ACT_ERRNO", "mkdir"),
            "listenerPath",
            json!("{dir}/nowhere"),
        )),
    ]
}
