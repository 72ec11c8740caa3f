//! Pods that are saved to disk, and go on.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, DEBIAN, Pod, fails, run, sh};
use crate::leaks;
use crate::trial;
use crate::volumes::Loop;

/// Files that are in the image only, as one sum.
const SUM: &str = "find /usr/lib/x86_64-linux-gnu -type f | sort | head -n 12 | xargs cat | md5sum";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("saved::a_pod_goes_on", a_pod_goes_on),
        trial("saved::connections_go_on", connections_go_on),
        trial(
            "saved::a_pod_can_be_stopped_and_lost",
            a_pod_can_be_stopped_and_lost,
        ),
        trial("saved::volumes_go_on", volumes_go_on),
        trial(
            "saved::a_full_disk_loses_nothing",
            a_full_disk_loses_nothing,
        ),
        trial(
            "saved::what_is_damaged_is_refused",
            what_is_damaged_is_refused,
        ),
    ]
}

fn save(pod: &Pod) {
    sh(&format!("joeyctl snapshot save {}", pod.id));
}

fn restore(pod: &Pod) {
    sh(&format!("joeyctl snapshot restore {}", pod.id));
}

/// As joey knows it.
fn state(pod: &Pod) -> String {
    sh(&format!(
        "joeyctl ps --json | jq -r '.[] | select(.id == \"{}\") | .state'",
        pod.id
    ))
}

/// A pid of its record.
fn pid(pod: &Pod, of: &str) -> u32 {
    let pid = sh(&format!(
        "jq .{of}_pid /run/joey/k8s.io/{}/sandbox.json",
        pod.id
    ));
    pid.parse().expect("a pid")
}

fn lives(pid: u32) -> bool {
    run(&format!("kill -0 {pid}")).status == 0
}

/// A container that counts, and tells how far it is.
fn counter(pod: &Pod) -> Container {
    pod.start(
        BUSYBOX,
        &[
            "sh",
            "-c",
            "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done",
        ],
    )
}

fn a_pod_goes_on() {
    sh(&format!("crictl pull {DEBIAN}"));
    let pod = Pod::run();
    let counter = counter(&pod);
    let large = pod.create(
        DEBIAN,
        json!({
            "command": ["sleep", "3600"],
            "linux": {"resources": {
                "memory_limit_in_bytes": 512 << 20, "cpu_quota": 200_000, "cpu_period": 100_000
            }}
        }),
    );
    sh(&format!("crictl start {}", large.id));
    // Into memory that was plugged, which is taken first, on a processor that was.
    let sum = large.sh("until taskset -c 1 true 2> /dev/null; do sleep 0.2; done
        seq 3000000 | head -c 20000000 > /dev/shm/file; taskset -c 1 md5sum /dev/shm/file");
    let vmm = pid(&pod, "vmm");
    save(&pod);
    assert_eq!(state(&pod), "saved");
    assert!(!lives(vmm), "the VMM lives");
    let said = fails(&format!("crictl exec {} true", counter.id));
    assert!(said.contains("is saved: restore it first"), "{said}");
    let said = fails(&format!("joeyctl snapshot save {}", pod.id));
    assert!(said.contains("hibernates already"), "{said}");
    let metrics = sh("joeyctl metrics");
    assert!(metrics.contains(&pod.id), "{metrics}");
    // A clock that had stood still would be late.
    sh("sleep 5");
    restore(&pod);
    assert_eq!(state(&pod), "running");
    let said = fails(&format!("joeyctl snapshot restore {}", pod.id));
    assert!(said.contains("cannot resume: it is running"), "{said}");

    counter.counts_on();
    let late = sh(&format!(
        "guest=$(crictl exec {} date +%s); echo $(($(date +%s) - guest))",
        counter.id
    ));
    assert!(late.parse::<i64>().expect("seconds") < 4, "{late} s late");
    assert_eq!(large.sh("taskset -c 1 md5sum /dev/shm/file"), sum);
    // Of the image, what was never read before; and what comes anew.
    let other = Pod::run();
    let fresh = other.start(DEBIAN, &["sleep", "3600"]);
    let again = pod.start(DEBIAN, &["sleep", "3600"]);
    let sums = [&fresh, &large, &again].map(|container| container.sh(SUM));
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    // More than once.
    save(&pod);
    restore(&pod);
    counter.counts_on();
    assert_eq!(large.sh("md5sum < /dev/shm/file")[..32], sum[..32]);
}

/// A client's streams, and the pod's network.
fn connections_go_on() {
    let pod = Pod::run();
    let server = pod.start(
        BUSYBOX,
        &[
            "sh",
            "-c",
            "mkdir /www; echo page > /www/index.html; httpd -f -h /www",
        ],
    );
    let said = sh(&format!(
        "rm -f /tmp/words /tmp/said; mkfifo /tmp/words
        crictl exec -i {id} sh -c 'echo ready; while read word; do echo got $word; done' \
            < /tmp/words > /tmp/said 2>&1 &
        exec 3> /tmp/words
        until grep -q ready /tmp/said; do sleep 0.2; done
        echo one >&3
        until grep -q one /tmp/said; do sleep 0.2; done
        joeyctl snapshot save {pod} || exit 1
        echo two >&3
        sleep 1; grep two /tmp/said && exit 1
        joeyctl snapshot restore {pod} || exit 1
        echo three >&3
        exec 3>&-
        wait $! || exit 1
        cat /tmp/said; rm /tmp/words /tmp/said",
        id = server.id,
        pod = pod.id
    ));
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["ready", "got one", "got two", "got three"]
    );
    let address = &pod.addresses()[0];
    assert_eq!(sh(&format!("curl -sf http://{address}/")), "page");
}

fn a_pod_can_be_stopped_and_lost() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = counter(&pod);
        container.counts_on();
        save(&pod);
        sh(&format!("crictl stop --timeout 30 {}", container.id));
        // It was restored, and asked first.
        assert_eq!(container.wait(), 7);
        save(&pod);
        sh(&format!("crictl stopp {}", pod.id));
    }
    {
        let pod = Pod::run();
        save(&pod);
        let shim = pid(&pod, "shim");
        sh(&format!(
            "kill -9 {shim}; while kill -0 {shim} 2> /dev/null; do sleep 0.1; done"
        ));
    }
    leaks::settled(&before);
}

/// A directory and a block device of the host, in use all the while.
fn volumes_go_on() {
    let disk = Loop::new("8M");
    let pod = Pod::run();
    sh("mkdir -p /tmp/shared && echo before > /tmp/shared/file");
    let start = |log: &str| {
        let script = format!(
            "exec 3>> /shared/{log}
            trap 'exit 7' TERM
            i=0; while :; do i=$((i+1)); echo $i >&3; echo $i > /count; sleep 0.1; done"
        );
        let container = pod.create(
            BUSYBOX,
            json!({
                "command": ["sh", "-c", script],
                "mounts": [{"host_path": "/tmp/shared", "container_path": "/shared"}],
                "devices": [{
                    "host_path": disk.device, "container_path": "/dev/data", "permissions": "rwm"
                }]
            }),
        );
        sh(&format!("crictl start {}", container.id));
        container
    };
    let container = start("log");
    container.sh("echo saved | dd of=/dev/data bs=512 seek=8 conv=sync,fsync 2> /dev/null");
    let server = virtiofsd(&pod);
    for round in 1..=2 {
        let vmm = pid(&pod, "vmm");
        save(&pod);
        assert_eq!((lives(vmm), virtiofsd(&pod)), (false, server));
        // What the host does meanwhile is seen afterwards.
        sh(&format!(
            "echo {round} > /tmp/shared/file; touch /tmp/shared/new-{round}"
        ));
        restore(&pod);
        container.counts_on();
        container.sh(&format!(
            "until [ $(cat /shared/file) = {round} ]; do sleep 0.2; done; test -e /shared/new-{round}"
        ));
        // Through a file that was open.
        sh("count=$(wc -l < /tmp/shared/log)
            until [ $(wc -l < /tmp/shared/log) -gt $count ]; do sleep 0.2; done");
        container.sh(&format!(
            "dd if=/dev/data bs=512 skip=8 count=1 2> /dev/null | grep -q saved &&
            echo round {round} | dd of=/dev/data bs=512 seek=16 conv=sync,fsync 2> /dev/null"
        ));
        sh(&format!(
            "dd if={} bs=512 skip=16 count=1 2> /dev/null | grep -q 'round {round}'",
            disk.file
        ));
    }
    // Another container has the same, and what the first had can go.
    let other = start("other");
    sh(&format!("crictl stop --timeout 30 {}", container.id));
    assert_eq!(container.wait(), 7);
    // Nothing was written twice, and nothing is lost.
    sh("seq $(wc -l < /tmp/shared/log) | cmp - /tmp/shared/log");
    sh(&format!("crictl rm {}", container.id));
    save(&pod);
    restore(&pod);
    other.counts_on();
    drop(pod);
    sh("rm -r /tmp/shared");
}

/// The process that serves a pod's directories of the host.
fn virtiofsd(pod: &Pod) -> u32 {
    let shim = pid(pod, "shim");
    let pid = sh(&format!("pgrep -P {shim} virtiofsd"));
    pid.parse().expect("one virtiofsd")
}

fn a_full_disk_loses_nothing() {
    let pod = Pod::run();
    let counter = counter(&pod);
    sh(
        "available=$(df --output=avail -B1 /var/lib/joey | tail -n 1)
        fallocate -l $((available - (8 << 20))) /var/lib/joey/full",
    );
    let said = fails(&format!("joeyctl snapshot save {}", pod.id));
    sh("rm /var/lib/joey/full");
    assert!(said.contains("No space left on device"), "{said}");
    counter.counts_on();
    save(&pod);
    restore(&pod);
    counter.counts_on();
}

/// A flipped byte in what was saved: it is not restored, and not lost.
fn what_is_damaged_is_refused() {
    let pod = Pod::run();
    let counter = counter(&pod);
    counter.counts_on();
    save(&pod);
    let shim = pid(&pod, "shim");
    // The smallest file without a name: scratch and memory are larger.
    let state_file = sh(&format!(
        "cd /proc/{shim}/fd; for fd in *; do case $(readlink $fd) in
            /var/lib/joey/*deleted*) echo $(stat -L -c %s $fd) /proc/{shim}/fd/$fd;;
        esac; done | sort -n | head -n 1 | cut -d ' ' -f 2"
    ));
    let byte = sh(&format!(
        "dd if={state_file} bs=1 skip=500 count=1 status=none | od -An -tu1"
    ));
    let write = |value: u8| {
        sh(&format!(
            "printf '\\{value:03o}' | dd of={state_file} bs=1 seek=500 conv=notrunc status=none"
        ))
    };
    let byte: u8 = byte.parse().expect("a byte");
    write(byte ^ 1);
    let said = fails(&format!("joeyctl snapshot restore {}", pod.id));
    assert!(
        said.contains("cannot restore the VM, which is kept") && said.contains("damaged"),
        "{said}"
    );
    assert_eq!(state(&pod), "saved");
    write(byte);
    restore(&pod);
    counter.counts_on();
}
