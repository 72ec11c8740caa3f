//! What pods may leave on a node: nothing.

use libtest_mimic::Trial;

use crate::cri::sh;
use crate::trial;

/// What is compared: each line of output is one thing that exists.
const KINDS: [(&str, &str); 8] = [
    (
        "processes",
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *joey*|*mkfs.*) readlink $p/exe;; esac; done",
    ),
    ("mounts", "awk '{print $5, $9}' /proc/self/mountinfo | sort"),
    ("network namespaces", "ls /run/netns"),
    (
        "network devices",
        "ls /sys/class/net | sed 's/^veth.*/veth/' | sort",
    ),
    (
        "BPF programs",
        "bpftool -j prog show | jq -r '.[].name' | sort",
    ),
    (
        "cgroups",
        "find /sys/fs/cgroup -mindepth 1 -type d | grep -v /init",
    ),
    (
        "sockets and state",
        "find /run/joey /run/containerd/s /run/containerd/io.containerd.runtime.v2.task -mindepth 2",
    ),
    (
        "files",
        "find /var/lib/joey /tmp /dev/shm -type f ! -name '*.erofs' ! -name '*lock' ! -name '*.ext4' ! -name '*.json' ! -name '*.log'",
    ),
];

/// One listing for each of [`KINDS`].
pub type Snapshot = Vec<String>;

/// The host as it is now.
pub fn snapshot() -> Snapshot {
    // `ls`, `grep` and `find` fail where there is nothing, which is the aim.
    KINDS
        .iter()
        .map(|(_, script)| sh(&format!("{script}; true")))
        .collect()
}

/// Compares the host with how it was before the first test.
pub fn trials(before: Option<Snapshot>) -> Vec<Trial> {
    let check = move || {
        let before = before
            .as_ref()
            .expect("a snapshot was taken before the tests");
        let after = snapshot();
        let left: Vec<String> = KINDS
            .iter()
            .zip(before.iter().zip(&after))
            .filter(|(_, (before, after))| before != after)
            .map(|((kind, _), (before, after))| {
                format!("{kind}\nbefore:\n{before}\nafter:\n{after}")
            })
            .collect();
        assert!(left.is_empty(), "left behind: {}", left.join("\n"));
    };
    vec![
        trial("leaks::nothing_is_left", check),
        trial("leaks::checker_sees_a_leak", checker_sees_a_leak),
    ]
}

/// The checker is only worth something if it can fail.
fn checker_sees_a_leak() {
    let before = snapshot();
    sh("mkdir -p /run/joey/k8s.io/leaked && ip netns add joey-leaked");
    let after = snapshot();
    sh("rmdir /run/joey/k8s.io/leaked && ip netns del joey-leaked");
    let kinds: Vec<&str> = KINDS
        .iter()
        .zip(before.iter().zip(&after))
        .filter(|(_, (before, after))| before != after)
        .map(|((kind, _), _)| *kind)
        .collect();
    assert!(
        kinds.contains(&"sockets and state") && kinds.contains(&"network namespaces"),
        "{kinds:?}"
    );
}
