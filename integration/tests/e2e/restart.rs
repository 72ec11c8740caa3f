//! containerd is killed and started anew at bad moments: what ran goes on, what
//! happened meanwhile is known, what was half done can be removed.

use integration::combination::{Combination, Way};
use integration::testbed::TestHost;
use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, Pod, handler, run, sh, text};
use crate::leaks;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("restart::a_running_pod_goes_on", a_running_pod_goes_on),
        trial(
            "restart::an_exit_meanwhile_is_known",
            an_exit_meanwhile_is_known,
        ),
        trial("restart::an_open_exec_ends", an_open_exec_ends),
        trial(
            "restart::a_client_attaches_afterwards",
            a_client_attaches_afterwards,
        ),
        trial(
            "restart::while_a_container_is_made",
            while_a_container_is_made,
        ),
        trial("restart::while_a_pod_is_made", while_a_pod_is_made),
    ]
}

const KILL: &str = "pid=$(cat /run/containerd.pid) && kill -9 $pid && while kill -0 $pid 2>/dev/null; do sleep 0.02; done";

/// Starts containerd and waits until the CRI has taken up its state again.
fn start() {
    let version = Combination::of_this_run().containerd;
    sh(&format!("start-containerd {version}"));
    sh("for i in $(seq 1000); do crictl ps >/dev/null 2>&1 && exit 0; sleep 0.1; done; crictl ps");
}

fn restart() {
    sh(KILL);
    start();
}

/// The last number that the container has printed.
fn last_number(container: &Container) -> u64 {
    sh(&format!(
        "for i in $(seq 1000); do n=$(crictl logs --tail 1 {}); [ -n \"$n\" ] && break; sleep 0.1; done; echo $n",
        container.id
    ))
    .parse()
    .expect("the container prints numbers")
}

fn a_running_pod_goes_on() {
    let pod = Pod::run();
    let script =
        "trap 'echo 0; exit 7' TERM; i=1; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let container = pod.start(BUSYBOX, &["sh", "-c", script]);
    let before = last_number(&container);
    restart();
    assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_READY");
    assert_eq!(container.inspect()["status"]["state"], "CONTAINER_RUNNING");
    assert!(sh("crictl ps -q --no-trunc").contains(&container.id));
    assert!(sh("crictl pods -q --no-trunc --state ready").contains(&pod.id));
    assert_eq!(container.sh("echo inside"), "inside");
    // Its output still arrives, and more than a FIFO holds of it.
    sh(&format!(
        "for i in $(seq 1000); do [ $(crictl logs --tail 1 {}) -gt {} ] && exit 0; sleep 0.1; done; exit 1",
        container.id,
        before + 20
    ));
    // Further containers come, and the old one goes as it should.
    let second = pod.start(BUSYBOX, &["sleep", "1000"]);
    assert_eq!(second.sh("echo second"), "second");
    sh(&format!("crictl stop -t 30 {}", container.id));
    assert_eq!(container.inspect()["status"]["exitCode"], 7);
    assert_eq!(last_number(&container), 0);
    sh(&format!("crictl rm {}", container.id));
    // A second time, with a container that never saw the first.
    restart();
    assert_eq!(second.sh("echo again"), "again");
    assert_eq!(second.inspect()["status"]["state"], "CONTAINER_RUNNING");
}

fn an_exit_meanwhile_is_known() {
    let pod = Pod::run();
    // Asked by HTTP, the container ends: nobody needs containerd for that.
    let script = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\ntouch /end\\necho; echo\\n' > /www/cgi-bin/end; chmod 755 /www/cgi-bin/end; httpd -f -p 80 -h /www & while [ ! -e /end ]; do sleep 0.05; done; echo farewell; exit 7";
    let container = pod.start(BUSYBOX, &["sh", "-c", script]);
    let url = format!("http://{}/", pod.addresses().remove(0));
    sh(&format!(
        "for i in $(seq 1000); do curl -s -o /dev/null --max-time 5 {url} && exit 0; sleep 0.1; done; exit 1"
    ));
    sh(KILL);
    sh(&format!(
        "curl -s -o /dev/null --max-time 10 {url}cgi-bin/end; for i in $(seq 1000); do curl -s -o /dev/null --max-time 5 {url} || exit 0; sleep 0.1; done; exit 1"
    ));
    start();
    let status = container.inspect()["status"].clone();
    assert_eq!(status["state"], "CONTAINER_EXITED", "{status}");
    assert_eq!(status["exitCode"], 7, "{status}");
    let logs = run(&format!("crictl logs {}", container.id));
    assert!(
        text(&logs.stdout).contains("farewell"),
        "{}",
        text(&logs.stdout)
    );
    sh(&format!("crictl rm {}", container.id));
}

fn an_open_exec_ends() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        let script = format!(
            "crictl exec {} sh -c 'touch /begun; exec sleep 1000'",
            container.id
        );
        let open = TestHost::shared()
            .shell(&script)
            .spawn()
            .expect("the host takes commands");
        container.sh("for i in $(seq 1000); do [ -e /begun ] && exit 0; sleep 0.1; done; exit 1");
        restart();
        // Its client is gone with the containerd that it spoke to.
        drop(open);
        assert_eq!(container.sh("echo inside"), "inside");
        sh(&format!("crictl stop -t 0 {}", container.id));
        assert_eq!(container.inspect()["status"]["exitCode"], 137);
        sh(&format!("crictl rm {}", container.id));
    }
    leaks::settled(&before);
}

fn a_client_attaches_afterwards() {
    let pod = Pod::run();
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["cat"], "stdin": true, "stdin_once": false}),
    );
    sh(&format!("crictl start {}", container.id));
    restart();
    // attach ends when its input has; the echo is in the log whenever it comes.
    sh(&format!(
        "echo hello | timeout 30 crictl attach -i {0}; for i in $(seq 1000); do crictl logs {0} | grep -q hello && exit 0; sleep 0.1; done; exit 1",
        container.id
    ));
    assert_eq!(container.inspect()["status"]["state"], "CONTAINER_RUNNING");
}

/// Starts `script` in the background, kills containerd as soon as `moment` is true,
/// and starts it again.
fn restart_while(script: &str, moment: &str) {
    sh(&format!(
        "({script}) >/dev/null 2>&1 & for i in $(seq 100000); do {moment} && break; done; {KILL}; wait"
    ));
    start();
}

fn while_a_container_is_made() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let unlucky = pod.create(BUSYBOX, json!({"command": ["sleep", "1000"]}));
        let bundle = format!(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}",
            unlucky.id
        );
        restart_while(
            &format!("crictl start {}", unlucky.id),
            &format!("[ -e {bundle}/config.json ]"),
        );
        assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_READY");
        sh(&format!("crictl rm -f {}", unlucky.id));
        let next = pod.start(BUSYBOX, &["sleep", "1000"]);
        assert_eq!(next.sh("echo next"), "next");
    }
    leaks::settled(&before);
}

fn while_a_pod_is_made() {
    let before = leaks::snapshot();
    let config = Pod::write_config(json!({}));
    let bundles = if Combination::of_this_run().is_by_sandbox_api() {
        "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io/*"
    } else {
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/*"
    };
    let moments = if Combination::of_this_run().has_vm() {
        // The shim has begun; the VM runs.
        [
            "[ -n \"$(ls -A /run/joey/k8s.io 2>/dev/null)\" ]".to_owned(),
            "ls /run/joey/k8s.io/*/sandbox.json >/dev/null 2>&1".to_owned(),
        ]
    } else {
        // The shim has begun, or the command has in its place; the first process is there.
        let kept = match Combination::of_this_run().way {
            Way::Command => ["rootfs", "init.pid"],
            _ => ["joey", "joey/*/state.json"],
        };
        kept.map(|name| format!("ls -d {bundles}/{name} >/dev/null 2>&1"))
    };
    for moment in &moments {
        restart_while(
            &format!("crictl runp --runtime {} {config}", handler()),
            moment,
        );
        sh("crictl pods -q | xargs -r crictl rmp -f");
        assert_eq!(sh("crictl pods -q"), "");
        leaks::settled(&before);
    }
    // And the node is as good as before.
    let pod = Pod::run();
    assert_eq!(
        pod.start(BUSYBOX, &["sleep", "1000"]).sh("echo fine"),
        "fine"
    );
}
