//! What the tests' pods left on the host.

use std::convert::Infallible;

use integration::leaks::{self, Snapshot};
use libtest_mimic::Trial;

use crate::cri::sh;
use crate::trial;

/// The host before the first test.
pub fn at_rest() -> Snapshot {
    let Ok(snapshot) = leaks::at_rest(|script| Ok::<_, Infallible>(sh(script)));
    snapshot
}

/// The host as it is now.
pub fn snapshot() -> Snapshot {
    let Ok(snapshot) = leaks::snapshot(|script| Ok::<_, Infallible>(sh(script)));
    snapshot
}

/// Waits until the host is as it was: what containerd removes in the background is
/// gone soon, what leaks stays.
pub fn settled(before: &Snapshot) {
    let Ok(left) = leaks::settled(before, |script| Ok::<_, Infallible>(sh(script)));
    let left: Vec<String> = left.into_iter().map(|(_, listing)| listing).collect();
    assert!(left.is_empty(), "left behind: {}", left.join("\n"));
}

/// Compares the host with how it was before the first test.
pub fn trials(before: Option<Snapshot>) -> Vec<Trial> {
    let check = move || {
        let before = before
            .as_ref()
            .expect("a snapshot was taken before the tests");
        settled(before);
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
    let kinds: Vec<&str> = leaks::differences(&before, &after)
        .into_iter()
        .map(|(kind, _)| kind)
        .collect();
    assert!(
        kinds.contains(&"sockets and state") && kinds.contains(&"network namespaces"),
        "{kinds:?}"
    );
}
