//! The command line, driven as callers of runc drive it.

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::driven::{Driven, master};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::Value;

#[test]
fn run_gives_the_commands_output_and_exit_code() {
    let container = Driven::new("echo out; echo err >&2; exit 7");
    let output = container.output(&["run", "ID"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    let gone = container.fails(&["state", "ID"], 1);
    assert!(gone.contains("does not exist"), "{gone}");
}

#[test]
fn run_reads_its_input_and_ends_by_the_commands_signal() {
    let container = Driven::new("cat; kill -KILL $$");
    let mut run = container
        .command(&["run", "ID"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.take().unwrap().write_all(b"typed").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"typed");
    // The first process of a pid namespace is deaf to its own SIGKILL.
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn signals_go_on_to_a_container_in_the_foreground() {
    let container = Driven::new("trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done");
    let mut run = container
        .command(&["run", "ID"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    run.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&run),
        rustix::process::Signal::USR1,
    )
    .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(9));
}

#[test]
fn a_container_goes_through_its_life_verb_by_verb() {
    let container = Driven::new("exec sleep 1000");
    container.run(&["create", "--pid-file", "pid", "ID"]);
    let state = container.state();
    assert_eq!(state["status"], "created");
    let pid = std::fs::read_to_string(container.0.dir.join("pid")).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(state["bundle"], container.0.dir.to_str().unwrap());
    assert_eq!(state["ociVersion"], "1.2.0");
    container.run(&["start", "ID"]);
    assert_eq!(container.state()["status"], "running");
    let listed = container.run(&["list", "--format", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["id"], container.0.id.as_str());
    assert_eq!(
        container.run(&["ps", "-f", "json", "ID"]).trim(),
        format!("[{pid}]")
    );
    container.run(&["pause", "ID"]);
    assert_eq!(container.state()["status"], "paused");
    container.run(&["resume", "ID"]);
    let running = container.fails(&["delete", "ID"], 1);
    assert!(running.contains("is running"), "{running}");
    container.run(&["kill", "ID", "KILL"]);
    while container.state()["status"] != "stopped" {}
    assert_eq!(container.state()["pid"], 0);
    let stopped = container.fails(&["kill", "ID", "TERM"], 1);
    assert!(stopped.contains("container not running"), "{stopped}");
    container.run(&["delete", "ID"]);
    assert_eq!(container.run(&["list", "-q"]), "");
    container.fails(&["delete", "ID"], 1);
    container.run(&["delete", "--force", "ID"]);
}

#[test]
fn exec_gives_the_exit_code_and_takes_the_options() {
    let mut container = Driven::new("exec sleep 1000");
    container.0.spec["process"]["env"] = serde_json::json!(["PATH=/bin", "OLD=1"]);
    container.run(&["run", "-d", "ID"]);
    let script = "echo $OLD$NEW $(pwd) $(id -u) $(id -g) $(id -G); exit 5";
    let output = container.output(&[
        "exec", "--env", "NEW=2", "--cwd", "/tmp", "--user", "7:8", "-g", "9", "ID", "sh", "-c",
        script,
    ]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(output.stdout, b"12 /tmp 7 8 8 9\n");
    let missing = container.fails(&["exec", "ID", "/no/such"], 255);
    assert!(missing.contains("no such file"), "{missing}");

    let process = serde_json::json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", "exit 6"],
    });
    std::fs::write(container.0.dir.join("process.json"), process.to_string()).unwrap();
    let output = container.output(&["exec", "--process", "process.json", "ID"]);
    assert_eq!(output.status.code(), Some(6));

    let caps = [
        "exec",
        "--cap",
        "CAP_NET_RAW",
        "ID",
        "grep",
        "CapEff",
        "/proc/self/status",
    ];
    assert!(container.run(&caps).trim().ends_with("20e1"));
    container.run(&["pause", "ID"]);
    let paused = container.fails(&["exec", "ID", "true"], 255);
    assert!(paused.contains("paused"), "{paused}");
}

#[test]
fn a_detached_terminal_goes_to_the_console_socket() {
    let mut container = Driven::new("tty; stty size; read line; echo got $line");
    container.0.spec["process"]["terminal"] = true.into();
    container.0.spec["process"]["consoleSize"] = serde_json::json!({"height": 24, "width": 81});
    let refused = container.fails(&["create", "ID"], 1);
    assert!(refused.contains("--console-socket"), "{refused}");

    let listener = UnixListener::bind(container.0.dir.join("console")).unwrap();
    container.run(&["create", "--console-socket", "console", "ID"]);
    let mut master = master(&listener);
    container.run(&["start", "ID"]);
    master.write_all(b"word\n").unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert!(text.contains("24 81"), "{text}");
    assert!(text.contains("got word"), "{text}");
}

#[test]
fn preserved_descriptors_are_handed_over_and_no_others() {
    let container =
        Driven::new("cat <&3; for fd in 3 4 5; do [ -e /proc/$$/fd/$fd ] && echo has $fd; done; :");
    std::fs::write(container.0.dir.join("three"), "from three\n").unwrap();
    let joey = container.command(&["run", "--preserve-fds", "1", "ID"]);
    let line: Vec<String> = [joey.get_program()]
        .into_iter()
        .chain(joey.get_args())
        .map(|arg| arg.to_str().unwrap().to_owned())
        .collect();
    // A shell opens the descriptors, one more than is handed over.
    let script = format!("exec 3<three 4<three; exec {}", line.join(" "));
    let output = Command::new("/bin/sh")
        .current_dir(&container.0.dir)
        .args(["-c", &script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("from three\n"),
        "{text} {:?}",
        output.stderr
    );
    assert!(text.ends_with("three\nhas 3\n"), "{text}");
    let missing = container.fails(&["run", "--preserve-fds", "500", "ID"], 1);
    assert!(
        missing.contains("is not open, of the 500 from 3 on"),
        "{missing}"
    );
}

/// Where a container finds its socket, as the host sees it.
fn notify_socket(pid: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root/run/notify/notify.sock"))
}

fn hear(manager: &UnixDatagram) -> String {
    let mut message = [0; 512];
    let length = manager.recv(&mut message).unwrap();
    String::from_utf8(message[..length].to_vec()).unwrap()
}

#[test]
fn start_returns_when_the_manager_knows_that_the_container_is_ready() {
    let script = "echo $NOTIFY_SOCKET; touch /run/notify/new || echo kept; exec sleep 1000";
    let container = Driven::new(script);
    let path = container.0.dir.join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let create = container
        .command(&["create", "ID"])
        .env("NOTIFY_SOCKET", &path)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(container.0.dir.join("said")).unwrap())
        .stderr(Stdio::null())
        .status();
    assert!(create.unwrap().success());
    let pid = container.state()["pid"].to_string();
    let mut start = container
        .command(&["start", "ID"])
        .env("NOTIFY_SOCKET", &path)
        .spawn()
        .unwrap();
    let ours = UnixDatagram::unbound().unwrap();
    let socket = notify_socket(&pid);
    while ours.send_to(b"STATUS=going\n", &socket).is_err() {
        assert_eq!(start.try_wait().unwrap(), None);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(start.try_wait().unwrap(), None);
    ours.send_to(b"MAINPID=1\nREADY=1\n", &socket).unwrap();
    assert_eq!(hear(&manager), format!("READY=1\nMAINPID={pid}\n"));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(start.try_wait().unwrap(), None);
    // Receiving this without asking for its descriptor closes that.
    assert_eq!(hear(&manager), "BARRIER=1");
    assert!(start.wait().unwrap().success());
    let said = std::fs::read_to_string(container.0.dir.join("said")).unwrap();
    assert!(said.starts_with("/run/notify/notify.sock\n"), "{said}");
    assert!(said.ends_with("kept\n"), "{said}");
    // A second process is not the one to say so.
    let output = container.output(&["exec", "ID", "sh", "-c", "echo -$NOTIFY_SOCKET-"]);
    assert_eq!(output.stdout, b"--\n");
}

#[test]
fn run_stays_the_managers_service_in_the_foreground() {
    let container = Driven::new("read word; exit 4");
    let manager = UnixDatagram::bind(container.0.dir.join("manager")).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut run = container
        .command(&["run", "--pid-file", "pid", "ID"])
        .env("NOTIFY_SOCKET", container.0.dir.join("manager"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let ours = UnixDatagram::unbound().unwrap();
    let is_told = || {
        let pid = std::fs::read_to_string(container.0.dir.join("pid"));
        pid.is_ok_and(|pid| ours.send_to(b"READY=1", notify_socket(&pid)).is_ok())
    };
    while !is_told() {
        assert_eq!(run.try_wait().unwrap(), None);
    }
    let expected = format!("READY=1\nMAINPID={}\n", run.id());
    assert_eq!(hear(&manager), expected);
    run.stdin.take().unwrap().write_all(b"word\n").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(4));
}

#[test]
fn a_manager_that_is_gone_or_a_container_that_is_never_ready_holds_nobody_up() {
    let container = Driven::new("exit 3");
    let run = container
        .command(&["run", "ID"])
        .env("NOTIFY_SOCKET", "/no/such/socket")
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(3));
    let warning = String::from_utf8(run.stderr).unwrap();
    assert!(warning.contains("/no/such/socket"), "{warning}");
    let path = container.0.dir.join("manager");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let run = container
        .command(&["run", "--detach", "ID"])
        .env("NOTIFY_SOCKET", &path)
        .status();
    assert!(run.unwrap().success());
}

#[test]
fn nobody_can_write_to_the_program_that_waits_in_a_container() {
    let container = Driven::new("true");
    // A copy of its own: what others run cannot be written to anyway.
    let copy = container.0.dir.join("joey");
    // By another process: one of this that forks meanwhile would keep it open for writing.
    let mut cp = Command::new("cp");
    cp.arg(env!("CARGO_BIN_EXE_joey")).arg(&copy);
    assert!(cp.status().unwrap().success());
    let mut create = Command::new(&copy);
    create.args(container.command(&["create", "ID"]).get_args());
    let create = create.current_dir(&container.0.dir).stdin(Stdio::null());
    assert!(create.stdout(Stdio::null()).status().unwrap().success());
    let pid = container.state()["pid"].to_string();
    let held = openat(CWD, format!("/proc/{pid}/exe"), OFlags::PATH, Mode::empty()).unwrap();
    container.run(&["kill", "ID", "KILL"]);
    while container.state()["status"] != "stopped" {}
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    let error = std::fs::OpenOptions::new()
        .write(true)
        .open(again)
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // Nor can it be made so again.
    let writable = runtime::Attributes {
        clear: libc::MOUNT_ATTR_RDONLY,
        ..runtime::Attributes::default()
    };
    runtime::set_attributes(held.as_fd(), writable, false, None).unwrap_err();
}

#[test]
fn a_failed_create_leaves_nothing_to_delete() {
    let mut container = Driven::new("true");
    container.0.spec["process"]["args"] = serde_json::json!(["/no/such"]);
    let missing = container.fails(&["create", "ID"], 1);
    assert!(missing.contains("no such file or directory"), "{missing}");
    container.fails(&["state", "ID"], 1);
    // A pid file that cannot be written is found out when the container is there already.
    container.0.spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    let file = container.fails(&["create", "--pid-file", "no/such/dir", "ID"], 1);
    assert!(file.contains("write the pid file"), "{file}");
    container.fails(&["state", "ID"], 1);
}

#[test]
fn a_container_whose_maker_is_killed_can_be_deleted() {
    let mut container = Driven::new("true");
    container.0.spec["hooks"] = serde_json::json!({"createRuntime": [
        {"path": "/bin/sh", "args": ["sh", "-c", "kill -KILL $PPID; sleep 0.1"]}
    ]});
    let output = container.output(&["create", "ID"]);
    assert_eq!(output.status.code(), None);
    assert_eq!(container.state()["status"], "stopped");
    container.run(&["delete", "ID"]);
    assert_eq!(
        common::cgroups_of(&container.0.id),
        Vec::<std::path::PathBuf>::new()
    );
}

#[test]
fn flags_are_those_of_go() {
    let container = Driven::new("exit 3");
    let line = ["-debug=false", "run", "--detach=false", "-keep=true", "ID"];
    assert_eq!(container.output(&line).status.code(), Some(3));
    assert_eq!(container.state()["status"], "stopped");
    let refused = container.fails(&["delete", "--force=maybe", "ID"], 1);
    assert!(refused.contains("maybe"), "{refused}");
    container.run(&["delete", "--force=true", "ID"]);
}

#[test]
fn errors_are_logged_as_json_for_callers() {
    let container = Driven::new("true");
    container.fails(
        &["--log", "log.json", "--log-format", "json", "start", "ID"],
        1,
    );
    let text = std::fs::read_to_string(container.0.dir.join("log.json")).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(
        line["msg"],
        format!("container {} does not exist", container.0.id)
    );
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn the_example_spec_runs() {
    let container = Driven::new("true");
    container.run(&["spec", "-b", "root"]);
    let text = std::fs::read_to_string(container.0.dir.join("root/config.json")).unwrap();
    let mut container = container;
    container.0.spec = serde_json::from_str(&text).unwrap();
    container.0.spec["process"]["terminal"] = false.into();
    container.0.spec["process"]["args"] = serde_json::json!(["/bin/hostname"]);
    assert_eq!(container.run(&["run", "ID"]), "joey\n");
}

#[test]
fn statistics_and_limits_have_runcs_form() {
    let container = Driven::new("exec sleep 1000");
    container.run(&["run", "-d", "ID"]);
    let event: Value = serde_json::from_str(&container.run(&["events", "--stats", "ID"])).unwrap();
    assert_eq!(event["type"], "stats");
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    let features: Value = serde_json::from_str(&container.run(&["features"])).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    if !common::has_controller("pids") {
        return;
    }
    container.run(&["update", "--pids-limit", "77", "ID"]);
    let event: Value = serde_json::from_str(&container.run(&["events", "--stats", "ID"])).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 77);
}

/// The user that tests of callers without rights are.
const ORDINARY: &str = "1000";

#[test]
fn an_ordinary_user_runs_a_container() {
    let container = Driven::new("true");
    let dir = &container.0.dir;
    let home = dir.join("root");
    let status = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_joey"))
        .arg(&home)
        .status();
    assert!(status.unwrap().success());
    std::fs::rename(container.0.rootfs(), home.join("rootfs")).unwrap();
    let owned = Command::new("chown")
        .args(["-R", "1000:1000"])
        .arg(dir)
        .status();
    assert!(owned.unwrap().success());
    let run_by = |by: &[&str], args: &[&str]| -> Output {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", ORDINARY, "--regid", ORDINARY, "--clear-groups"]);
        command.args(by).arg(home.join("joey")).args(args);
        command.current_dir(&home).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", &home).env("USER", "ann");
        // Not pipes, which a container in the background would keep open.
        let path = home.join("output");
        let file = std::fs::File::create(&path).unwrap();
        let status = command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .status()
            .unwrap();
        let stdout = std::fs::read(&path).unwrap();
        eprintln!("{args:?}: {status}: {}", String::from_utf8_lossy(&stdout));
        Output {
            status,
            stdout,
            stderr: Vec::new(),
        }
    };
    let run = |args: &[&str]| run_by(&[], args);
    assert!(run(&["spec", "--rootless"]).status.success());
    let config = home.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    let script =
        "id -u; cat /proc/self/uid_map; mount -t tmpfs none /dev/shm; [ -w /etc ]; echo $?";
    spec["process"]["args"] = serde_json::json!(["/bin/sh", "-c", script]);
    spec["process"]["oomScoreAdj"] = (-500).into();
    std::fs::write(&config, spec.to_string()).unwrap();
    let output = run(&["run", "ID"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..4], ["0", "0", ORDINARY, "1"], "{text}");

    spec["process"]["args"] = serde_json::json!(["/bin/sleep", "1000"]);
    std::fs::write(&config, spec.to_string()).unwrap();
    assert!(run(&["run", "--detach", "ID"]).status.success());
    let output = run(&["exec", "ID", "sh", "-c", "id -u; hostname; exit 4"]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(output.stdout, b"0\njoey\n");
    assert!(!run(&["delete", "ID"]).status.success());
    assert!(run(&["delete", "--force", "ID"]).status.success());
    assert_eq!(std::fs::read_dir(home.join("joey-oci")).unwrap().count(), 0);

    // A limit without a cgroup is none.
    spec["linux"]["resources"] = serde_json::json!({"memory": {"limit": 67108864}});
    std::fs::write(&config, spec.to_string()).unwrap();
    let output = run(&["run", "ID"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("linux.resources.memory.limit: there is no cgroup for it"),
        "{text}"
    );

    // And one that is asked for by name is meant.
    spec["linux"]["resources"] = serde_json::json!({});
    spec["linux"]["cgroupsPath"] = "/joey-named".into();
    std::fs::write(&config, spec.to_string()).unwrap();
    let output = run(&["run", "ID"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("/joey-named: Permission denied"), "{text}");

    // As tools for rootless containers do it: root, of a user namespace of their own.
    let own = serde_json::json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    spec["linux"]["uidMappings"] = own.clone();
    spec["linux"]["gidMappings"] = own;
    spec["linux"]["cgroupsPath"] = "".into();
    spec["process"]["args"] = serde_json::json!(["/bin/sh", "-c", "cat /proc/self/uid_map"]);
    spec["process"]["oomScoreAdj"] = 500.into();
    std::fs::write(&config, spec.to_string()).unwrap();
    let root_of = ["unshare", "--user", "--map-root-user", "--mount"];
    let output = run_by(&root_of, &["run", "ID"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "1"]);
    assert_eq!(std::fs::read_dir(home.join("joey-oci")).unwrap().count(), 0);
}
