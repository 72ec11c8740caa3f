//! Logs, attach and exec: whole, in order, stdout and stderr apart, under back pressure,
//! with clients that come, go and vanish.

use std::time::{Duration, Instant};

use integration::channel::Size;
use integration::testbed::{Event, Session, TestHost};
use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, HUNDRED_MB, Pod, run, sh, text};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "streams::stdout_and_stderr_stay_apart",
            stdout_and_stderr_stay_apart,
        ),
        trial(
            "streams::twenty_megabytes_arrive_whole",
            twenty_megabytes_arrive_whole,
        ),
        trial(
            "streams::slow_reader_blocks_nobody_else",
            slow_reader_blocks_nobody_else,
        ),
        trial(
            "streams::a_hundred_megabytes_pass_an_exec_each_way",
            a_hundred_megabytes_pass_an_exec_each_way,
        ),
        trial(
            "streams::one_end_does_not_end_the_other_streams",
            one_end_does_not_end_the_other_streams,
        ),
        trial(
            "streams::attach_works_again_after_a_client_vanished",
            attach_works_again_after_a_client_vanished,
        ),
        trial(
            "streams::all_attached_clients_see_the_output",
            all_attached_clients_see_the_output,
        ),
        trial(
            "streams::stdin_once_ends_with_its_client",
            stdin_once_ends_with_its_client,
        ),
        trial(
            "streams::terminals_are_attached_resized_and_left",
            terminals_are_attached_resized_and_left,
        ),
        trial(
            "streams::an_exec_whose_client_vanishes_sees_its_input_end",
            an_exec_whose_client_vanishes_sees_its_input_end,
        ),
        trial(
            "streams::three_hundred_execs_leave_nothing",
            three_hundred_execs_leave_nothing,
        ),
    ]
}

fn stdout_and_stderr_stay_apart() {
    let pod = Pod::run();
    let container = pod.start(
        BUSYBOX,
        &["sh", "-c", "echo to-out; echo to-err >&2; echo -n last"],
    );
    assert_eq!(container.wait(), 0);
    let logs = run(&format!("crictl logs {}", container.id));
    assert_eq!(text(&logs.stdout), "to-out\nlast");
    assert_eq!(text(&logs.stderr), "to-err\n");
}

fn twenty_megabytes_arrive_whole() {
    let pod = Pod::run();
    // Content that depends on its place: a lost, doubled or reordered piece changes
    // the sum. Long lines, as the log's own words before each would be most of it.
    let script = "seq 1 160000 | tr '\\n' ' ' | fold -w 999 > /tmp/a; for i in $(seq 20); do cat /tmp/a; echo $i; done | head -c 20971520";
    let container = pod.start(BUSYBOX, &["sh", "-c", script]);
    assert_eq!(container.wait(), 0);
    let expected = sh(&format!("{script} | sha256sum; rm /tmp/a"));
    let seen = sh(&format!(
        "crictl logs {} | head -c 20971520 | sha256sum",
        container.id
    ));
    assert_eq!(seen, expected);
}

fn slow_reader_blocks_nobody_else() {
    let pod = Pod::run();
    let container = pod.create(BUSYBOX, json!({"command": ["sleep", "1000"]}));
    sh(&format!("crictl start {}", container.id));
    // A reader that never reads: its process in the guest must stall, no other may.
    let script = format!(
        "crictl exec {} sh -c 'yes | head -c 50000000' | sleep 1000",
        container.id
    );
    let stalled = TestHost::shared()
        .shell(&script)
        .spawn()
        .expect("the host takes commands");
    let neighbour = pod.start(BUSYBOX, &["sleep", "1000"]);
    for n in 0..3 {
        assert_eq!(container.sh(&format!("echo {n}")), n.to_string());
        assert_eq!(neighbour.sh(&format!("echo {n}")), n.to_string());
    }
    // The end of the session ends its processes.
    drop(stalled);
}

fn a_hundred_megabytes_pass_an_exec_each_way() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let expected = sh(&format!("{HUNDRED_MB} | tee /tmp/hundred | sha256sum"));
    let out = sh(&format!(
        "crictl exec {} sh -c '{HUNDRED_MB}' | sha256sum",
        container.id
    ));
    assert_eq!(out, expected);
    let into = sh(&format!(
        "crictl exec -i {} sha256sum </tmp/hundred; rm /tmp/hundred",
        container.id
    ));
    assert_eq!(into, expected);
}

fn one_end_does_not_end_the_other_streams() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let answered = sh(&format!(
        "printf question | crictl exec -i {} sh -c 'cat; echo -answer'",
        container.id
    ));
    assert_eq!(answered, "question-answer");
    let output = container.exec(&["sh", "-c", "echo out; exec >&-; echo err >&2; exit 3"]);
    assert_eq!(text(&output.stdout), "out\n");
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("err\n"), "{stderr}");
    assert!(stderr.contains('3'), "the exit code is in {stderr}");
}

/// A container that answers each line that it is given.
fn answering(pod: &Pod) -> Container {
    let script = "while read line; do echo got:$line; done; echo ended";
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["sh", "-c", script], "stdin": true}),
    );
    sh(&format!("crictl start {}", container.id));
    container
}

/// Shell functions around an attached client NAME, whose input comes from the FIFO
/// /tmp/NAME.in and whose output goes to /tmp/NAME.out.
const CLIENTS: &str = r#"
attach() { mkfifo /tmp/$1.in; crictl attach -i $2 </tmp/$1.in >/tmp/$1.out & }
# A client hears only what comes after it was attached: so it is said until it is heard.
say() { until grep -q "got:$1" $2; do echo $1; sleep 0.2; done >&3; }
clean() { rm -f /tmp/*.in /tmp/*.out; }
"#;

fn attach_works_again_after_a_client_vanished() {
    let pod = Pod::run();
    let container = answering(&pod);
    for end in ["kill -9 $client; wait $client", "exec 3>&-; wait $client"] {
        sh(&format!(
            "{CLIENTS}
             attach one {}; client=$!
             exec 3>/tmp/one.in
             say hello /tmp/one.out
             {{ {end}; }} || true
             clean",
            container.id
        ));
        let state = container.inspect();
        assert_eq!(state["status"]["state"], "CONTAINER_RUNNING", "after {end}");
    }
    sh(&format!(
        "{CLIENTS}
         attach one {}
         exec 3>/tmp/one.in
         say again /tmp/one.out
         clean",
        container.id
    ));
}

fn all_attached_clients_see_the_output() {
    let pod = Pod::run();
    let container = answering(&pod);
    sh(&format!(
        "{CLIENTS}
         attach one {0}; attach two {0}
         exec 3>/tmp/one.in 4>/tmp/two.in
         say here /tmp/one.out
         say there /tmp/two.out
         grep -q got:there /tmp/one.out
         clean",
        container.id
    ));
    // The log has it all the same.
    let logs = sh(&format!("crictl logs {}", container.id));
    assert!(
        logs.contains("got:here") && logs.contains("got:there"),
        "{logs}"
    );
}

fn stdin_once_ends_with_its_client() {
    let pod = Pod::run();
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["wc", "-c"], "stdin": true, "stdin_once": true}),
    );
    sh(&format!(
        "crictl start {0} && head -c 3000000 /dev/zero | crictl attach -i {0}",
        container.id
    ));
    assert_eq!(container.wait(), 0);
    assert_eq!(sh(&format!("crictl logs {}", container.id)), "3000000");
}

/// Reads what a session prints until `text` is in it.
pub fn expect(session: &mut Session, text: &str) {
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    let mut seen = String::new();
    while !seen.contains(text) {
        match session.next(deadline) {
            Ok(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            other => panic!("{other:?} instead of {text:?} after {seen:?}"),
        }
    }
}

fn terminals_are_attached_resized_and_left() {
    let pod = Pod::run();
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["sh"], "stdin": true, "tty": true}),
    );
    sh(&format!("crictl start {}", container.id));
    let attach = format!("crictl attach -it {}", container.id);
    let exec = format!("crictl exec -it {} sh", container.id);
    // The container's own terminal twice, to be left and found again, and an exec's.
    for (client, columns) in [(&attach, 101), (&exec, 111), (&attach, 121)] {
        let size = |columns| Size { rows: 33, columns };
        let mut session = TestHost::shared()
            .shell(client)
            .terminal(size(columns))
            .spawn()
            .expect("the host takes commands");
        let input = session.input();
        let line = |text: &str| input.write(text.as_bytes()).expect("the session lives");
        // The size comes after the process has started, so it is asked for until it is
        // there; a resize likewise.
        let ask = |columns: u16| {
            format!(
                "until stty size | grep {columns}; do sleep 0.1; done; echo at-$(({columns} + 1))\r"
            )
        };
        line(&ask(columns));
        expect(&mut session, &format!("at-{}", columns + 1));
        input.resize(size(columns + 5)).expect("the session lives");
        line(&ask(columns + 5));
        expect(&mut session, &format!("at-{}", columns + 6));
        // The end of the session ends its processes.
    }
    let state = container.inspect();
    assert_eq!(state["status"]["state"], "CONTAINER_RUNNING");
    sh(&format!(
        "echo exit 7 | crictl attach -i {} || true",
        container.id
    ));
    assert_eq!(container.wait(), 7);
}

fn an_exec_whose_client_vanishes_sees_its_input_end() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    sh(&format!(
        "mkfifo /tmp/in
         crictl exec -i {0} cat </tmp/in >/dev/null & client=$!
         exec 3>/tmp/in
         until crictl exec {0} pidof cat; do sleep 0.1; done
         kill -9 $client
         for i in $(seq 1000); do crictl exec {0} pidof cat || break; sleep 0.1; done
         rm /tmp/in; exec 3>&-
         ! crictl exec {0} pidof cat",
        container.id
    ));
}

fn three_hundred_execs_leave_nothing() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let execs = |count: u32| {
        let script = format!(
            "for i in $(seq {count}); do
               [ \"$(crictl exec --sync {0} echo $i)\" = $i ]
               [ \"$(echo $i | crictl exec -i {0} cat)\" = $i ]
             done",
            container.id
        );
        let output = TestHost::shared()
            .shell(&format!("set -e; {script}"))
            .limit(Duration::from_secs(1200))
            .run()
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(output.status, 0, "{}", text(&output.stderr));
    };
    // Of the shim, and of the VMM where there is one: descriptors and threads; last the shim's
    // resident memory in KiB.
    let shim = sh(&format!(
        "pgrep -f '[c]ontainerd-shim-joey-v2.* -id {}'",
        pod.id
    ));
    let vmm = sh(&format!("pgrep -P {shim} joey-vmm || true"));
    let measure = || -> (Vec<u64>, u64) {
        let script = format!(
            "for p in {shim} {vmm}; do ls /proc/$p/fd | wc -l; ls /proc/$p/task | wc -l; done; \
             awk '/^VmRSS/{{print $2}}' /proc/{shim}/status"
        );
        let lines = sh(&script);
        let mut numbers: Vec<u64> = lines
            .lines()
            .map(|number| number.parse().expect("a number"))
            .collect();
        let memory = numbers.pop().expect("the shim's memory");
        (numbers, memory)
    };
    execs(10);
    let before = measure();
    execs(150);
    // Threads for blocking work end a moment after it.
    let deadline = Instant::now() + Duration::from_secs(30);
    let after = loop {
        let after = measure();
        if after.0 == before.0 || Instant::now() > deadline {
            break after;
        }
    };
    assert_eq!(after.0, before.0, "descriptors and threads");
    assert!(
        after.1 < before.1 + 512,
        "the shim's memory in KiB: {} before, {} after",
        before.1,
        after.1
    );
}
