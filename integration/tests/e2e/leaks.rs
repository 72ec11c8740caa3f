//! What pods may leave on a node: nothing.

use libtest_mimic::Trial;

use crate::cri::sh;
use crate::trial;

/// What is compared: each line of output is one thing that exists.
const KINDS: [(&str, &str); 9] = [
    (
        "processes",
        "for p in /proc/[0-9]*; do c=$(readlink $p/exe) && case $c in *joey*|*mkfs.erofs*) echo $c;; esac; done",
    ),
    (
        "mounts",
        "awk '{print $5, $9}' /proc/self/mountinfo | grep -v /var/lib/containerd/tmpmounts || true",
    ),
    (
        "network namespaces",
        "ls /run/netns /var/run/netns 2>/dev/null | sort -u",
    ),
    (
        "network devices",
        "for n in 0 $(ls /run/netns 2>/dev/null); do [ $n = 0 ] && ls /sys/class/net; done | grep -v '^veth' ; ls /sys/class/net | grep -c '^veth' || true",
    ),
    (
        "BPF programs",
        "bpftool prog show -j | jq -r '.[] | select(.name | test(\"joey|redirect|tap|from_|to_\")) | .name' || true",
    ),
    (
        "cgroups",
        "find /sys/fs/cgroup -mindepth 1 -type d | grep -E 'joey|k8s.io|test' || true",
    ),
    (
        "sockets",
        "awk 'NR>1 && $8 {print $8}' /proc/net/unix | grep -E '/run/containerd/s/|joey' || true",
    ),
    (
        "state",
        "find /run/joey /run/containerd/io.containerd.runtime.v2.task -mindepth 1 2>/dev/null || true",
    ),
    (
        "files",
        "find /var/lib/joey -mindepth 1 -type f ! -name '*.erofs' ! -name '*.lock' ! -name 'scratch-*.ext4' 2>/dev/null || true",
    ),
];

/// One listing for each of [`KINDS`].
pub type Snapshot = Vec<String>;

/// The host as it is now.
pub fn snapshot() -> Snapshot {
    KINDS.iter().map(|(_, script)| sh(script)).collect()
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
    sh("mkdir -p /run/joey/leaked && ip netns add joey-leaked");
    let after = snapshot();
    sh("rmdir /run/joey/leaked && ip netns del joey-leaked");
    let kinds: Vec<&str> = KINDS
        .iter()
        .zip(before.iter().zip(&after))
        .filter(|(_, (before, after))| before != after)
        .map(|((kind, _), _)| *kind)
        .collect();
    assert!(
        kinds.contains(&"state") && kinds.contains(&"network namespaces"),
        "{kinds:?}"
    );
}
