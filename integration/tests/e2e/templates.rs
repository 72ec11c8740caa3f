//! Sandboxes that start from a template: they are whole, have nothing of each other, and
//! boot when there is none that can be used. These change what all sandboxes of the host
//! start from, so they run one at a time.

use std::collections::BTreeSet;

use libtest_mimic::Trial;

use crate::cri::{BUSYBOX, Pod, sh};
use crate::leaks;
use crate::trial;

/// Pods whose randomness is compared, and that many where time is no matter.
const PODS: usize = 8;
const MANY_PODS: usize = 100;

pub fn alone() -> Vec<Trial> {
    vec![
        trial(
            "templates::a_sandbox_starts_from_one",
            a_sandbox_starts_from_one,
        ),
        trial("templates::sandboxes_share_no_randomness", || {
            share_no_randomness(PODS)
        }),
        trial("templates::a_hundred_share_no_randomness", || {
            share_no_randomness(MANY_PODS)
        }),
        trial(
            "templates::one_that_is_damaged_is_made_anew",
            one_that_is_damaged_is_made_anew,
        ),
        trial(
            "templates::spare_vms_that_are_gone_hold_nobody_up",
            spare_vms_that_are_gone_hold_nobody_up,
        ),
        trial(
            "templates::a_spare_vm_that_dies_when_it_is_taken",
            a_spare_vm_that_dies_when_it_is_taken,
        ),
    ]
}

/// Whether a stage of this name was part of a pod's start.
fn had(pod: &Pod, stage: &str) -> bool {
    let stages = sh(&format!("cat /run/joey/k8s.io/{}/stages.json", pod.id));
    stages.contains(&format!("\"name\":\"{stage}\""))
}

/// Waits until a script succeeds.
fn wait_for(script: &str) {
    sh(&format!("until {script}; do sleep 0.2; done"));
}

/// Removes all templates, and the VMs that wait.
fn drain() {
    sh("joeyctl template remove");
}

fn build() {
    sh("joeyctl template build");
    assert!(sh("joeyctl template list").contains("used"));
}

fn a_sandbox_starts_from_one() {
    let before = leaks::snapshot();
    drain();
    build();
    {
        let first = Pod::run();
        assert!(had(&first, "restore") && !had(&first, "load"));
        one_waits();
        let second = Pod::run();
        assert!(had(&second, "take") && !had(&second, "restore"));
        for pod in [&first, &second] {
            let container = pod.start(BUSYBOX, &["sleep", "1000"]);
            let config = pod.inspect();
            let name = config["status"]["metadata"]["name"].as_str().unwrap();
            let address = config["status"]["network"]["ip"].as_str().unwrap();
            assert_eq!(container.sh("hostname"), name);
            let seen = container.sh("ip -4 addr show dev eth0");
            assert!(seen.contains(&format!("inet {address}/")), "{seen}");
            // The pod pays for a VMM that it has taken, too.
            let pid = config["info"]["pid"].as_u64().unwrap();
            wait_for(&format!("grep -q {}/vmm /proc/{pid}/cgroup", pod.id));
        }
    }
    leaks::settled(&before);
}

fn share_no_randomness(pods: usize) {
    let mut seen = BTreeSet::new();
    let mut count = 0;
    for _ in 0..pods {
        let pod = Pod::run();
        assert!(!had(&pod, "load"), "it has booted");
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        // What the kernel and what a new program makes of it.
        let script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; \
             head -c 16 /dev/urandom | od -An -tx1; head -c 16 /dev/random | od -An -tx1; \
             od -An -tx1 -j 0 -N 16 /dev/urandom; cat /sys/class/net/eth0/address";
        for line in container.sh(script).lines() {
            count += 1;
            assert!(seen.insert(line.to_owned()), "{line} was seen before");
        }
    }
    assert_eq!(count, pods * 6);
}

fn one_that_is_damaged_is_made_anew() {
    for file in ["state", "memory"] {
        drain();
        build();
        let path = format!("/run/joey/.templates/*/{file}");
        // A bit in the middle; of the memory one in what the guest uses.
        sh(&format!(
            "f=$(echo {path}); printf '\\377' | dd of=$f bs=1 seek=5000 conv=notrunc status=none"
        ));
        let pod = Pod::run();
        assert!(had(&pod, "load"), "it did not boot");
        let log = sh("grep 'a template cannot be used' /var/log/containerd.log | tail -n 1");
        assert!(
            log.contains("is not as it was made") && log.contains(&pod.id),
            "{log}"
        );
        wait_for("joeyctl template list | grep -q used");
        drop(pod);
        let pod = Pod::run();
        assert!(!had(&pod, "load"), "it has booted");
    }
}

/// Waits until a VM waits for a pod.
fn one_waits() {
    wait_for("ls /run/joey/.pool/*/[0-9]*.* > /dev/null 2>&1");
}

fn spare_vms_that_are_gone_hold_nobody_up() {
    drop(Pod::run());
    one_waits();
    sh("for p in $(cat /sys/fs/cgroup/joey-pool/vmm/cgroup.procs); do kill -9 $p; done");
    let pod = Pod::run();
    assert!(had(&pod, "restore"));
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    assert_eq!(container.sh("echo alive"), "alive");
}

fn a_spare_vm_that_dies_when_it_is_taken() {
    let before = leaks::snapshot();
    drop(Pod::run());
    one_waits();
    // It can be taken, and answers to nothing before it dies.
    sh(
        "for p in $(cat /sys/fs/cgroup/joey-pool/vmm/cgroup.procs); do \
         kill -STOP $p; (sleep 5; kill -9 $p) > /dev/null 2>&1 & done",
    );
    {
        let pod = Pod::run();
        assert!(had(&pod, "take") && had(&pod, "load"));
        let log = sh("grep 'is of no use: the sandbox boots' /var/log/containerd.log | tail -n 1");
        assert!(log.contains(&pod.id), "{log}");
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        assert_eq!(container.sh("echo alive"), "alive");
    }
    leaks::settled(&before);
}
