//! What pods may leave on a node: nothing. The listings that a leak shows in.

use std::thread::sleep;
use std::time::Duration;

/// The kind that containerd itself may owe until it is started anew: it forgets the bundle
/// of a container whose shim dies after it has made it and before it tells its pid.
pub const BUNDLES: &str = "bundles of tasks";

/// What is compared: each line of a script's output is one thing that exists.
pub const KINDS: [(&str, &str); 9] = [
    (
        "processes",
        // VMs that wait for a pod are nobody's; there is a socket for each.
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *joey*|*mkfs.*|*virtiofsd*) grep -q :/joey-pool/ $p/cgroup && ls /run/joey/.pool/*/${p#/proc/}.* >/dev/null || readlink $p/exe;; esac; done",
    ),
    (
        "mounts",
        // The VMMs' network is mounted once and stays, as their files do in /var/lib/joey.
        "awk '$5 != \"/run/joey/no-network\" {print $5, $9}' /proc/self/mountinfo | sort",
    ),
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
        "find /sys/fs/cgroup -mindepth 1 -type d | grep -v -e /init -e ^/sys/fs/cgroup/joey-pool",
    ),
    (
        "sockets and state",
        "find /run/joey /run/containerd/s /run/containerd/io.containerd.sandbox.controller.v1.shim -mindepth 2 | grep -v -e ^/run/joey/.templates/ -e ^/run/joey/.pool/",
    ),
    (
        BUNDLES,
        "find /run/containerd/io.containerd.runtime.v2.task -mindepth 2",
    ),
    (
        "files",
        "find /var/lib/joey /tmp /dev/shm -type f ! -name '*.erofs' ! -name '*lock' ! -name '*.ext4' ! -name '*.json' ! -name '*.log'",
    ),
];

/// Where processes are in [`KINDS`].
const PROCESSES: usize = 0;

/// Looks at what is left, which may go by itself: containerd removes things in the background,
/// and a shim whose pod has ended may still make VMs for the next ones.
const LOOKS: u32 = 120;

/// Between two of them.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// One listing for each of [`KINDS`].
pub type Snapshot = Vec<String>;

/// The host as it is now; `shell` runs a script in it and returns its output.
///
/// # Errors
/// Those of `shell`.
pub fn snapshot<E>(mut shell: impl FnMut(&str) -> Result<String, E>) -> Result<Snapshot, E> {
    // `ls`, `grep` and `find` fail where there is nothing, which is the aim.
    KINDS
        .iter()
        .map(|(_, script)| shell(&format!("{script}; true")))
        .collect()
}

/// The host once no process of joey's runs, or when one has not ended for long: what a shim whose
/// pod has ended does still, nobody has left behind afterwards. Blocks.
///
/// # Errors
/// Those of `shell`.
pub fn at_rest<E>(mut shell: impl FnMut(&str) -> Result<String, E>) -> Result<Snapshot, E> {
    for _ in 0..LOOKS {
        let snapshot = snapshot(&mut shell)?;
        if snapshot[PROCESSES].is_empty() {
            return Ok(snapshot);
        }
        sleep(LOOK_AGAIN);
    }
    snapshot(shell)
}

/// Each kind of which there is more afterwards, with both listings. What has gone is no leak.
pub fn differences(before: &Snapshot, after: &Snapshot) -> Vec<(&'static str, String)> {
    KINDS
        .iter()
        .zip(before.iter().zip(after))
        .filter(|(_, (before, after))| has_more(before, after))
        .map(|((kind, _), (before, after))| {
            (*kind, format!("{kind}\nbefore:\n{before}\nafter:\n{after}"))
        })
        .collect()
}

/// Whether a line is there, or there more often, that was not before.
fn has_more(before: &str, after: &str) -> bool {
    let mut known: Vec<&str> = before.lines().collect();
    let mut is_known = |line: &str| {
        let place = known.iter().position(|it| *it == line);
        place.map(|place| known.swap_remove(place)).is_some()
    };
    !after.lines().all(&mut is_known)
}

/// What there is more of once all is gone that goes by itself; what leaks stays. Blocks.
///
/// # Errors
/// Those of `shell`.
pub fn settled<E>(
    before: &Snapshot,
    mut shell: impl FnMut(&str) -> Result<String, E>,
) -> Result<Vec<(&'static str, String)>, E> {
    for _ in 0..LOOKS {
        if differences(before, &snapshot(&mut shell)?).is_empty() {
            return Ok(Vec::new());
        }
        sleep(LOOK_AGAIN);
    }
    Ok(differences(before, &snapshot(&mut shell)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_more_often_is_a_leak() {
        for (before, after, leaks) in [
            ("", "", false),
            ("a\nb", "b\na", false),
            ("a\nb", "b", false),
            ("a", "a\na", true),
            ("a", "b", true),
            ("", "a", true),
        ] {
            let filled = |text: &str| vec![text.to_owned(); KINDS.len()];
            let found = differences(&filled(before), &filled(after));
            assert_eq!(found.len(), if leaks { KINDS.len() } else { 0 }, "{after}");
        }
    }

    #[test]
    fn a_host_is_at_rest_without_processes() {
        let mut running = 2;
        let Ok(snapshot) = at_rest(|script| {
            let is_first = script.starts_with(KINDS[PROCESSES].1);
            running -= u32::from(is_first && running > 0);
            let listing = if is_first && running > 0 { "joey" } else { "" };
            Ok::<_, std::convert::Infallible>(listing.to_owned())
        });
        assert_eq!(running, 0);
        assert_eq!(snapshot[PROCESSES], "");
        assert_eq!(KINDS[PROCESSES].0, "processes");
    }
}
