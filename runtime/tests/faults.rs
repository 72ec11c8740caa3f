//! A fault at each step of a container's life: every system call of `joey run` fails once, and once
//! is the last that it makes. Whatever happens, either nothing is left, or the container is known
//! and `delete` removes the rest. strace injects the faults; the test ends where it is missing.

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::Bundle;
use serde_json::json;

/// How many tests share the work of a kind, side by side.
const SHARES: usize = 4;

/// What befalls a system call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails for want of memory.
    Error,
    /// The process is killed on it.
    Kill,
}

/// Runs the container with a fault at every process's call number `number`. False when no process
/// made so many calls.
fn strike(bundle: &Bundle, fault: Fault, number: usize) -> bool {
    let root = bundle.dir.join("root");
    let trace = bundle.dir.join("trace");
    let what = match fault {
        Fault::Error => "error=ENOMEM",
        Fault::Kill => "signal=KILL",
    };
    let joey = env!("CARGO_BIN_EXE_joey");
    // Without memory of its own a program cannot say anything: that is the kill's part.
    let calls = "!mmap,brk,munmap,mprotect,exit_group,rt_sigreturn,execve";
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .args(["-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:{what}:when={number}")])
        .arg(joey)
        .arg("--root")
        .arg(&root)
        .args(["run", "--bundle"])
        .arg(&bundle.dir)
        .arg(&bundle.id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = loop {
        if let Some(status) = strace.try_wait().unwrap() {
            break status;
        }
        // A container whose maker has died waits for its start, and strace for that.
        let text = std::fs::read_to_string(&trace).unwrap_or_default();
        let first = text.split_whitespace().next().unwrap_or("self");
        if !Path::new("/proc").join(first).exists() {
            delete(bundle);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let trace = std::fs::read_to_string(trace).unwrap();
    let struck = match fault {
        Fault::Error => trace.contains("(INJECTED)"),
        Fault::Kill => trace.contains("+++ killed by SIGKILL"),
    };
    let known = root.join(&bundle.id).exists();
    if known {
        // By its maker's death, or by a fault in its removal.
        let deleted = delete(bundle);
        assert!(
            deleted.status.success(),
            "call {number}: {deleted:?}\n{trace}"
        );
    }
    let context = || format!("call {number}, {status}, known: {known}\n{trace}");
    assert!(!root.join(&bundle.id).exists(), "{}", context());
    assert_eq!(
        common::cgroups_of(&bundle.id),
        Vec::<std::path::PathBuf>::new(),
        "{}",
        context()
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&bundle.id), "{}", context());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        assert!(!line.contains(&bundle.id), "{line} is left\n{}", context());
    }
    struck
}

fn delete(bundle: &Bundle) -> Output {
    Command::new(env!("CARGO_BIN_EXE_joey"))
        .arg("--root")
        .arg(bundle.dir.join("root"))
        .args(["delete", "--force", &bundle.id])
        .output()
        .unwrap()
}

/// Strikes each `SHARES`th call, from the first of this share on.
fn strike_all(fault: Fault, share: usize) {
    if !Path::new("/usr/bin/strace").exists() {
        eprintln!("not tested here: strace is missing");
        return;
    }
    let mut bundle = Bundle::new("true");
    // Mounted on the host, so that mounts can be left.
    bundle.without_namespace("mount");
    std::fs::create_dir(bundle.dir.join("root")).unwrap();
    bundle.spec["hooks"] = json!({"createRuntime": [{"path": "/bin/true"}]});
    std::fs::write(bundle.dir.join("config.json"), bundle.spec.to_string()).unwrap();
    let mut struck = 0;
    for number in (1 + share..).step_by(SHARES) {
        if !strike(&bundle, fault, number) {
            break;
        }
        struck += 1;
    }
    assert!(struck > 20, "only {struck} calls were struck");
}

macro_rules! shares {
    ($($name:ident: $fault:expr, $share:expr;)*) => {
        $(
            #[test]
            fn $name() {
                strike_all($fault, $share);
            }
        )*
    };
}

shares! {
    failing_calls_of_the_first_share: Fault::Error, 0;
    failing_calls_of_the_second_share: Fault::Error, 1;
    failing_calls_of_the_third_share: Fault::Error, 2;
    failing_calls_of_the_fourth_share: Fault::Error, 3;
    deaths_of_the_first_share: Fault::Kill, 0;
    deaths_of_the_second_share: Fault::Kill, 1;
    deaths_of_the_third_share: Fault::Kill, 2;
    deaths_of_the_fourth_share: Fault::Kill, 3;
}
