//! `checkpoint` and `restore`. What needs criu is tested where there is one that this kernel has
//! enough for.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::driven::{Driven, master};
use serde_json::json;

/// A script that counts in a file.
const COUNT: &str = "while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; \
    sleep 0.02; done";

/// Whether criu works; says so when it does not, and the test ends there.
fn has_criu() -> bool {
    let works = Command::new("criu").arg("check").output();
    let works = works.is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("not tested here: there is no criu that works with this kernel");
    }
    works
}

/// A container for criu, which without iptables cannot keep packets away meanwhile.
fn container(script: &str) -> Driven {
    let mut container = Driven::new(script);
    let path = std::env::var_os("PATH").unwrap();
    let has_iptables =
        std::env::split_paths(&path).any(|dir| dir.join("iptables-restore").exists());
    if !has_iptables {
        let config = container.0.dir.join("criu.conf");
        std::fs::write(&config, "network-lock skip\n").unwrap();
        container.0.spec["annotations"] = json!({"org.criu.config": config});
    }
    container
}

/// Starts it in the background, without streams of the host.
fn start(container: &Driven) {
    let mut run = container.command(&["run", "-d", "ID"]);
    run.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(run.status().unwrap().success());
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn count(container: &Driven) -> u32 {
    let text = std::fs::read_to_string(container.0.rootfs().join("tmp/count"));
    text.map_or(0, |text| text.trim().parse().unwrap())
}

fn exec(container: &Driven, script: &str) -> String {
    let output = container.output(&["exec", "ID", "sh", "-c", script]);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_container_goes_on_where_it_was_saved() {
    if !has_criu() {
        return;
    }
    let mut container = container(COUNT);
    let data = container.0.dir.join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "of the host\n").unwrap();
    container.0.push(
        "/mounts",
        json!({"destination": "/var/data", "source": data, "options": ["bind", "ro"]}),
    );
    let hooked = container.0.dir.join("hooked");
    container.0.spec["hooks"] = json!({"createRuntime": [
        {"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {}", hooked.display())]}
    ]});
    start(&container);
    eventually("it counts", || count(&container) > 5);
    let inside = "grep -E 'Cap|NoNew' /proc/self/status; cat /proc/kcore | wc -c; hostname; \
        cut -d' ' -f4-6 /proc/self/mountinfo | sort; touch /var/data/x || cat /var/data/file; \
        ls -1 /dev; cat /proc/self/cgroup";
    let before = exec(&container, inside);
    assert!(before.contains("of the host\n"), "{before}");
    std::fs::remove_file(&hooked).unwrap();

    container.run(&["checkpoint", "--image-path", "images", "ID"]);
    let gone = container.fails(&["state", "ID"], 1);
    assert!(gone.contains("does not exist"), "{gone}");
    assert_eq!(common::cgroups_of(&container.0.id), Vec::<PathBuf>::new());
    let saved = count(&container);

    let restore = [
        "restore",
        "-d",
        "--image-path",
        "images",
        "--pid-file",
        "pid",
        "ID",
    ];
    container.run(&restore);
    eventually("it goes on", || count(&container) != saved);
    assert!((saved + 1..saved + 100).contains(&count(&container)));
    let state = container.state();
    assert_eq!(state["status"], "running");
    let pid = std::fs::read_to_string(container.0.dir.join("pid")).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    let hook: serde_json::Value = serde_json::from_slice(&std::fs::read(&hooked).unwrap()).unwrap();
    assert_eq!(hook["pid"].to_string(), pid);
    assert_eq!(exec(&container, inside), before);
    assert_eq!(exec(&container, "cat /sys/class/net/lo/flags"), "0x9\n");
    // Its clocks are its own now, and those of who is added are the same.
    let own = "[ $(readlink /proc/self/ns/time) = $(readlink /proc/1/ns/time) ] && echo same";
    assert_eq!(exec(&container, own), "same\n");

    // And once more: what was restored can be saved.
    container.run(&["pause", "ID"]);
    assert_eq!(container.state()["status"], "paused");
    container.run(&["resume", "ID"]);
    container.run(&["checkpoint", "--image-path", "again", "ID"]);
    let saved = count(&container);
    container.run(&["restore", "-d", "--image-path", "again", "ID"]);
    eventually("it goes on", || count(&container) > saved);
    container.run(&["delete", "--force", "ID"]);
    assert_eq!(common::cgroups_of(&container.0.id), Vec::<PathBuf>::new());
}

#[test]
fn a_container_in_the_foreground_gets_the_restorers_streams() {
    if !has_criu() {
        return;
    }
    let script = "while read word; do n=$((n+1)); echo $n $word; done; exit 6";
    let container = container(script);
    let start = |args: &[&str]| {
        let mut child = container
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        (child.stdin.take().unwrap(), output, child)
    };
    let line = |output: &mut BufReader<std::process::ChildStdout>| {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    let (mut input, mut output, mut run) = start(&["run", "ID"]);
    input.write_all(b"one\n").unwrap();
    assert_eq!(line(&mut output), "1 one\n");
    container.run(&["checkpoint", "--image-path", "images", "ID"]);
    assert_eq!(run.wait().unwrap().code(), Some(128 + libc::SIGKILL));
    let (mut input, mut output, mut restore) = start(&["restore", "--image-path=images", "ID"]);
    input.write_all(b"two\n").unwrap();
    assert_eq!(line(&mut output), "2 two\n");
    drop(input);
    assert_eq!(restore.wait().unwrap().code(), Some(6));
    container.fails(&["state", "ID"], 1);
}

#[test]
fn a_terminal_goes_to_the_restorers_console_socket() {
    if !has_criu() {
        return;
    }
    let mut container = container("n=1; while read word; do n=$((n+1)); echo got $n $word; done");
    container.0.spec["process"]["terminal"] = true.into();
    let listener = UnixListener::bind(container.0.dir.join("console")).unwrap();
    let hear = |terminal: &mut std::fs::File, what: &str| {
        let mut text = Vec::new();
        let mut buffer = [0; 512];
        while !String::from_utf8_lossy(&text).contains(what) {
            let length = terminal.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..length]);
        }
    };
    container.run(&["run", "-d", "--console-socket", "console", "ID"]);
    let mut terminal = master(&listener);
    terminal.write_all(b"one\n").unwrap();
    hear(&mut terminal, "got 2 one");
    container.run(&["checkpoint", "--image-path", "images", "ID"]);
    drop(terminal);
    let restore = [
        "restore",
        "-d",
        "--image-path",
        "images",
        "--console-socket",
        "console",
        "ID",
    ];
    container.run(&restore);
    let mut terminal = master(&listener);
    terminal.write_all(b"two\n").unwrap();
    hear(&mut terminal, "got 3 two");
}

#[test]
fn a_container_may_run_on_and_keeps_a_network_namespace_that_is_not_its_own() {
    if !has_criu() {
        return;
    }
    let mut container = container(COUNT);
    let mut holder = Command::new("unshare")
        .args(["--net", "sleep", "1000"])
        .spawn()
        .unwrap();
    let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    eventually("there is a namespace", || {
        link(&holder.id().to_string()) != link("self")
    });
    container.0.without_namespace("network");
    let network = json!({"type": "network", "path": path});
    container.0.push("/linux/namespaces", network);
    start(&container);
    eventually("it counts", || count(&container) > 5);
    container.run(&[
        "checkpoint",
        "--leave-running",
        "--image-path",
        "images",
        "ID",
    ]);
    assert_eq!(container.state()["status"], "running");
    let now = count(&container);
    eventually("it goes on", || count(&container) > now);
    container.run(&["delete", "--force", "ID"]);
    container.run(&["restore", "-d", "--image-path", "images", "ID"]);
    let pid = container.state()["pid"].to_string();
    assert_eq!(link(&pid), link(&holder.id().to_string()));
    container.run(&["delete", "--force", "ID"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_user_namespace_is_restored_from_images_that_others_cannot_read() {
    if !has_criu() {
        return;
    }
    let mut container = container(COUNT);
    container
        .0
        .push("/linux/namespaces", json!({"type": "user"}));
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    container.0.spec["linux"]["uidMappings"] = ids.clone();
    container.0.spec["linux"]["gidMappings"] = ids;
    let owned = Command::new("chown")
        .args(["-R", "100000:100000"])
        .arg(container.0.rootfs())
        .status();
    assert!(owned.unwrap().success());
    start(&container);
    eventually("it counts", || count(&container) > 5);
    container.run(&["checkpoint", "--image-path", "images", "ID"]);
    let images = std::fs::metadata(container.0.dir.join("images")).unwrap();
    assert_eq!(images.permissions().mode() & 0o777, 0o750);
    let saved = count(&container);
    container.run(&["restore", "-d", "--image-path", "images", "ID"]);
    eventually("it goes on", || count(&container) > saved);
    let inside = exec(
        &container,
        "id -u; cat /proc/self/uid_map; echo x > /dev/null && echo ok",
    );
    let words: Vec<&str> = inside.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536", "ok"]);
}

#[test]
fn a_page_server_takes_the_memory() {
    if !has_criu() {
        return;
    }
    let container = container(COUNT);
    start(&container);
    eventually("it counts", || count(&container) > 5);
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let taken = container.0.dir.join("taken");
    std::fs::create_dir(&taken).unwrap();
    let mut server = Command::new("criu");
    server.arg("page-server").arg("--images-dir").arg(&taken);
    let server = server.args(["-d", "--port", &port]).status();
    assert!(server.unwrap().success());
    let server = format!("127.0.0.1:{port}");
    let images = ["--image-path", "images"];
    let dump = [
        "checkpoint",
        images[0],
        images[1],
        "--page-server",
        &server,
        "ID",
    ];
    container.run(&dump);
    let saved = count(&container);
    let is_memory = |name: &str| name.starts_with("pages-");
    let names = |dir: &PathBuf| {
        let entries = std::fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<String>>()
    };
    let own = container.0.dir.join("images");
    assert!(!names(&own).iter().any(|name| is_memory(name)));
    assert!(names(&taken).iter().any(|name| is_memory(name)));
    for name in names(&taken).iter().filter(|name| name.ends_with(".img")) {
        std::fs::copy(taken.join(name), own.join(name)).unwrap();
    }
    container.run(&["restore", "-d", images[0], images[1], "ID"]);
    eventually("it goes on", || count(&container) > saved);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    if !has_criu() {
        return;
    }
    let mut container = container(COUNT);
    start(&container);
    container.run(&["checkpoint", "--image-path", "images", "ID"]);
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let fails = |container: &Driven, problems: &[&str]| {
        let said = container.fails(&["restore", "-d", "--image-path", "images", "ID"], 1);
        for problem in problems {
            assert!(said.contains(problem), "{said}");
        }
        let gone = container.fails(&["state", "ID"], 1);
        assert!(gone.contains("does not exist"), "{gone}");
        assert_eq!(common::cgroups_of(&container.0.id), Vec::<PathBuf>::new());
        assert_eq!(mounts(), before);
    };
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo no such luck >&2; exit 3"]});
    container.0.spec["hooks"] = json!({"createRuntime": [hook]});
    fails(&container, &["createRuntime hook", "no such luck"]);
    container.0.spec["hooks"] = json!({});
    // The first is found out when there are processes already, the second before.
    let expected = [
        "criu could not restore",
        "Error (criu/",
        "images/restore.log",
    ];
    for image in ["mm-1.img", "core-1.img"] {
        std::fs::remove_file(container.0.dir.join("images").join(image)).unwrap();
        fails(&container, &expected);
    }
    std::fs::remove_dir_all(container.0.dir.join("images")).unwrap();
    fails(&container, &["is there a checkpoint"]);
}

#[test]
fn without_criu_a_container_is_left_alone() {
    let container = Driven::new("exec sleep 1000");
    container.run(&["run", "-d", "ID"]);
    for verb in ["checkpoint", "restore"] {
        let mut command = container.command(&[verb, "ID"]);
        let output = command.env("PATH", &container.0.dir).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = "joey: error: criu is not installed: install the package criu\n";
        assert_eq!(said, expected, "{verb}");
    }
    assert_eq!(container.state()["status"], "running");
}

/// A program in the place of criu: it keeps its request and fails.
fn fake(container: &Driven, then: &str) -> PathBuf {
    let dir = container.0.dir.join("programs");
    std::fs::create_dir(&dir).unwrap();
    let script = format!(
        "#!/bin/bash\ncd {}\ndd bs=65536 count=1 <&$2 >request 2>/dev/null\n{then}\n",
        container.0.dir.display()
    );
    std::fs::write(dir.join("criu"), script).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("criu"), mode).unwrap();
    dir
}

#[test]
fn what_criu_logs_is_told_and_the_container_runs_on() {
    let container = Driven::new("exec sleep 1000");
    let errors = "echo '(00.1) Error (criu/x.c:7): no such luck' > work/dump.log; exit 1";
    let dir = fake(&container, errors);
    let checkpoint = |args: &[&str]| {
        let mut command = container.command(args);
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
        let output = command.env("PATH", path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    container.run(&["create", "ID"]);
    let created = checkpoint(&["checkpoint", "ID"]);
    assert!(created.contains("is created"), "{created}");
    container.run(&["start", "ID"]);
    let failed = checkpoint(&[
        "checkpoint",
        "--image-path=images",
        "--work-path=work",
        "--page-server=[::1]:4711",
        "ID",
    ]);
    let log = container.0.dir.join("work/dump.log");
    let expected = format!(
        "joey: error: criu could not dump the container: Error (criu/x.c:7): no such luck; see {}\n",
        log.display()
    );
    assert_eq!(failed, expected);
    assert_eq!(container.state()["status"], "running");
    let request = std::fs::read(container.0.dir.join("request")).unwrap();
    let has = |bytes: &[u8]| request.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(container.0.rootfs().to_str().unwrap().as_bytes()));
    // The address and the port, fields 1 and 2 of field 11.
    assert!(has(b"\x5a\x08\x0a\x03::1\x10\xe7\x24"));
    assert!(has(b"/etc/criu/runc.conf"));
    // Not asked for: tcp_established is field 5.
    assert!(!has(b"\x28\x01"));
    for (args, problem) in [
        (
            ["--lazy-pages", "--leave-running"],
            "--lazy-pages is not supported",
        ),
        (["--status-fd", "4"], "--status-fd is not supported"),
        (["--empty-ns", "uts"], "--empty-ns uts is not supported"),
        (["--parent-path", "/"], "must be relative"),
        (["--parent-path", "none"], "there is no directory"),
        (["--page-server", "here"], "is not ADDRESS:PORT"),
    ] {
        let refused = checkpoint(&["checkpoint", args[0], args[1], "ID"]);
        assert!(refused.contains(problem), "{refused}");
    }
}
