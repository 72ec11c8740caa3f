//! Pods that are saved to disk, and go on.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, DEBIAN, Pod, fails, run, sh};
use crate::leaks;
use crate::trial;

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
        trial("saved::what_cannot_be_goes_on", what_cannot_be_goes_on),
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

/// Waits until it has counted on.
fn counts(container: &Container) {
    let count: u64 = container.sh("cat /count").parse().expect("a number");
    sh(&format!(
        "until [ $(crictl exec {} cat /count) -gt {count} ]; do sleep 0.2; done",
        container.id
    ));
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

    counts(&counter);
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
    counts(&counter);
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
        counts(&container);
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

fn what_cannot_be_goes_on() {
    let pod = Pod::run();
    let counter = counter(&pod);
    // On a disk that is full.
    sh(
        "available=$(df --output=avail -B1 /var/lib/joey | tail -n 1)
        fallocate -l $((available - (8 << 20))) /var/lib/joey/full",
    );
    let said = fails(&format!("joeyctl snapshot save {}", pod.id));
    sh("rm /var/lib/joey/full");
    assert!(said.contains("No space left on device"), "{said}");
    counts(&counter);
    save(&pod);
    restore(&pod);
    // With a directory of the host.
    sh("mkdir -p /tmp/shared");
    let container = pod.create(
        BUSYBOX,
        json!({
            "command": ["sleep", "3600"],
            "mounts": [{"host_path": "/tmp/shared", "container_path": "/shared"}]
        }),
    );
    sh(&format!("crictl start {}", container.id));
    let vmm = pid(&pod, "vmm");
    let said = fails(&format!("joeyctl snapshot save {}", pod.id));
    assert!(
        said.contains("directories of the host are shared"),
        "{said}"
    );
    assert_eq!((state(&pod), pid(&pod, "vmm")), ("running".into(), vmm));
    container.sh("echo goes on > /shared/file");
    drop(pod);
    sh("rm -r /tmp/shared");
}

/// A flipped byte in what was saved: it is not restored, and not lost.
fn what_is_damaged_is_refused() {
    let pod = Pod::run();
    let counter = counter(&pod);
    counts(&counter);
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
    counts(&counter);
}
