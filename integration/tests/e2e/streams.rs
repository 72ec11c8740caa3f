//! Logs: whole, in order, stdout and stderr apart, under back pressure.

use integration::testbed::TestHost;
use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Pod, run, sh, text};
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
    for n in 0..3 {
        assert_eq!(container.sh(&format!("echo {n}")), n.to_string());
    }
    // The end of the session ends its processes.
    drop(stalled);
}
