//! containerd's Task service with real containers.

mod common;
#[path = "common/machine.rs"]
mod machine;

use common::isolated;
use containerd_shim_protos::api;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use libc::{SIGKILL, SIGTERM};
use machine::{Machine, Recipe, context, process, read_until, with_machine};
use protocol::guest::{Event, File, NextEventRequest};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;

async fn event(machine: &Machine, after: u64) -> Event {
    let request = NextEventRequest {
        after,
        ..Default::default()
    };
    machine.guest.next_event(context(), &request).await.unwrap()
}

#[test]
fn a_container_runs_and_leaves_nothing() {
    isolated("a_container_runs_and_leaves_nothing", || {
        with_machine(async |machine| {
            let mut new = Recipe::new(
                "life",
                "echo out > /tmp/file; cat /tmp/file; echo err >&2; exit 7",
            );
            (new.stdout, new.stderr) = ("1", "2");
            let pid = machine.create(new).await.unwrap();
            assert_eq!(machine.status("life", "").await, Ok(api::Status::CREATED));
            assert_eq!(machine.start("life", "").await, Ok(pid));
            let (out, err) = tokio::join!(machine.output(1), machine.output(2));
            assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
            assert_eq!(machine.wait("life", "").await, 7);
            assert_eq!(machine.status("life", "").await, Ok(api::Status::STOPPED));

            let event = event(machine, 0).await;
            assert_eq!(event.sequence, 1);
            let exit = event.exit();
            assert_eq!(
                (exit.container_id.as_str(), exit.exec_id.as_str()),
                ("life", "")
            );
            assert_eq!((exit.pid, exit.status), (pid, 7));
            assert!(exit.exited_at_ns > 0);

            assert_eq!(
                machine.start("life", "").await.unwrap_err().0,
                Code::FAILED_PRECONDITION
            );
            assert_eq!(machine.delete("life", "").await, Ok(7));
            assert_eq!(
                machine.status("life", "").await.unwrap_err().0,
                Code::NOT_FOUND
            );
            assert_eq!(machine.left(), [""; 0]);
        });
    });
}

#[test]
fn input_reaches_the_process_and_ends() {
    isolated("input_reaches_the_process_and_ends", || {
        with_machine(async |machine| {
            let mut new = Recipe::new("cat", "cat; echo end");
            (new.stdin, new.stdout) = ("1", "2");
            machine.create(new).await.unwrap();
            machine.start("cat", "").await.unwrap();
            let (mut stdin, mut stdout) = (machine.stream(1).await, machine.stream(2).await);
            stdin.write_all(b"one\n").await.unwrap();
            assert_eq!(read_until(&mut stdout, "one\n").await, "one\n");
            stdin.write_all(b"two\n").await.unwrap();
            stdin.shutdown().await.unwrap();
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "two\nend\n");
            assert_eq!(machine.wait("cat", "").await, 0);
            machine.delete("cat", "").await.unwrap();
        });
    });
}

#[test]
fn close_io_ends_the_input() {
    isolated("close_io_ends_the_input", || {
        with_machine(async |machine| {
            let mut new = Recipe::new("closed", "cat");
            (new.stdin, new.stdout) = ("1", "2");
            machine.create(new).await.unwrap();
            machine.start("closed", "").await.unwrap();
            let _stdin = machine.stream(1).await;
            let request = api::CloseIORequest {
                id: "closed".into(),
                stdin: true,
                ..Default::default()
            };
            machine.tasks.close_io(context(), &request).await.unwrap();
            assert_eq!(machine.output(2).await, "");
            assert_eq!(machine.wait("closed", "").await, 0);
            machine.delete("closed", "").await.unwrap();
        });
    });
}

#[test]
fn processes_are_added_and_end_with_their_container() {
    isolated("processes_are_added_and_end_with_their_container", || {
        with_machine(async |machine| {
            machine
                .create(Recipe::new("host", "exec sleep 1000"))
                .await
                .unwrap();
            machine.start("host", "").await.unwrap();

            machine
                .exec(
                    "host",
                    "quick",
                    &process("echo in $(cat /proc/1/comm); exit 3"),
                    "1",
                    false,
                )
                .await;
            assert_eq!(
                machine.status("host", "quick").await,
                Ok(api::Status::CREATED)
            );
            // The waiter comes first.
            let (status, pid, text) = tokio::join!(
                machine.wait("host", "quick"),
                machine.start("host", "quick"),
                machine.output(1)
            );
            assert_eq!((status, text.as_str()), (3, "in sleep\n"));
            let exit = event(machine, 0).await;
            assert_eq!(
                (exit.exit().exec_id.as_str(), exit.exit().pid),
                ("quick", pid.unwrap())
            );
            assert_eq!(
                machine.start("host", "quick").await.unwrap_err().0,
                Code::FAILED_PRECONDITION
            );
            assert_eq!(machine.delete("host", "quick").await, Ok(3));
            assert_eq!(
                machine.status("host", "quick").await.unwrap_err().0,
                Code::NOT_FOUND
            );

            machine
                .exec("host", "long", &process("exec sleep 1000"), "", false)
                .await;
            let long = machine.start("host", "long").await.unwrap();
            let pids = api::PidsRequest {
                id: "host".into(),
                ..Default::default()
            };
            let pids = machine
                .tasks
                .pids(context(), &pids)
                .await
                .unwrap()
                .processes;
            assert_eq!(pids.len(), 2);
            let details = pids.iter().find(|process| process.pid == long).unwrap();
            assert_eq!(details.info.type_url, "containerd.runc.v1.ProcessDetails");
            assert_eq!(
                machine.delete("host", "long").await.unwrap_err().0,
                Code::FAILED_PRECONDITION
            );
            assert_eq!(
                machine.delete("host", "").await.unwrap_err().0,
                Code::FAILED_PRECONDITION
            );

            machine.kill("host", "", SIGKILL).await.unwrap();
            assert_eq!(machine.wait("host", "").await, 128 + 9);
            assert_eq!(machine.wait("host", "long").await, 128 + 9);
            // The added process is reported before the one whose end ended it.
            assert_eq!(event(machine, 1).await.exit().exec_id, "long");
            assert_eq!(event(machine, 2).await.exit().exec_id, "");
            assert_eq!(
                machine.kill("host", "", SIGKILL).await.unwrap_err().0,
                Code::NOT_FOUND
            );
            machine.delete("host", "long").await.unwrap();
            machine.delete("host", "").await.unwrap();
            assert_eq!(machine.left(), [""; 0]);
        });
    });
}

#[test]
fn a_missing_command_is_named_and_nobody_waits_for_it() {
    isolated("a_missing_command_is_named_and_nobody_waits_for_it", || {
        with_machine(async |machine| {
            let mut new = Recipe::new("missing", "");
            new.spec["process"]["args"] = json!(["/no/such/command"]);
            new.stdout = "1";
            // Whether the command is looked for at create or at start is the engine's to say.
            let error = match machine.create(new).await {
                Err(error) => error,
                Ok(_) => {
                    let error = machine.start("missing", "").await.unwrap_err();
                    machine.wait("missing", "").await;
                    machine.delete("missing", "").await.unwrap();
                    error
                }
            };
            assert_eq!(error.0, Code::UNKNOWN);
            assert!(error.1.contains("/no/such/command"), "{}", error.1);
            assert_eq!(machine.left(), [""; 0]);

            machine
                .create(Recipe::new("there", "exec sleep 1000"))
                .await
                .unwrap();
            machine.start("there", "").await.unwrap();
            let mut spec = process("");
            spec["args"] = json!(["no-such-command"]);
            machine.exec("there", "bad", &spec, "2", false).await;
            let (status, error) =
                tokio::join!(machine.wait("there", "bad"), machine.start("there", "bad"));
            assert_eq!(status, 255);
            assert!(error.unwrap_err().1.contains("no-such-command"));
            assert_eq!(
                machine.status("there", "bad").await,
                Ok(api::Status::STOPPED)
            );
            assert_eq!(machine.delete("there", "bad").await, Ok(255));
            machine.kill("there", "", SIGKILL).await.unwrap();
            machine.wait("there", "").await;
            machine.delete("there", "").await.unwrap();
        });
    });
}

#[test]
fn signals_arrive() {
    isolated("signals_arrive", || {
        with_machine(async |machine| {
            let mut new = Recipe::new(
                "trap",
                "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 1; done",
            );
            new.stdout = "1";
            machine.create(new).await.unwrap();
            machine.start("trap", "").await.unwrap();
            let mut stdout = machine.stream(1).await;
            read_until(&mut stdout, "ready").await;
            assert_eq!(
                machine.kill("trap", "", 65).await.unwrap_err().0,
                Code::INVALID_ARGUMENT
            );
            machine.kill("trap", "", SIGTERM).await.unwrap();
            read_until(&mut stdout, "got it").await;
            assert_eq!(machine.wait("trap", "").await, 5);
            machine.delete("trap", "").await.unwrap();
        });
    });
}

#[test]
fn a_created_container_can_be_deleted() {
    isolated("a_created_container_can_be_deleted", || {
        with_machine(async |machine| {
            machine
                .create(Recipe::new("unstarted", "true"))
                .await
                .unwrap();
            let again = machine
                .create(Recipe::new("unstarted", "true"))
                .await
                .unwrap_err();
            assert_eq!(again.0, Code::ALREADY_EXISTS);
            let outside = machine
                .create(Recipe::new("../outside", "true"))
                .await
                .unwrap_err();
            assert_eq!(outside.0, Code::INVALID_ARGUMENT);
            assert_eq!(machine.delete("unstarted", "").await, Ok(128 + 9));
            assert_eq!(machine.left(), [""; 0]);
        });
    });
}

#[test]
fn a_terminal_has_the_size_that_it_is_given() {
    isolated("a_terminal_has_the_size_that_it_is_given", || {
        with_machine(async |machine| {
            let mut new = Recipe::new(
                "tty",
                "stty size; while read line; do echo \"<$line>\" $(stty size); done",
            );
            (new.stdin, new.stdout, new.terminal) = ("1", "2", true);
            new.spec["process"]["consoleSize"] = json!({"width": 101, "height": 31});
            machine.create(new).await.unwrap();
            machine.start("tty", "").await.unwrap();
            let (mut stdin, mut stdout) = (machine.stream(1).await, machine.stream(2).await);
            read_until(&mut stdout, "31 101").await;
            stdin.write_all(b"hello\n").await.unwrap();
            read_until(&mut stdout, "<hello> 31 101").await;
            let resize = api::ResizePtyRequest {
                id: "tty".into(),
                width: 77,
                height: 22,
                ..Default::default()
            };
            machine.tasks.resize_pty(context(), &resize).await.unwrap();
            stdin.write_all(b"again\n").await.unwrap();
            read_until(&mut stdout, "<again> 22 77").await;

            // An added process keeps a size that comes before it is started.
            machine
                .exec("tty", "more", &process("stty size"), "3", true)
                .await;
            let resize = api::ResizePtyRequest {
                exec_id: "more".into(),
                width: 55,
                ..resize
            };
            machine.tasks.resize_pty(context(), &resize).await.unwrap();
            machine.start("tty", "more").await.unwrap();
            assert_eq!(machine.output(3).await.trim(), "22 55");
            assert_eq!(machine.wait("tty", "more").await, 0);

            // ^D
            stdin.write_all(&[4]).await.unwrap();
            assert_eq!(machine.wait("tty", "").await, 0);
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).await.unwrap();
            machine.delete("tty", "").await.unwrap();
            assert_eq!(machine.left(), [""; 0]);
        });
    });
}

#[test]
fn files_and_edits_reach_the_container() {
    isolated("files_and_edits_reach_the_container", || {
        with_machine(async |machine| {
            let script = "cat /etc/motd; stat -c '%a %u' /etc/motd; stat -f -c %T /sys/fs/cgroup; echo > /etc/motd";
            let mut new = Recipe::new("files", script);
            new.stdout = "1";
            new.spec["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/etc/motd", "type": "bind", "source": "joey-file:0", "options": ["bind", "ro"],
            }));
            new.files = vec![File {
                data: b"welcome\n".into(),
                mode: 0o640,
                uid: 12,
                ..Default::default()
            }];
            machine.create(new).await.unwrap();
            machine.start("files", "").await.unwrap();
            assert_eq!(machine.output(1).await, "welcome\n640 12\ncgroup2fs\n");
            // Read-only.
            assert_ne!(machine.wait("files", "").await, 0);
            machine.delete("files", "").await.unwrap();
            assert_eq!(machine.left(), [""; 0]);
        });
    });
}

#[test]
fn a_container_can_be_frozen_and_measured() {
    isolated("a_container_can_be_frozen_and_measured", || {
        with_machine(async |machine| {
            machine
                .create(Recipe::new("frozen", "while :; do :; done"))
                .await
                .unwrap();
            let pause = api::PauseRequest {
                id: "frozen".into(),
                ..Default::default()
            };
            let resume = api::ResumeRequest {
                id: "frozen".into(),
                ..Default::default()
            };
            assert!(machine.tasks.pause(context(), &pause).await.is_err());
            machine.start("frozen", "").await.unwrap();
            machine.tasks.pause(context(), &pause).await.unwrap();
            assert_eq!(machine.status("frozen", "").await, Ok(api::Status::PAUSED));
            machine.tasks.resume(context(), &resume).await.unwrap();
            assert_eq!(machine.status("frozen", "").await, Ok(api::Status::RUNNING));

            let request = api::StatsRequest {
                id: "frozen".into(),
                ..Default::default()
            };
            let stats = machine
                .tasks
                .stats(context(), &request)
                .await
                .unwrap()
                .stats;
            assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
            assert!(
                Metrics::parse_from_bytes(&stats.value)
                    .unwrap()
                    .cpu
                    .usage_usec
                    > 0
            );
            machine.kill("frozen", "", SIGKILL).await.unwrap();
            machine.wait("frozen", "").await;
            machine.delete("frozen", "").await.unwrap();
        });
    });
}

#[test]
fn a_shared_pid_namespace_ends_with_the_container_too() {
    isolated("a_shared_pid_namespace_ends_with_the_container_too", || {
        with_machine(async |machine| {
            // The shell's child outlives it and becomes ours: an orphan that holds the output.
            let mut new = Recipe::new("shared", "sleep 1000 & echo left");
            new.stdout = "1";
            new.spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}]);
            machine.create(new).await.unwrap();
            machine.start("shared", "").await.unwrap();
            assert_eq!(machine.output(1).await, "left\n");
            assert_eq!(machine.wait("shared", "").await, 0);
            machine.delete("shared", "").await.unwrap();
            assert_eq!(machine.left(), [""; 0]);
        });
    });
}

/// Open descriptors of this process, and children of it that nobody has collected.
fn debts() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let zombie = |entry: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.starts_with(" Z 1 "))
    };
    let zombies = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(zombie)
        .count();
    (descriptors, zombies)
}

#[test]
fn many_processes_leave_no_descriptor_and_no_zombie() {
    isolated("many_processes_leave_no_descriptor_and_no_zombie", || {
        with_machine(async |machine| {
            machine
                .create(Recipe::new("many", "exec sleep 1000"))
                .await
                .unwrap();
            machine.start("many", "").await.unwrap();
            let mut before = None;
            for stream in 1..=300u64 {
                // Each leaves a child behind, which becomes an orphan of the container.
                let script = "sleep 0 & echo $0";
                let (id, name) = (format!("p{stream}"), stream.to_string());
                let terminal = stream % 2 == 0;
                machine
                    .exec("many", &id, &process(script), &name, terminal)
                    .await;
                machine.start("many", &id).await.unwrap();
                assert!(machine.output(stream).await.contains("sh"));
                assert_eq!(machine.wait("many", &id).await, 0);
                machine.delete("many", &id).await.unwrap();
                // The first ones may open what stays open.
                if stream == 2 {
                    before = Some(debts().0);
                }
            }
            let settled = async {
                while Some(debts().0) > before || debts().1 > 0 {
                    tokio::task::yield_now().await;
                }
            };
            let settled = tokio::time::timeout(std::time::Duration::from_secs(20), settled).await;
            assert!(
                settled.is_ok(),
                "{:?} descriptors and zombies, at first {before:?}",
                debts()
            );
            machine.kill("many", "", SIGKILL).await.unwrap();
            machine.wait("many", "").await;
            machine.delete("many", "").await.unwrap();
        });
    });
}

/// Ends when a process of the container is stopped while it is still the agent's copy.
async fn stopped_before_its_command(machine: &Machine, id: &str) {
    use std::os::unix::fs::MetadataExt;

    let program = |pid: &str| {
        let meta = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let stopped = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") T "))
    };
    let request = api::PidsRequest {
        id: id.into(),
        ..Default::default()
    };
    loop {
        let answer = machine.tasks.pids(context(), &request).await.unwrap();
        let mut processes = answer.processes.iter().map(|process| process.pid);
        if processes.any(|pid| stopped(pid) && program(&pid.to_string()) == program("self")) {
            return;
        }
    }
}

#[test]
fn a_container_that_stops_its_new_processes_stops_nobody_else() {
    isolated(
        "a_container_that_stops_its_new_processes_stops_nobody_else",
        || {
            with_machine(async |machine| {
                let stopper = "while :; do kill -STOP -1 2>/dev/null; done";
                machine.create(Recipe::new("bad", stopper)).await.unwrap();
                machine.start("bad", "").await.unwrap();
                let sleeper = process("exec sleep 1000");
                for attempt in 0.. {
                    assert!(attempt < 1000, "none was stopped before its command");
                    let x = format!("x{attempt}");
                    machine.exec("bad", &x, &sleeper, "", false).await;
                    let mut start = std::pin::pin!(machine.start("bad", &x));
                    tokio::select! {
                        started = &mut start => {
                            // It got to its command before the stopper got to it.
                            started.unwrap();
                            machine.kill("bad", &x, SIGKILL).await.unwrap();
                            assert_eq!(machine.wait("bad", &x).await, 137);
                            assert_eq!(machine.delete("bad", &x).await, Ok(137));
                            continue;
                        }
                        () = stopped_before_its_command(machine, "bad") => {}
                    }
                    let meanwhile = async {
                        assert_eq!(machine.status("bad", &x).await, Ok(api::Status::CREATED));
                        for refused in [
                            machine.start("bad", &x).await,
                            machine.delete("bad", &x).await,
                        ] {
                            assert_eq!(refused.unwrap_err().0, Code::FAILED_PRECONDITION);
                        }
                        // Others live on.
                        machine.create(Recipe::new("good", "exit 4")).await.unwrap();
                        machine.start("good", "").await.unwrap();
                        assert_eq!(machine.wait("good", "").await, 4);
                        assert_eq!(machine.delete("good", "").await, Ok(4));

                        machine.kill("bad", "", SIGKILL).await.unwrap();
                    };
                    let (started, ()) = tokio::join!(start, meanwhile);
                    // One that was stopped on the last step to its command counts as started.
                    let code = if started.is_ok() { 137 } else { 255 };
                    assert_eq!(machine.wait("bad", &x).await, code);
                    assert_eq!(machine.wait("bad", "").await, 137);
                    assert_eq!(machine.delete("bad", &x).await, Ok(code));
                    assert_eq!(machine.delete("bad", "").await, Ok(137));
                    break;
                }
                assert_eq!(debts().1, 0);
            });
        },
    );
}

#[test]
fn shutdown_is_answered_before_the_agent_ends() {
    isolated("shutdown_is_answered_before_the_agent_ends", || {
        with_machine(async |machine| {
            machine
                .tasks
                .shutdown(context(), &api::ShutdownRequest::default())
                .await
                .unwrap();
            while !machine.agent.is_finished() {
                tokio::task::yield_now().await;
            }
        });
    });
}
