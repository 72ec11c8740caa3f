//! The host's debug shell.

mod common;
#[path = "common/machine.rs"]
#[allow(dead_code)]
mod machine;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::isolated;
use machine::{Machine, context, read_until, with_machine};
use protocol::guest::ConsoleRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// This machine's own shell as the program. The control stream's id names a cgroup that
/// no other test may have.
fn request(terminal: bool) -> ConsoleRequest {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    ConsoleRequest {
        control: u64::try_from(now.as_nanos()).unwrap(),
        program: fs::read("/usr/bin/sh").unwrap(),
        arguments: vec!["sh".into()],
        term: "vt100".into(),
        terminal,
        rows: 33,
        columns: 77,
        stdin: 1,
        stdout: 2,
        stderr: if terminal { 0 } else { 3 },
        ..Default::default()
    }
}

async fn start(machine: &Machine, request: &ConsoleRequest) -> Result<(), String> {
    let started = machine.guest.console(context(), request).await;
    started.map(drop).map_err(|error| error.to_string())
}

/// Waits until nothing is left of the console.
async fn gone(request: &ConsoleRequest) {
    let cgroup = format!("/sys/fs/cgroup/console-{}", request.control);
    for _ in 0..500 {
        if !Path::new(&cgroup).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let processes = fs::read_to_string(format!("{cgroup}/cgroup.procs"));
    panic!("the console's cgroup is still there, with {processes:?}");
}

async fn text(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[test]
fn a_script_runs_beside_the_agent() {
    isolated("a_script_runs_beside_the_agent", || {
        with_machine(async |machine| {
            let console = request(false);
            start(machine, &console).await.unwrap();
            let mut control = machine.stream(console.control).await;
            let (mut input, output) = (machine.stream(1).await, machine.stream(2).await);
            let errors = machine.stream(3).await;
            let script = "echo $0 $TERM $HOME; readlink /proc/$$/ns/mnt; echo err >&2
                setsid sleep 1000 & exit 3\n";
            input.write_all(script.as_bytes()).await.unwrap();
            input.shutdown().await.unwrap();
            // What it leaves behind ends with it, or the output would not.
            let ours = fs::read_link("/proc/self/ns/mnt").unwrap();
            let expected = format!("sh vt100 /\n{}\n", ours.display());
            assert_eq!(text(output).await, expected);
            assert_eq!(text(errors).await, "err\n");
            assert_eq!(control.read_u32_le().await.unwrap(), 3);
            assert_eq!(control.read(&mut [0]).await.unwrap(), 0);
            gone(&console).await;
        });
    });
}

#[test]
fn a_terminal_is_resized_and_ends_with_its_client() {
    isolated("a_terminal_is_resized_and_ends_with_its_client", || {
        with_machine(async |machine| {
            let console = request(true);
            start(machine, &console).await.unwrap();
            let mut control = machine.stream(console.control).await;
            let (mut input, mut output) = (machine.stream(1).await, machine.stream(2).await);
            // The prompt would split what is looked for.
            let script = "PS1=; stty size; tty; setsid sleep 1000 &\n";
            input.write_all(script.as_bytes()).await.unwrap();
            let said = read_until(&mut output, "/dev/pts/").await;
            assert!(said.contains("33 77"), "{said:?}");
            control.write_all(&[44, 0, 0, 1]).await.unwrap();
            let script = "until stty size | grep '44 256'; do sleep 0.1; done\n";
            input.write_all(script.as_bytes()).await.unwrap();
            read_until(&mut output, "\n44 256").await;
            drop(control);
            gone(&console).await;
            // All has ended that had it open.
            while output.read(&mut [0; 1024]).await.unwrap() > 0 {}
        });
    });
}

#[test]
fn what_cannot_run_is_refused_and_leaves_nothing() {
    isolated("what_cannot_run_is_refused_and_leaves_nothing", || {
        with_machine(async |machine| {
            let console = request(true);
            let mut bad = console.clone();
            bad.program = b"echo a script".into();
            let said = start(machine, &bad).await.unwrap_err();
            assert!(said.contains("no executable"), "{said}");
            gone(&console).await;
            // A dynamic one, as the guest sees it.
            let mut bad = console.clone();
            let (here, none) = (b"/lib64/ld-linux", b"/none4/ld-linux");
            let found = bad
                .program
                .windows(here.len())
                .position(|part| part == here);
            bad.program[found.unwrap()..][..none.len()].copy_from_slice(none);
            let said = start(machine, &bad).await.unwrap_err();
            assert!(said.contains("does not run"), "{said}");
            gone(&console).await;
            let mut bad = console.clone();
            bad.rows = 65536;
            let said = start(machine, &bad).await.unwrap_err();
            assert!(said.contains("65536 rows"), "{said}");
            gone(&console).await;
            let mut bad = console.clone();
            bad.arguments.clear();
            start(machine, &bad).await.unwrap_err();
            gone(&console).await;
            // The streams are free again.
            start(machine, &console).await.unwrap();
            drop(machine.stream(console.control).await);
            gone(&console).await;
        });
    });
}
