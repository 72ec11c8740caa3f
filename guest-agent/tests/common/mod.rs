//! Tests that need a machine of their own: each runs as PID 1 of fresh namespaces,
//! alone in its process, as root.

use std::process::Command;

/// Set in the process that runs the body of a test.
const INSIDE: &str = "JOEY_TEST_INSIDE";

/// Runs `body` as PID 1 of new mount, network, UTS, IPC and pid namespaces, with proc,
/// sysfs and cgroup2 of its own. `name` is the path of the calling test function.
/// Without root there are no namespaces, and the test says so and passes.
pub fn isolated(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        run("mount", &["-t", "sysfs", "sysfs", "/sys"]);
        run("mount", &["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"]);
        return body();
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("{name}: skipped, it needs root");
        return;
    }
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespaces");
}

/// Runs a command that must succeed; answers with what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {err}");
    String::from_utf8(out).unwrap()
}
