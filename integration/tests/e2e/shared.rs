//! Pods on the host's kernel: what a VM cannot give them, and containerd's shim for runc can.

use integration::combination::Combination;
use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Pod, handler, sh};
use crate::leaks;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("shared::kernel_is_the_hosts", kernel_is_the_hosts),
        trial("shared::namespaces_of_the_host", namespaces_of_the_host),
        trial("shared::one_pid_namespace", one_pid_namespace),
        trial("shared::privileged_sees_devices", privileged_sees_devices),
    ]
}

fn kernel_is_the_hosts() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    assert_eq!(container.sh("uname -r"), sh("uname -r"));
    // Its own of everything else.
    assert_ne!(container.sh("hostname"), sh("hostname"));
    assert_eq!(container.sh("ls /sys/class/net | sort | xargs"), "eth0 lo");
}

/// hostNetwork, hostPID and hostIPC.
fn namespaces_of_the_host() {
    let before = leaks::snapshot();
    {
        // By the Sandbox API containerd 2.1 panics at a pod in the host's network, before it
        // asks the shim.
        let mut options = json!({"pid": 2, "ipc": 2});
        let mut namespaces = vec!["pid", "ipc"];
        if !Combination::of_this_run().is_by_sandbox_api() {
            options["network"] = json!(2);
            namespaces.push("net");
        }
        let host = json!({"linux": {"security_context": {"namespace_options": options}}});
        // The host's name goes with the host's network.
        let mut config = host.clone();
        config["hostname"] = json!("");
        let pod = Pod::with(handler(), config);
        let mut plan = host;
        plan["command"] = json!(["sleep", "1000"]);
        let container = pod.create(BUSYBOX, plan);
        sh(&format!("crictl start {}", container.id));
        for namespace in namespaces {
            let link = format!("readlink /proc/self/ns/{namespace}");
            assert_eq!(container.sh(&link), sh(&link), "{namespace}");
        }
        let link = "readlink /proc/self/ns/mnt";
        assert_ne!(container.sh(link), sh(link));
        // What it leaves behind in the host's namespace ends with it.
        container.sh("sleep 4321 >/dev/null 2>&1 &");
        sh("pgrep -f '[s]leep 4321'");
        sh(&format!("crictl stop -t 0 {}", container.id));
        sh("for i in $(seq 1000); do pgrep -f '[s]leep 4321' || exit 0; sleep 0.1; done; exit 1");
    }
    leaks::settled(&before);
}

/// Containers of a pod that shares it see each other, and nobody's orphans stay.
fn one_pid_namespace() {
    let pod = Pod::with(
        handler(),
        json!({"linux": {"security_context": {"namespace_options": {"pid": 0}}}}),
    );
    let in_pod = json!({
        "command": ["sleep", "1000"],
        "linux": {"security_context": {"namespace_options": {"pid": 0}}},
    });
    let one = pod.create(BUSYBOX, in_pod.clone());
    sh(&format!("crictl start {}", one.id));
    let two = pod.create(BUSYBOX, in_pod);
    sh(&format!("crictl start {}", two.id));
    assert_eq!(two.sh("ps | grep -c '[s]leep 1000'"), "2");
    if Combination::of_this_run().is_by_sandbox_api() {
        // The tests' pause image collects nobody; the shim's own holder of namespaces does.
        one.sh("(sleep 0.1 &)");
        two.sh(
            "for i in $(seq 1000); do ps -o stat | grep -q Z || exit 0; sleep 0.1; done; ps; exit 1",
        );
    }
    sh(&format!("crictl stop -t 0 {}", one.id));
    assert_eq!(two.sh("ps | grep -c '[s]leep 1000'"), "1");
}

fn privileged_sees_devices() {
    let privileged = json!({"linux": {"security_context": {"privileged": true}}});
    let pod = Pod::with(handler(), privileged.clone());
    let mut plan = privileged;
    plan["command"] = json!(["sleep", "1000"]);
    let container = pod.create(BUSYBOX, plan);
    sh(&format!("crictl start {}", container.id));
    let major = "stat -c %t:%T /dev/kmsg";
    assert_eq!(container.sh(major), sh(major));
    assert_eq!(
        container.sh("sed -n 's/^CapEff:\\t//p' /proc/self/status"),
        sh("sed -n 's/^CapEff:\\t//p' /proc/self/status")
    );
    container.sh("mkdir /tmp/m && mount -t tmpfs none /tmp/m && umount /tmp/m");
}
