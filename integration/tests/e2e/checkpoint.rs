//! Containers of joey's command line that criu saves and brings back.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{fails, merge, parse, sh, write};
use crate::trial;

const DIR: &str = "/run/joey-checkpoint";
const CGROUP: &str = "/joey-checkpoint";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("checkpoint::life_goes_on", life_goes_on),
        trial("checkpoint::without_criu", without_criu),
    ]
}

/// A container with limits that counts in a file, removed when dropped.
struct Counter;

impl Counter {
    fn start() -> Self {
        sh(&format!(
            "mkdir -p {DIR}/rootfs/bin {DIR}/rootfs/proc {DIR}/rootfs/dev {DIR}/rootfs/sys
            cp /usr/bin/busybox {DIR}/rootfs/bin/sh; ln -s sh {DIR}/rootfs/bin/sleep
            cd {DIR} && joey spec"
        ));
        let mut spec = parse(&sh(&format!("cat {DIR}/config.json")));
        merge(
            &mut spec,
            json!({
                "process": {"terminal": false, "args": ["/bin/sh", "-c",
                    "n=0; while sleep 0.1; do n=$((n+1)); echo $n >/count; done"]},
                "root": {"readonly": false},
                "linux": {"cgroupsPath": CGROUP,
                    "resources": {"pids": {"limit": 20}, "memory": {"limit": 67_108_864}}},
            }),
        );
        write(&format!("{DIR}/config.json"), &spec);
        // criu saves no stream that is a file of the host's.
        sh(&format!(
            "cd {DIR} && joey run -d saved </dev/null >/dev/null 2>&1"
        ));
        Self
    }

    fn count(&self) -> u64 {
        let text = sh(&format!("cat {DIR}/rootfs/count"));
        text.parse().expect("a number")
    }

    /// Sees that it counts on from a number, and that its limits hold.
    fn sees_life(&self, from: u64) {
        sh(&format!(
            "i=0; until [ \"$(cat {DIR}/rootfs/count)\" -gt {} ]; do
                i=$((i+1)); [ $i -lt 300 ]; sleep 0.1
            done",
            from + 3
        ));
        let state = parse(&sh("joey state saved"));
        assert_eq!(state["status"], "running");
        let cgroup = sh(&format!("sed -n s,^0::,,p /proc/{}/cgroup", state["pid"]));
        assert_eq!(cgroup, CGROUP);
        let limits = sh(&format!(
            "cd /sys/fs/cgroup{CGROUP}; cat pids.max memory.max"
        ));
        assert_eq!(limits, "20\n67108864");
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        sh(&format!(
            "joey delete --force saved; rm -rf {DIR}; ! [ -e /sys/fs/cgroup{CGROUP} ]"
        ));
    }
}

fn life_goes_on() {
    let counter = Counter::start();
    counter.sees_life(0);
    sh(&format!(
        "cd {DIR} && joey checkpoint --image-path {DIR}/image saved"
    ));
    fails("joey state saved");
    sh(&format!("! [ -e /sys/fs/cgroup{CGROUP} ]"));
    let saved = counter.count();
    sh(&format!(
        "cd {DIR} && joey restore -d --image-path {DIR}/image saved </dev/null >/dev/null 2>&1"
    ));
    counter.sees_life(saved);
    // What came back can be saved again, and go on all the same.
    let before = counter.count();
    sh(&format!(
        "cd {DIR} && joey checkpoint --leave-running --image-path {DIR}/second saved"
    ));
    counter.sees_life(before);
    assert_eq!(sh("joey exec saved sh -c 'echo in'"), "in");
}

fn without_criu() {
    let counter = Counter::start();
    counter.sees_life(0);
    let error = fails(&format!(
        "mkdir {DIR}/path; ln -s $(command -v joey) {DIR}/path/joey
        PATH={DIR}/path joey checkpoint --image-path {DIR}/image saved"
    ));
    assert!(error.contains("criu is not installed"), "{error}");
    counter.sees_life(counter.count());
}
