//! The test bed itself: its channel carries commands and bytes faithfully, and
//! containerd runs pods in it. All tests share one host without joey.

use std::io::{Read, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use integration::channel::Size;
use integration::testbed::{Config, Error, Event, TestHost};
use sha2::{Digest, Sha256};

fn host() -> &'static TestHost {
    static HOST: OnceLock<TestHost> = OnceLock::new();
    HOST.get_or_init(|| {
        TestHost::boot(&Config::default()).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Bytes that no layer between here and there could guess or shorten.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    random.read_exact(&mut bytes).unwrap();
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn streams_and_exit_code_are_separate() {
    let output = host().run("echo out; echo err >&2; exit 7").unwrap();
    assert_eq!(output.status, 7);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
}

#[test]
fn a_signal_is_128_and_its_number() {
    assert_eq!(host().run("kill -9 $$").unwrap().status, 137);
}

#[test]
fn a_failing_check_shows_what_was_said() {
    let error = host().check("echo reason >&2; exit 3").unwrap_err();
    assert!(
        matches!(&error, Error::Failed { status: 3, said, .. } if said == "reason"),
        "{error}"
    );
}

#[test]
fn a_missing_program_is_named() {
    let error = host().command(["no-such-program"]).run().unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("no-such-program"), "{error}");
}

#[test]
fn environment_directory_and_arguments_arrive() {
    let output = host()
        .command([
            "sh",
            "-c",
            "pwd; echo \"$NAME\"; echo \"$1\"",
            "x",
            "a b\n'\"$c",
        ])
        .env("NAME", "ü $HOME")
        .directory("/usr")
        .run()
        .unwrap();
    assert_eq!(output.text(), "/usr\nü $HOME\na b\n'\"$c");
}

#[test]
fn fifty_megabytes_survive_both_ways() {
    let bytes = noise(50 << 20);
    let expected = sha256(&bytes);
    host()
        .write(bytes.as_slice(), "/var/lib/noise", 0o640)
        .unwrap();
    let seen = host()
        .check("sha256sum </var/lib/noise; stat -c %a /var/lib/noise")
        .unwrap();
    assert_eq!(seen, format!("{expected}  -\n640"));

    let back = std::env::temp_dir().join(format!("testbed-noise-{}", std::process::id()));
    let copied = host().copy_out("/var/lib/noise", &back);
    let read = std::fs::read(&back);
    std::fs::remove_file(&back).unwrap();
    copied.unwrap();
    assert_eq!(sha256(&read.unwrap()), expected);
    host().check("rm /var/lib/noise").unwrap();
}

#[test]
fn input_that_nobody_reads_does_not_hang() {
    let bytes = noise(8 << 20);
    let output = host().shell("exit 5").run_with(bytes.as_slice()).unwrap();
    assert_eq!(output.status, 5);
}

#[test]
fn large_input_and_output_flow_at_the_same_time() {
    let bytes = noise(8 << 20);
    let output = host().command(["cat"]).run_with(bytes.as_slice()).unwrap();
    assert_eq!(sha256(&output.stdout), sha256(&bytes));
}

#[test]
fn commands_run_side_by_side() {
    // Each waits for the other's file, so one after the other would never end.
    host().check("mkdir -p /run/meet").unwrap();
    std::thread::scope(|scope| {
        let meet = |ours: &'static str, theirs: &'static str| {
            scope.spawn(move || {
                let script = format!(
                    "touch /run/meet/{ours}; until [ -e /run/meet/{theirs} ]; do sleep 0.05; done; echo {ours}"
                );
                host().shell(&script).limit(Duration::from_secs(120)).run().unwrap().success().unwrap()
            })
        };
        let (left, right) = (meet("left", "right"), meet("right", "left"));
        assert_eq!(left.join().unwrap(), "left");
        assert_eq!(right.join().unwrap(), "right");
    });
}

#[test]
fn a_dropped_command_is_killed_with_its_children() {
    let mut session = host()
        .shell("sleep 98765 & echo $!; echo $$; wait")
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    while said.iter().filter(|byte| **byte == b'\n').count() < 2 {
        match session
            .next(Some(Instant::now() + Duration::from_secs(60)))
            .unwrap()
        {
            Event::Stdout(bytes) => said.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    drop(session);
    let pids = String::from_utf8(said).unwrap();
    for pid in pids.lines() {
        // kill is asynchronous; the command's limit is what fails a survivor.
        host()
            .shell(&format!(
                "while kill -0 {pid} 2>/dev/null; do sleep 0.05; done"
            ))
            .limit(Duration::from_secs(60))
            .run()
            .unwrap()
            .success()
            .unwrap();
    }
}

#[test]
fn a_command_over_its_limit_is_an_error_that_names_it() {
    let error = host()
        .command(["sleep", "4321"])
        .limit(Duration::from_millis(200))
        .run()
        .unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Broken { .. }), "{message}");
    assert!(
        message.contains("sleep 4321") && message.contains("no end within"),
        "{message}"
    );
}

#[test]
fn a_terminal_is_a_terminal() {
    let mut session = host()
        .shell("test -t 0 && test -t 1 && read line && echo \"got $line\" && stty size")
        .terminal(Size {
            rows: 33,
            columns: 101,
        })
        .spawn()
        .unwrap();
    let mut input = session.input();
    input.write_all(b"typed\n").unwrap();
    let mut said = Vec::new();
    let code = loop {
        match session
            .next(Some(Instant::now() + Duration::from_secs(60)))
            .unwrap()
        {
            Event::Stdout(bytes) => said.extend(bytes),
            Event::Stderr(bytes) => panic!("a terminal has one output: {bytes:?}"),
            Event::Exit(code) => break code,
        }
    };
    let said = String::from_utf8(said).unwrap();
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("got typed") && said.contains("33 101"),
        "{said}"
    );
}

#[test]
fn a_signal_reaches_the_command() {
    let mut session = host()
        .shell("trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done")
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let code = loop {
        match session
            .next(Some(Instant::now() + Duration::from_secs(60)))
            .unwrap()
        {
            Event::Stdout(bytes) => {
                if bytes == b"ready\n" {
                    session.input().signal(15).unwrap();
                }
                said.extend(bytes);
            }
            Event::Stderr(_) => {}
            Event::Exit(code) => break code,
        }
    };
    assert_eq!((code, said.as_slice()), (9, &b"ready\ncaught\n"[..]));
}

#[test]
fn orphans_are_reaped() {
    let pid = host().check("sh -c 'sleep 0.01 & echo $!'").unwrap();
    host()
        .shell(&format!("while [ -e /proc/{pid} ]; do sleep 0.05; done"))
        .limit(Duration::from_secs(60))
        .run()
        .unwrap()
        .success()
        .unwrap();
}

#[test]
fn a_host_that_dies_is_an_error_with_its_console() {
    let host = TestHost::boot(&Config {
        processors: 1,
        ..Config::default()
    })
    .unwrap();
    let error = host
        .run("echo last words >/dev/console; echo b >/proc/sysrq-trigger; sleep 1000")
        .unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Broken { .. }), "{message}");
    assert!(message.contains("last words"), "{message}");
}

#[test]
fn the_virtual_clock_counts_instructions() {
    let host = TestHost::boot(&Config {
        virtual_clock: true,
        ..Config::default()
    })
    .unwrap();
    // 200,000 rounds of a shell loop take as many instructions each time.
    let measure = || -> f64 {
        let script = "read a _ </proc/uptime; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; read b _ </proc/uptime; echo $a $b";
        let said = host.check(script).unwrap();
        let times: Vec<f64> = said.split(' ').map(|word| word.parse().unwrap()).collect();
        times[1] - times[0]
    };
    let (first, second) = (measure(), measure());
    assert!(first > 0.05, "{first}");
    assert!(
        (first - second).abs() <= 0.1 * first + 0.01,
        "{first} {second}"
    );
}

#[test]
fn containerd_runs_a_pod_with_runc() {
    let host = host();
    host.start_containerd().unwrap();
    let image = "127.0.0.1:5000/busybox:latest";
    host.crictl(&["pull", image]).unwrap();
    let pod_config = r#"{"metadata":{"name":"p","uid":"u","namespace":"test","attempt":0},
        "hostname":"p","log_directory":"/tmp/logs","linux":{}}"#;
    let container_config = format!(
        r#"{{"metadata":{{"name":"c","attempt":0}},"image":{{"image":"{image}"}},
        "command":["sh","-c","mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www"],
        "log_path":"c.log","linux":{{}}}}"#
    );
    host.write(pod_config.as_bytes(), "/tmp/pod.json", 0o644)
        .unwrap();
    host.write(container_config.as_bytes(), "/tmp/container.json", 0o644)
        .unwrap();

    let pod = host
        .crictl(&["runp", "--runtime", "runc", "/tmp/pod.json"])
        .unwrap();
    let container = host
        .crictl(&["create", &pod, "/tmp/container.json", "/tmp/pod.json"])
        .unwrap();
    host.crictl(&["start", &container]).unwrap();
    assert_eq!(host.crictl(&["exec", &container, "hostname"]).unwrap(), "p");

    let status: serde_json::Value =
        serde_json::from_str(&host.crictl(&["inspectp", "-o", "json", &pod]).unwrap()).unwrap();
    let network = &status["status"]["network"];
    let v4 = network["ip"].as_str().unwrap();
    let v6 = network["additionalIps"][0]["ip"].as_str().unwrap();
    assert!(
        v4.starts_with("10.88.") && v6.starts_with("fd00:10:88::"),
        "{network}"
    );
    for url in [format!("http://{v4}/"), format!("http://[{v6}]/")] {
        let fetch = format!("curl -gsS --retry 50 --retry-connrefused --retry-delay 1 '{url}'");
        assert_eq!(host.check(&fetch).unwrap(), "p");
    }
    host.crictl(&["rmp", "-f", &pod]).unwrap();
    assert_eq!(host.crictl(&["pods", "-q"]).unwrap(), "");
}

/// However a process with a test host ends, its QEMU ends with it.
#[test]
fn a_killed_process_leaves_no_qemu() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_testhost"))
        .args(["--bare", "--processors", "1", "run", "echo up; sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"up\n");
    let qemus = children(child.id(), "qemu-system-x86");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(qemus.len(), 1, "{qemus:?}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while name_of(qemus[0]).as_deref() == Some("qemu-system-x86") {
        assert!(Instant::now() < deadline, "QEMU {} lives on", qemus[0]);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process's name (at most 15 bytes) while it runs; zombies have ended.
fn name_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    (!rest.starts_with(" Z")).then(|| name.to_owned())
}

fn children(parent: u32, name: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{parent}/task")).unwrap() {
        let list = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap();
        found.extend(
            list.split_whitespace()
                .map(|pid| pid.parse::<u32>().unwrap()),
        );
    }
    found.retain(|pid| name_of(*pid).as_deref() == Some(name));
    found
}

/// The kernel of the test host really virtualizes: KVM answers, and with hardware
/// or emulated SVM or VMX behind it.
#[test]
fn kvm_is_there() {
    let modules = host()
        .check("test -c /dev/kvm && cut -d' ' -f1 /proc/modules")
        .unwrap();
    assert!(
        modules
            .lines()
            .any(|name| name == "kvm_amd" || name == "kvm_intel"),
        "{modules}"
    );
}
