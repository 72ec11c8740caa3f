//! A pod that is paused as a whole, as containerd's Task service has it paused.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Pod, fails, sh};
use crate::leaks;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "pause::a_paused_pod_stands_still",
            a_paused_pod_stands_still,
        ),
        trial(
            "pause::a_paused_pod_can_be_stopped",
            a_paused_pod_can_be_stopped,
        ),
    ]
}

fn task(pod: &Pod, action: &str) {
    sh(&format!("ctr -n k8s.io task {action} {}", pod.id));
}

/// As containerd knows it.
fn state(pod: &Pod) -> String {
    sh(&format!(
        "ctr -n k8s.io task ls | sed -n 's/^{} *[0-9]* *//p'",
        pod.id
    ))
}

fn a_paused_pod_stands_still() {
    let pod = Pod::run();
    let script = "i=0; while :; do i=$((i+1)); echo $i > /count; done";
    let container = pod.start(BUSYBOX, &["sh", "-c", script]);
    assert_eq!(state(&pod), "RUNNING");

    task(&pod, "pause");
    assert_eq!(state(&pod), "PAUSED");
    let said = fails(&format!("crictl exec {} true", container.id));
    assert!(said.contains("is paused: resume it first"), "{said}");
    let pid = pod.inspect()["info"]["pid"].as_u64().expect("pid");
    // What the vCPU has had, in the VMM's user and guest time.
    let time = || sh(&format!("awk '{{print $14}}' /proc/{pid}/task/*/stat"));
    let before = time();
    sh("sleep 1");
    assert_eq!(time(), before, "the guest ran");
    let again = fails(&format!("ctr -n k8s.io task pause {}", pod.id));
    assert!(again.contains("pause"), "{again}");

    task(&pod, "resume");
    assert_eq!(state(&pod), "RUNNING");
    container.counts_on();
}

fn a_paused_pod_can_be_stopped() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = pod.create(
            BUSYBOX,
            json!({"command": ["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]}),
        );
        sh(&format!("crictl start {}", container.id));
        assert_eq!(container.sh("echo there"), "there");
        task(&pod, "pause");
        sh(&format!("crictl stop --timeout 30 {}", container.id));
        // It was let go on, and asked first.
        assert_eq!(container.wait(), 7);
        assert_eq!(state(&pod), "RUNNING");
        task(&pod, "pause");
        sh(&format!("crictl stopp {}", pod.id));
    }
    leaks::settled(&before);
}
