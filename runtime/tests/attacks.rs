//! What an image, or a process of a container, may try in order to get at the host by way of the
//! engine.

mod common;

use std::os::unix::fs::symlink;

use common::Bundle;
use serde_json::{Value, json};

/// Takes every mount below /dev out of the spec: what is there is the image's.
fn with_the_image_s_dev(bundle: &mut Bundle) {
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
}

fn process(script: &str) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/sh", "-c", script]})
}

/// The null device of the image leads to a file of /proc: masking with it would give that file to
/// the container, for writing, wherever a path is masked (CVE-2025-31133).
#[test]
fn a_link_for_the_null_device() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo; cat /etc/masked");
    let host = bundle.dir.join("dev");
    std::fs::create_dir(&host).unwrap();
    symlink("/proc/sys/kernel/core_pattern", host.join("null")).unwrap();
    std::fs::write(bundle.rootfs().join("etc/masked"), "secret").unwrap();
    with_the_image_s_dev(&mut bundle);
    // Bound, it is left as it is.
    bundle.push(
        "/mounts",
        json!({"destination": "/dev", "type": "bind", "source": host, "options": ["bind"]}),
    );
    bundle.push("/linux/maskedPaths", json!("/etc/masked"));
    let text = bundle.run();
    let masked = text.lines().find(|line| line.contains(" /etc/masked "));
    let masked = masked.unwrap_or_else(|| panic!("{text}"));
    assert!(masked.contains(" /null "), "{masked}");
    assert!(!text.contains("secret"), "{text}");
}

/// A link for /dev/console would put the terminal over a file of /proc, or of the image, before
/// anything is hidden (CVE-2025-52565).
#[test]
fn a_link_for_the_console() {
    for target in ["/proc/sys/kernel/hostname", "/etc/passwd", "/etc/none"] {
        let mut bundle = Bundle::new("cat /proc/self/mountinfo");
        bundle.terminal = Some("");
        bundle.spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| {
                let destination = mount["destination"].as_str().unwrap();
                !destination.starts_with("/dev") || destination == "/dev/pts"
            });
        symlink(target, bundle.rootfs().join("dev/console")).unwrap();
        let error = bundle.fail().0;
        assert!(
            error.contains("/dev/console of the image is a link"),
            "{error}"
        );
        assert!(!bundle.rootfs().join("etc/none").exists());
    }
}

/// What is no devpts cannot pass for a terminal, and its number leads to no other file.
#[test]
fn a_link_for_the_terminals() {
    let mut bundle = Bundle::new("true");
    bundle.terminal = Some("");
    with_the_image_s_dev(&mut bundle);
    let pts = bundle.rootfs().join("dev/pts");
    std::fs::create_dir(&pts).unwrap();
    symlink("/proc/sysrq-trigger", pts.join("0")).unwrap();
    symlink("/proc/self/fd/0", pts.join("ptmx")).unwrap();
    let error = bundle.fail().0;
    assert!(error.starts_with("open a terminal"), "{error}");
}

/// What the engine writes to /proc reaches the kernel, whatever the container has put over its own
/// /proc (CVE-2025-52881).
#[test]
fn a_forged_proc_for_a_process_that_joins() {
    let mut bundle = Bundle::new(
        "mkdir -p /forged/self/attr && : > /forged/self/oom_score_adj && \
         mount -o bind /forged /proc && exec sleep 1000",
    );
    let capabilities = json!(["CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID"]);
    bundle.spec["process"]["capabilities"] = json!({"bounding": capabilities,
        "effective": capabilities, "permitted": capabilities});
    bundle.spec["process"]["oomScoreAdj"] = json!(1);
    let added = |script: &str| {
        let mut added = process(script);
        added["oomScoreAdj"] = json!(77);
        json!({"exec": {"process": added}})
    };
    let wait = "until [ -e /proc/self/oom_score_adj ] && [ ! -e /proc/1 ]; do sleep 0.1; done";
    let look = "cat /proc/self/oom_score_adj; mkdir /real; mount -t proc proc /real; \
                cat /real/self/oom_score_adj";
    let outcomes = bundle.take(json!(["create", "start", added(wait), added(look),
        {"delete": {"force": true}}]));
    assert_eq!(outcomes[3]["output"], "77\n", "{outcomes:?}");
}

/// Likewise for the container's own first process: a volume of the image's making lies over the
/// places that its parameters are written to.
#[test]
fn forged_parameters() {
    let mut bundle = Bundle::new("cat /proc/sys/kernel/msgmax; hostname");
    let forged = bundle.rootfs().join("forged/kernel");
    std::fs::create_dir_all(&forged).unwrap();
    std::fs::write(forged.join("msgmax"), "forged\n").unwrap();
    bundle.spec["linux"]["sysctl"] = json!({"kernel.msgmax": "4096"});
    // The only way in is refused.
    bundle.push(
        "/mounts",
        json!({"destination": "/proc/sys", "type": "bind",
        "source": bundle.rootfs().join("forged"), "options": ["bind"]}),
    );
    let error = bundle.fail().0;
    assert!(error.contains("inside /proc"), "{error}");

    // A hook of the host may; the parameter is the kernel's all the same.
    bundle.spec["mounts"].as_array_mut().unwrap().pop();
    let script = format!(
        "mount --bind {root}/forged {root}/proc/sys",
        root = bundle.rootfs().display()
    );
    bundle.spec["hooks"] = json!({"createContainer": [{"path": "/bin/sh",
        "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]});
    assert_eq!(bundle.run(), "forged\ninside\n");
    assert_eq!(
        std::fs::read_to_string(forged.join("msgmax")).unwrap(),
        "forged\n",
        "nothing is written to what lies over it"
    );
}

/// A directory of the image on the way to what is masked or protected leads elsewhere: nothing
/// outside the root is touched.
#[test]
fn links_on_the_way_to_hidden_paths() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let outside = bundle.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "").unwrap();
    symlink(
        format!("../../../../..{}", outside.display()),
        bundle.rootfs().join("up"),
    )
    .unwrap();
    bundle.push("/linux/maskedPaths", json!("/up/file"));
    bundle.push("/linux/maskedPaths", json!("/up"));
    let text = bundle.run();
    assert!(!text.contains("outside"), "{text}");

    // A link of /proc that the kernel follows by itself.
    symlink("/proc/self/root", bundle.rootfs().join("round")).unwrap();
    bundle.push("/linux/readonlyPaths", json!("/round/etc"));
    let error = bundle.fail().0;
    assert!(
        error.starts_with("make /round/etc read-only: Too many levels of symbolic links"),
        "{error}"
    );
}
