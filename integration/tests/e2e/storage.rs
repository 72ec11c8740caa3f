//! Root filesystems: copy-on-write, one copy on the equal to runc's.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, DEBIAN, Pod, sh};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "storage::writes_stay_in_their_container",
            writes_stay_in_their_container,
        ),
        trial(
            "storage::host_holds_one_copy_of_an_image",
            host_holds_one_copy_of_an_image,
        ),
        trial("storage::tree_equals_runcs", tree_equals_runcs),
        trial(
            "storage::read_only_root_refuses_writes",
            read_only_root_refuses_writes,
        ),
    ]
}

fn writes_stay_in_their_container() {
    sh(&format!("crictl pull {DEBIAN}"));
    let (one, two) = (Pod::run(), Pod::run());
    let first = one.start(DEBIAN, &["sleep", "1000"]);
    let second = two.start(DEBIAN, &["sleep", "1000"]);
    let sibling = one.start(DEBIAN, &["sleep", "1000"]);
    let before = second.sh("sha256sum < /etc/passwd");
    first.sh(
        "echo changed >> /etc/passwd; rm /etc/debian_version; mkdir /new; echo x > /new/file; sync",
    );
    assert_ne!(first.sh("sha256sum < /etc/passwd"), before);
    for untouched in [&second, &sibling] {
        assert_eq!(untouched.sh("sha256sum < /etc/passwd"), before);
        assert_eq!(untouched.sh("ls -d /new 2>/dev/null || echo none"), "none");
        untouched.sh("test -f /etc/debian_version");
    }
}

/// Image blobs that the pod's VMM holds open, as "device:inode".
fn blobs_of(pod: &Pod) -> Vec<String> {
    let vmm = pod.inspect()["info"]["pid"]
        .as_u64()
        .expect("inspectp names the VMM's pid");
    let listed = sh(&format!(
        "for fd in /proc/{vmm}/fd/*; do case $(readlink $fd) in *.erofs*) stat -Lc %d:%i $fd;; esac; done | sort -u"
    ));
    listed.lines().map(str::to_owned).collect()
}

fn host_holds_one_copy_of_an_image() {
    sh(&format!("crictl pull {DEBIAN}"));
    let one = Pod::run();
    let _first = one.start(DEBIAN, &["sleep", "1000"]);
    let used = || -> u64 {
        sh("du -s --block-size=1 /var/lib/joey/layers | cut -f1")
            .parse()
            .expect("du prints bytes")
    };
    let after_one = used();
    let two = Pod::run();
    let second = two.start(DEBIAN, &["sleep", "1000"]);
    second.sh("find / -xdev -type f -exec cat {} + > /dev/null");
    assert_eq!(
        used(),
        after_one,
        "a second pod adds nothing to the layer store"
    );
    let blobs = blobs_of(&one);
    assert!(blobs.len() >= 3, "the image has several layers: {blobs:?}");
    assert_eq!(
        blobs,
        blobs_of(&two),
        "both VMMs read the same files, so the same page cache"
    );
}

/// Every path below / with type, mode, owner, device, xattrs and content's hash.
fn tree(container: &Container) -> String {
    let tool = integration::install::TREESUM;
    sh(&format!(
        "crictl exec -i {0} sh -c 'cat > /tmp/treesum && chmod 755 /tmp/treesum' < {tool} && crictl exec {0} /tmp/treesum /",
        container.id
    ))
}

fn tree_equals_runcs() {
    sh(&format!("crictl pull {DEBIAN}"));
    let (joey, runc) = (Pod::run(), Pod::with("runc", json!({})));
    let ours = tree(&joey.start(DEBIAN, &["sleep", "1000"]));
    let theirs = tree(&runc.start(DEBIAN, &["sleep", "1000"]));
    assert!(
        ours.lines().count() > 2000,
        "the whole tree was read: {} paths",
        ours.lines().count()
    );
    let differing: Vec<(&str, &str)> = ours
        .lines()
        .zip(theirs.lines())
        .filter(|(a, b)| a != b)
        .take(5)
        .collect();
    assert!(
        ours == theirs,
        "first differences (joey, runc): {differing:#?}"
    );
}

fn read_only_root_refuses_writes() {
    let pod = Pod::run();
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["sleep", "1000"], "linux": {"security_context": {"readonly_rootfs": true}}}),
    );
    sh(&format!("crictl start {}", container.id));
    let said = container.sh("touch /x 2>&1 || true");
    assert!(said.contains("Read-only file system"), "{said}");
}
