//! Bad input: one clear error through crictl each, and nothing left behind.
//! These change the host itself, so they run one at a time, after the others.

use integration::combination::Combination;
use integration::testbed::Acceleration;
use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Pod, fails, handler, run, sh};
use crate::leaks;
use crate::trial;
use crate::volumes::{HostDir, mount, start};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("bad_input::no_kvm", no_kvm),
        trial(
            "bad_input::kvm_that_cannot_run_stock_kernels",
            kvm_that_cannot_run_stock_kernels,
        ),
        trial(
            "bad_input::user_namespaces_are_forbidden",
            user_namespaces_are_forbidden,
        ),
        trial("bad_input::kernel_is_missing", kernel_is_missing),
        trial(
            "bad_input::kernel_is_of_another_machine",
            kernel_is_of_another_machine,
        ),
        trial("bad_input::unknown_config_key", unknown_config_key),
        trial(
            "bad_input::corrupt_blob_is_built_anew",
            corrupt_blob_is_built_anew,
        ),
        trial(
            "bad_input::corrupt_blob_that_stays_corrupt",
            corrupt_blob_that_stays_corrupt,
        ),
        trial(
            "bad_input::image_command_is_missing",
            image_command_is_missing,
        ),
        trial(
            "bad_input::host_network_is_refused",
            host_network_is_refused,
        ),
        trial("bad_input::volumes_that_cannot_be", volumes_that_cannot_be),
        trial("bad_input::virtiofsd_is_missing", virtiofsd_is_missing),
        trial("bad_input::a_thousand_mounts", a_thousand_mounts),
        trial(
            "bad_input::volume_that_is_unmounted_under_us",
            volume_that_is_unmounted_under_us,
        ),
        trial(
            "bad_input::memory_limit_below_the_least",
            memory_limit_below_the_least,
        ),
        trial("bad_input::huge_environment", huge_environment),
    ]
}

/// Runs `change`, expects `runp` to fail with all of `says`, runs `undo`, and
/// finds the host as it was.
fn runp_fails(change: &str, undo: &str, says: &[&str]) {
    let before = leaks::snapshot();
    if Combination::of_this_run().has_vm() {
        // A VM that waits for a pod lacks nothing.
        sh("joeyctl template remove");
    }
    sh(change);
    let config = Pod::write_config(json!({}));
    let output = run(&format!(
        "timeout 60 crictl runp --runtime {} {config}",
        handler()
    ));
    sh(undo);
    let message = format!(
        "{}{}",
        crate::cri::text(&output.stdout),
        crate::cri::text(&output.stderr)
    );
    assert!(output.status != 0, "runp succeeded: {message}");
    for part in says {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
    // A sandbox whose start failed may still be listed by containerd: crictl rmp
    // is how an operator clears it.
    sh("crictl pods -q --state NotReady | xargs -r crictl rmp -f");
    leaks::settled(&before);
}

fn no_kvm() {
    runp_fails(
        "mv /dev/kvm /dev/kvm.away",
        "mv /dev/kvm.away /dev/kvm",
        &["/dev/kvm", "joeyctl doctor"],
    );
    sh("mv /dev/kvm /dev/kvm.away");
    let said = fails("joeyctl doctor");
    sh("mv /dev/kvm.away /dev/kvm");
    assert!(
        said.contains("/dev/kvm") && said.contains("No such file"),
        "{said}"
    );
    // And with it back, the node is fine.
    sh("joeyctl doctor");
}

fn user_namespaces_are_forbidden() {
    let most = "/proc/sys/user/max_user_namespaces";
    let before = sh(&format!("cat {most}"));
    runp_fails(
        &format!("echo 0 >{most}"),
        &format!("echo {before} >{most}"),
        &["user.max_user_namespaces", "joeyctl doctor"],
    );
    sh(&format!("echo 0 >{most}"));
    let said = fails("joeyctl doctor");
    sh(&format!("echo {before} >{most}"));
    assert!(said.contains("sysctl user.max_user_namespaces"), "{said}");
}

/// The machine that runs the tests may have a /dev/kvm that runs no stock
/// kernel: then doctor must say so there. In the test host KVM is real.
fn kvm_that_cannot_run_stock_kernels() {
    sh("joeyctl doctor");
    let doctor = integration::install::binary("joeyctl");
    let output = std::process::Command::new(doctor)
        .arg("doctor")
        .output()
        .expect("joeyctl runs on the machine that runs the tests");
    let said = crate::cri::text(&output.stdout);
    if Acceleration::of_this_machine() == Acceleration::Kvm {
        assert!(!said.contains("software flavour"), "{said}");
    } else if std::path::Path::new("/dev/kvm").exists() {
        assert!(said.contains("software flavour"), "{said}");
        assert!(!output.status.success());
    } else {
        assert!(said.contains("No such file"), "{said}");
        assert!(!output.status.success());
    }
}

fn kernel_is_missing() {
    let kernel = "/usr/local/share/joey/vmlinux";
    runp_fails(
        &format!("mv {kernel} {kernel}.away"),
        &format!("mv {kernel}.away {kernel}"),
        &[kernel, "No such file"],
    );
}

fn kernel_is_of_another_machine() {
    let kernel = "/usr/local/share/joey/vmlinux";
    // Byte 18 of an ELF header is the machine: 0xb7 is AArch64.
    runp_fails(
        &format!(
            "cp {kernel} {kernel}.away && printf '\\xb7' | dd of={kernel} bs=1 seek=18 conv=notrunc status=none"
        ),
        &format!("mv {kernel}.away {kernel}"),
        &[kernel, "x86-64"],
    );
}

fn unknown_config_key() {
    runp_fails(
        "mkdir -p /etc/joey && { [ ! -f /etc/joey/config.toml ] || cp /etc/joey/config.toml /tmp/config.away; }; echo 'memroy_mib = 64' > /etc/joey/config.toml",
        "rm /etc/joey/config.toml; [ ! -f /tmp/config.away ] || mv /tmp/config.away /etc/joey/config.toml",
        &["memroy_mib", "/etc/joey/config.toml", "memory_mib"],
    );
}

/// Makes sure that the image has a blob, and damages all blobs: an EROFS superblock
/// stands at byte 1024.
fn corrupt_blobs() {
    {
        let pod = Pod::run();
        let _warm = pod.start(BUSYBOX, &["true"]);
    }
    sh(
        "for blob in /var/lib/joey/layers/*.erofs; do printf 'XXXXXXXX' | dd of=$blob bs=1 seek=1024 conv=notrunc status=none; done",
    );
}

fn corrupt_blob_is_built_anew() {
    let before = leaks::snapshot();
    corrupt_blobs();
    {
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        assert_eq!(container.sh("echo fine"), "fine");
    }
    leaks::settled(&before);
}

/// The layer's image comes out corrupt again: a disk that loses what is written.
fn corrupt_blob_that_stays_corrupt() {
    let before = leaks::snapshot();
    corrupt_blobs();
    sh("mv /usr/bin/mkfs.erofs /usr/bin/mkfs.erofs.away");
    sh(
        "printf '#!/bin/sh\nfor w; do o=$p; p=$w; done; head -c 8192 /dev/zero > $o\n' > /usr/bin/mkfs.erofs; chmod 755 /usr/bin/mkfs.erofs",
    );
    let said = {
        let pod = Pod::run();
        let container = pod.create(BUSYBOX, json!({"command": ["sleep", "1000"]}));
        fails(&format!("crictl start {}", container.id))
    };
    sh("mv /usr/bin/mkfs.erofs.away /usr/bin/mkfs.erofs");
    assert!(
        said.contains(".erofs is corrupt") && said.contains("check the disk"),
        "{said}"
    );
    leaks::settled(&before);
    // With the disk mended the same image runs again.
    let pod = Pod::run();
    assert_eq!(
        pod.start(BUSYBOX, &["sleep", "1000"]).sh("echo fine"),
        "fine"
    );
}

/// The same words, code and reason as with runc: containerd keeps a code of its own.
fn image_command_is_missing() {
    let before = leaks::snapshot();
    for (command, says) in [
        ("nowhere", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
    ] {
        let mut told = Vec::new();
        for handler in [handler(), "runc"] {
            let pod = Pod::with(handler, json!({}));
            let container = pod.create(BUSYBOX, json!({"command": [command]}));
            let said = fails(&format!("crictl start {}", container.id));
            assert!(said.contains(says), "{handler}: {said}");
            let status = container.inspect()["status"].clone();
            told.push([status["exitCode"].clone(), status["reason"].clone()]);
        }
        assert_eq!(told[0], told[1], "{command}: code and reason as with runc");
        assert_ne!(told[0][0], json!(0), "{command}");
    }
    leaks::settled(&before);
}

fn host_network_is_refused() {
    if Combination::of_this_run().is_by_sandbox_api() {
        // containerd 2.1 panics as it makes the bundle, before it asks the shim.
        return;
    }
    let before = leaks::snapshot();
    let config = Pod::write_config(
        json!({"linux": {"security_context": {"namespace_options": {"network": 2}}}}),
    );
    let said = fails(&format!("crictl runp --runtime {} {config}", handler()));
    assert!(said.contains("host's network namespace"), "{said}");
    sh("crictl pods -q --state NotReady | xargs -r crictl rmp -f");
    leaks::settled(&before);
}

/// Each is named with where it should go, and what comes of it.
fn volumes_that_cannot_be() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "cd {host} && ln -s loop loop && echo x > file && mkfifo fifo && mknod null c 1 3"
    ));
    let before = leaks::snapshot();
    {
        let privileged = json!({"linux": {"security_context": {"privileged": true}}});
        let pod = Pod::with(handler(), privileged);
        for (source, says) in [("fifo", "FIFO"), ("null", "device")] {
            let source = format!("{host}/{source}");
            let container = pod.create(
                BUSYBOX,
                json!({"command": ["sleep", "1"], "mounts": [mount(&source, "/data")]}),
            );
            let said = fails(&format!("crictl start {}", container.id));
            for part in ["/data", &source, says] {
                assert!(said.contains(part), "no {part:?} in: {said}");
            }
        }
        let device = pod.create(
            BUSYBOX,
            json!({
                "command": ["sleep", "1"],
                "devices": [{"host_path": "/dev/kvm", "container_path": "/dev/kvm", "permissions": "rw"}],
            }),
        );
        let said = fails(&format!("crictl start {}", device.id));
        assert!(said.contains("/dev/kvm"), "{said}");
        let shared = pod.create(
            BUSYBOX,
            json!({
                "command": ["sleep", "1"],
                "mounts": [{"host_path": "/run", "container_path": "/data", "propagation": 2}],
                "linux": {"security_context": {"privileged": true}},
            }),
        );
        let said = fails(&format!("crictl start {}", shared.id));
        assert!(said.contains("HostToContainer"), "{said}");
    }
    // containerd makes what is missing for a pod; its own client does not.
    for (source, says) in [
        ("none", "No such file"),
        ("loop", "symbolic links"),
        ("file/below", "Not a directory"),
    ] {
        let said = fails(&format!(
            "ctr -n k8s.io run --rm --runtime io.containerd.joey.v2 --mount type=bind,src={host}/{source},dst=/data,options=rbind {BUSYBOX} bad true"
        ));
        for part in ["/data", &format!("{host}/{source}"), says] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
    }
    leaks::settled(&before);
}

fn virtiofsd_is_missing() {
    let dir = HostDir::new();
    let before = leaks::snapshot();
    let path = "/usr/libexec/virtiofsd";
    sh(&format!("mv {path} {path}.away"));
    let (said, doctor) = {
        let pod = Pod::run();
        let container = pod.create(
            BUSYBOX,
            json!({"command": ["sleep", "1"], "mounts": [mount(&dir.0, "/data")]}),
        );
        let said = fails(&format!("crictl start {}", container.id));
        // Pods without volumes run.
        assert_eq!(
            pod.start(BUSYBOX, &["sleep", "1000"]).sh("echo fine"),
            "fine"
        );
        (said, sh("joeyctl doctor"))
    };
    sh(&format!("mv {path}.away {path}"));
    for text in [said, doctor] {
        assert!(
            text.contains(path) && text.contains("package `virtiofsd`"),
            "{text}"
        );
    }
    leaks::settled(&before);
}

fn a_thousand_mounts() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "cd {host} && for i in $(seq 1000); do mkdir $i && echo $i > $i/file; done"
    ));
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let mounts: Vec<_> = (1..=1000)
            .map(|i| mount(&format!("{host}/{i}"), &format!("/data/{i}")))
            .collect();
        let container = start(&pod, BUSYBOX, &mounts);
        assert_eq!(
            container.sh("cat /data/*/file | sort -n | uniq | wc -l; cat /data/777/file"),
            "1000\n777"
        );
    }
    leaks::settled(&before);
}

/// What the container has goes on; the host has its volume back after it.
fn volume_that_is_unmounted_under_us() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "mount -t tmpfs tmpfs {host} && echo x > {host}/file"
    ));
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = start(&pod, BUSYBOX, &[mount(host, "/data")]);
        sh(&format!("umount {host}"));
        assert_eq!(
            container.sh("cat /data/file; echo y > /data/new; cat /data/new"),
            "x\ny"
        );
        sh(&format!("mount -t tmpfs tmpfs {host}"));
    }
    leaks::settled(&before);
}

fn memory_limit_below_the_least() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        for limit in [1, 4096, 65536] {
            let container = pod.create(
                BUSYBOX,
                json!({"command": ["sleep", "1000"], "linux": {"resources": {"memory_limit_in_bytes": limit}}}),
            );
            let said = fails(&format!("crictl start {}", container.id));
            assert!(
                said.contains(&format!("memory limit of {limit} bytes is too low"))
                    && said.contains("needs 1 MiB"),
                "{said}"
            );
        }
        // What the message names is enough for a small command, and the pod goes on.
        let container = pod.create(
            BUSYBOX,
            json!({"command": ["sleep", "1000"], "linux": {"resources": {"memory_limit_in_bytes": 1 << 20}}}),
        );
        sh(&format!("crictl start {}", container.id));
        assert_eq!(container.inspect()["status"]["state"], "CONTAINER_RUNNING");
    }
    leaks::settled(&before);
}

/// More than Linux starts a program with: as much as ends with runc too, and more than
/// a message to the guest holds.
fn huge_environment() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        for (count, size) in [(100, 100 << 10), (30, 100 << 10), (1, 10 << 20)] {
            let small = json!({
                "metadata": {"name": format!("env{count}-{size}")}, "image": {"image": BUSYBOX},
                "command": ["true"], "log_path": "env.log", "linux": {},
            });
            sh(&format!(
                "echo '{small}' | jq '.envs = [range({count}) | {{key: \"BIG\\(.)\", value: (\"x\" * {size})}}]' > /tmp/env.json"
            ));
            let id = sh(&format!(
                "crictl create {} /tmp/env.json {}",
                pod.id,
                pod.config()
            ));
            let said = fails(&format!("crictl start {id}"));
            assert!(
                said.to_lowercase().contains("argument list too long"),
                "{said}"
            );
            assert!(said.len() < 4096, "{} bytes", said.len());
        }
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        assert_eq!(container.sh("echo fine"), "fine");
    }
    sh("rm -f /tmp/env.json");
    leaks::settled(&before);
}
