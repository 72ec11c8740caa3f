//! Limits, what happens at them, and who is charged: the guest's cgroups, the VM's
//! size, the host's cgroup of the pod.

use integration::combination::Combination;
use integration::cri::ALL_MEMORY;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::cri::{BUSYBOX, Container, Pod, fails, handler, sh};
use crate::leaks;
use crate::trial;

const MIB: u64 = 1 << 20;

/// A process that takes more memory than any of these limits allows.
/// One call takes it all: a program that takes a little at a time lives long at its limit
/// where processors are emulated, with the kernel reading its code again and again.
const GLUTTON: &str = "exec dd if=/dev/zero of=/dev/null bs=200M count=1";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("resources::limits_reach_the_guest", limits_reach_the_guest),
        trial(
            "resources::limits_change_while_running",
            limits_change_while_running,
        ),
        trial(
            "resources::a_limit_below_what_is_used_is_as_with_runc",
            a_limit_below_what_is_used_is_as_with_runc,
        ),
        trial(
            "resources::oom_at_the_containers_limit",
            oom_at_the_containers_limit,
        ),
        trial("resources::oom_of_a_child", oom_of_a_child),
        trial("resources::oom_of_the_whole_guest", oom_of_the_whole_guest),
        trial(
            "resources::oom_of_the_pod_on_the_host",
            oom_of_the_pod_on_the_host,
        ),
        trial(
            "resources::the_pods_cgroup_pays_for_all",
            the_pods_cgroup_pays_for_all,
        ),
        trial(
            "resources::stats_are_the_guests_own",
            stats_are_the_guests_own,
        ),
        trial(
            "resources::limits_above_the_hosts_get_what_there_is",
            limits_above_the_hosts_get_what_there_is,
        ),
        trial(
            "resources::vms_grow_to_their_pods_limits",
            vms_grow_to_their_pods_limits,
        ),
        trial(
            "resources::a_vm_grows_and_shrinks_with_its_containers_limits",
            a_vm_grows_and_shrinks_with_its_containers_limits,
        ),
        trial(
            "resources::freed_memory_goes_back_to_the_host",
            freed_memory_goes_back_to_the_host,
        ),
    ]
}

/// Those that change the host's configuration, for one at a time.
pub fn alone() -> Vec<Trial> {
    vec![
        trial(
            "resources::the_vm_is_as_large_as_the_pods_limits",
            the_vm_is_as_large_as_the_pods_limits,
        ),
        trial(
            "resources::a_full_scratch_disk_is_the_pods_own_trouble",
            a_full_scratch_disk_is_the_pods_own_trouble,
        ),
    ]
}

/// joey's configuration, until dropped.
pub struct Configured;

impl Configured {
    pub fn with(text: &str) -> Configured {
        sh(&format!(
            "mkdir -p /etc/joey; touch /etc/joey/config.toml; cp /etc/joey/config.toml /tmp/config.before; echo '{text}' >> /etc/joey/config.toml"
        ));
        Configured
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        crate::cri::run("mv /tmp/config.before /etc/joey/config.toml");
    }
}

/// The VMM: what containerd takes for the sandbox's process.
fn vmm(pod: &Pod) -> u64 {
    pod.inspect()["info"]["pid"].as_u64().expect("pid")
}

fn running(pod: &Pod, resources: Value, script: &str) -> Container {
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["sh", "-c", script], "linux": {"resources": resources}}),
    );
    sh(&format!("crictl start {}", container.id));
    container
}

/// The directory of a cgroup of the host in which the sandbox's VMM runs.
fn vmm_cgroup(pod: &Pod) -> String {
    let path = sh(&format!("sed -n 's/^0:://p' /proc/{}/cgroup", vmm(pod)));
    format!("/sys/fs/cgroup{path}")
}

/// Ended as containerd reports a container that was out of memory.
fn assert_oom_killed(container: &Container) {
    assert_eq!(container.wait(), 137);
    let status = container.inspect()["status"].clone();
    assert_eq!(status["reason"], "OOMKilled", "{status}");
}

fn number(text: &str) -> u64 {
    text.trim()
        .parse()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn limits_reach_the_guest() {
    let pod = Pod::run();
    let container = running(
        &pod,
        json!({
            "memory_limit_in_bytes": 64 * MIB,
            "memory_swap_limit_in_bytes": 64 * MIB,
            "cpu_shares": 512, "cpu_quota": 50000, "cpu_period": 100000,
            "cpuset_cpus": "0", "oom_score_adj": 940,
            "hugepage_limits": [{"page_size": "2MB", "limit": 0}],
            "unified": {"memory.high": "50331648", "memory.min": "4194304", "memory.oom.group": "1"},
        }),
        "sleep 1000",
    );
    let file = |name: &str| container.sh(&format!("cat /sys/fs/cgroup/{name}"));
    assert_eq!(file("memory.max"), (64 * MIB).to_string());
    assert_eq!(file("memory.high"), "50331648");
    assert_eq!(file("memory.min"), "4194304");
    assert_eq!(file("memory.oom.group"), "1");
    assert_eq!(file("cpu.max"), "50000 100000");
    let weight = number(&file("cpu.weight"));
    assert!((20..100).contains(&weight), "{weight}: half the default");
    assert_eq!(container.sh("cat /proc/self/oom_score_adj"), "940");
    if !Combination::of_this_run().has_vm() {
        assert_eq!(file("cpuset.cpus"), "0");
        return;
    }
    // The list is of the host's processors: it holds for the VM, not in the guest.
    let sandbox = vmm_cgroup(&pod).replace("/vmm", "");
    assert_eq!(sh(&format!("cat {sandbox}/cpuset.cpus")), "0");
    // So does the rank by which the host's kernel kills.
    assert_eq!(sh(&format!("cat /proc/{}/oom_score_adj", vmm(&pod))), "940");
    // A file that is not on the list is named.
    let stranger = pod.create(
        BUSYBOX,
        json!({"command": ["true"], "linux": {"resources": {"unified": {"memory.reclaim": "1"}}}}),
    );
    let said = fails(&format!("crictl start {}", stranger.id));
    assert!(said.contains("memory.reclaim"), "{said}");
}

fn limits_change_while_running() {
    let pod = Pod::run();
    let container = running(
        &pod,
        json!({"memory_limit_in_bytes": 64 * MIB}),
        "sleep 1000",
    );
    let update = |flags: &str| sh(&format!("crictl update {flags} {}", container.id));
    let file = |name: &str| container.sh(&format!("cat /sys/fs/cgroup/{name}"));
    update(&format!(
        "--memory {} --cpu-quota 20000 --cpu-period 100000 --cpu-share 256",
        32 * MIB
    ));
    assert_eq!(file("memory.max"), (32 * MIB).to_string());
    assert_eq!(file("cpu.max"), "20000 100000");
    let weight = number(&file("cpu.weight"));
    assert!((10..50).contains(&weight), "{weight}: a quarter");
    let stats = stats(&container);
    let available = figure(&stats, "memory/availableBytes/value");
    let used = figure(&stats, "memory/workingSetBytes/value");
    assert_eq!(available + used, 32 * MIB, "{stats}");
    // More than the VM has is lawful, and said.
    update(&format!("--memory {}", 8192 * MIB));
    assert_eq!(file("memory.max"), (8192 * MIB).to_string());
    if !Combination::of_this_run().has_vm() {
        return;
    }
    sh(&format!(
        "grep 'but its VM has' /var/log/containerd.log | grep -q {}",
        container.id
    ));
}

/// The kernel takes the limit and makes the room that it needs.
fn a_limit_below_what_is_used_is_as_with_runc() {
    for handler in ["runc", handler()] {
        let pod = Pod::with(handler, json!({}));
        let container = running(
            &pod,
            json!({"memory_limit_in_bytes": 100 * MIB}),
            "dd if=/dev/zero of=/dev/shm/ballast bs=1M count=50; echo; sleep 1000",
        );
        container.sh(
            "for i in $(seq 1000); do [ $(stat -c %s /dev/shm/ballast) = 52428800 ] && exit; sleep 0.1; done; exit 1",
        );
        sh(&format!(
            "crictl update --memory {} {}",
            16 * MIB,
            container.id
        ));
        assert_oom_killed(&container);
    }
}

fn oom_at_the_containers_limit() {
    let pod = Pod::run();
    let container = running(&pod, json!({"memory_limit_in_bytes": 32 * MIB}), GLUTTON);
    assert_oom_killed(&container);
    assert_eq!(pod.start(BUSYBOX, &["sleep", "9"]).sh("echo fine"), "fine");
}

fn oom_of_a_child() {
    let pod = Pod::run();
    let script = format!("sh -c \"{GLUTTON}\"; echo child $?; sleep 1000");
    // As the kubelet has it unless it is told otherwise: all or nothing.
    let together = running(
        &pod,
        json!({"memory_limit_in_bytes": 32 * MIB, "unified": {"memory.oom.group": "1"}}),
        &script,
    );
    assert_oom_killed(&together);
    let apart = running(&pod, json!({"memory_limit_in_bytes": 32 * MIB}), &script);
    sh(&format!(
        "for i in $(seq 1000); do crictl logs {} 2>/dev/null | grep -q 'child 137' && exit; sleep 0.2; done; exit 1",
        apart.id
    ));
    assert_eq!(apart.sh("echo alive"), "alive");
}

/// Nothing limits the container but the guest's memory.
fn oom_of_the_whole_guest() {
    let pod = Pod::run();
    let bystander = pod.start(BUSYBOX, &["sleep", "1000"]);
    let container = running(&pod, json!({}), &format!("exec {ALL_MEMORY}"));
    assert_oom_killed(&container);
    // The agent, and what was not to blame, go on.
    assert_eq!(bystander.sh("echo alive"), "alive");
    assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_READY");
    let next = pod.start(BUSYBOX, &["sleep", "1000"]);
    assert_eq!(next.sh("echo fine"), "fine");
}

/// A pod whose limit does not cover its overhead: the host kills the VMM.
fn oom_of_the_pod_on_the_host() {
    let before = leaks::snapshot();
    let parent = "/joeytest/oom";
    sh(&format!(
        "mkdir -p /sys/fs/cgroup{parent} && echo +memory > /sys/fs/cgroup/joeytest/cgroup.subtree_control"
    ));
    {
        let pod = Pod::with(handler(), json!({"linux": {"cgroup_parent": parent}}));
        let container = running(
            &pod,
            json!({}),
            &format!("while [ ! -e /go ]; do sleep 0.1; done; {GLUTTON}"),
        );
        sh(&format!(
            "cd /sys/fs/cgroup{parent}; echo $(($(cat memory.current) + 16777216)) > memory.max"
        ));
        sh(&format!("crictl exec {} touch /go", container.id));
        assert_oom_killed(&container);
        sh("grep -q 'the host killed the VM for want of memory' /var/log/containerd.log");
    }
    sh(&format!(
        "rmdir /sys/fs/cgroup{parent} /sys/fs/cgroup/joeytest"
    ));
    leaks::settled(&before);
}

/// Under both of the kubelet's drivers: the VMM and the shim are below the cgroup that
/// the kubelet made for the pod, and nothing stays in it.
fn the_pods_cgroup_pays_for_all() {
    let before = leaks::snapshot();
    for (parent, scope) in [
        ("/kubepods/burstable/podjoey", false),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podjoey.slice",
            true,
        ),
    ] {
        let dir = format!("/sys/fs/cgroup{parent}");
        sh(&format!("mkdir -p {dir}"));
        {
            let pod = Pod::with(handler(), json!({"linux": {"cgroup_parent": parent}}));
            let own = if scope {
                format!("{dir}/cri-containerd-{}.scope", pod.id)
            } else {
                format!("{dir}/{}", pod.id)
            };
            // They move while the pod runs already, the shim after the VMM.
            sh(&format!(
                "for i in $(seq 1000); do for p in $(cat {own}/shim/cgroup.procs 2>/dev/null); do readlink /proc/$p/exe | grep -q containerd-shim-joey && exit; done; sleep 0.1; done; exit 1"
            ));
            assert_eq!(vmm_cgroup(&pod), format!("{own}/vmm"));
            let container = pod.start(BUSYBOX, &["sleep", "1000"]);
            assert_eq!(container.sh("echo fine"), "fine");
            let stats: Value =
                serde_json::from_str(&sh(&format!("crictl statsp -o json {}", pod.id)))
                    .expect("JSON");
            let told = stats
                .pointer("/stats/0/linux/memory/usageBytes/value")
                .and_then(Value::as_str)
                .map(number)
                .unwrap_or_else(|| panic!("{stats}"));
            let counted = number(&sh(&format!("cat {dir}/memory.current")));
            assert!(told.abs_diff(counted) < 16 * MIB, "{told} {counted}");
            // What the guest has written to; the rest is the template.
            assert!(told > 4 * MIB, "a guest's memory is in it: {told}");
        }
        sh(&format!("rmdir {dir}"));
    }
    sh(
        "rmdir /sys/fs/cgroup/kubepods/burstable /sys/fs/cgroup/kubepods /sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice /sys/fs/cgroup/kubepods.slice",
    );
    leaks::settled(&before);
}

fn stats(container: &Container) -> Value {
    let text = sh(&format!("crictl stats -o json {}", container.id));
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all["stats"][0].clone()
}

fn figure(stats: &Value, path: &str) -> u64 {
    let value = stats.pointer(&format!("/{path}")).and_then(Value::as_str);
    number(value.unwrap_or_else(|| panic!("no {path} in {stats}")))
}

/// What crictl shows lies between what the guest's files say before and after.
fn stats_are_the_guests_own() {
    let pod = Pod::run();
    let container = running(
        &pod,
        json!({"memory_limit_in_bytes": 100 * MIB}),
        "dd if=/dev/zero of=/dev/shm/ballast bs=1M count=20 2>/dev/null; echo ready; sleep 1000",
    );
    container.sh(
        "for i in $(seq 1000); do [ $(stat -c %s /dev/shm/ballast) = 20971520 ] && exit; sleep 0.1; done; exit 1",
    );
    let cpu = || number(&container.sh("sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat"));
    let memory = || number(&container.sh("cat /sys/fs/cgroup/memory.current"));
    let (cpu_before, memory_before) = (cpu(), memory());
    let stats = stats(&container);
    let (cpu_after, memory_after) = (cpu(), memory());
    let told = figure(&stats, "cpu/usageCoreNanoSeconds/value") / 1000;
    assert!(
        (cpu_before..=cpu_after).contains(&told),
        "{cpu_before} {told} {cpu_after}"
    );
    let told = figure(&stats, "memory/usageBytes/value");
    // The execs that look count too, so both ends have some room.
    let low = memory_before.min(memory_after) - 4 * MIB;
    let high = memory_before.max(memory_after) + 4 * MIB;
    assert!((low..=high).contains(&told), "{low} {told} {high}");
    assert!(told > 20 * MIB, "the ballast is in it: {told}");
    assert!(figure(&stats, "writableLayer/usedBytes/value") < u64::MAX);
}

/// A limit is no request: with runc too, a pod may be allowed more than there is.
fn limits_above_the_hosts_get_what_there_is() {
    let pod = Pod::with(
        handler(),
        json!({"linux": {"resources": {
            "cpu_quota": 100_000_000, "cpu_period": 100_000, "memory_limit_in_bytes": 1u64 << 40,
        }}}),
    );
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let host = number(&sh("awk '/^MemTotal/{print $2}' /proc/meminfo"));
    let guest = number(&container.sh("awk '/^MemTotal/{print $2}' /proc/meminfo"));
    assert!((host / 2..=host).contains(&guest), "{guest} of {host} KiB");
    assert_eq!(
        number(&container.sh("ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l")),
        number(&sh("nproc")).max(4)
    );
    for part in ["make a VM of 1000 CPUs", "make a VM of 1048832 MiB"] {
        sh(&format!("grep -q '{part}' /var/log/containerd.log"));
    }
}

/// Waits until the guest's memory is in this range of MiB.
fn wait_memory(container: &Container, least: u64, most: u64) {
    container.sh(&format!(
        "for i in $(seq 300); do m=$(awk '/^MemTotal/{{print int($2/1024)}}' /proc/meminfo); \
         [ $m -ge {least} ] && [ $m -le {most} ] && exit; sleep 0.1; done; echo $m MiB; exit 1"
    ));
}

fn wait_cpus(container: &Container, cpus: u64) {
    container.sh(&format!(
        "for i in $(seq 1000); do [ $(nproc) = {cpus} ] && exit; sleep 0.1; done; nproc; exit 1"
    ));
}

/// All VMs boot alike; what they have then is their pods' affair.
fn vms_grow_to_their_pods_limits() {
    let pod = |cpus: u64, mib: u64| {
        let resources = json!({
            "cpu_quota": cpus * 100_000, "cpu_period": 100_000, "memory_limit_in_bytes": mib * MIB,
        });
        Pod::with(handler(), json!({"linux": {"resources": resources}}))
    };
    let (large, small) = (pod(4, 2048), pod(1, 128));
    // The limit of a container of the large one, which it may use at once.
    let container = running(
        &large,
        json!({"memory_limit_in_bytes": 1500 * MIB}),
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=40; rm /dev/shm/x; exec sleep 1000",
    );
    wait_memory(&container, 2048 + 180, 2048 + 256);
    wait_cpus(&container, 4);
    let limit = container.sh("cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit, (1500 * MIB).to_string());
    let container = small.start(BUSYBOX, &["sleep", "1000"]);
    wait_memory(&container, 128 + 180, 128 + 256);
    wait_cpus(&container, 1);
    // The shape is the same: only what is in use is not.
    let possible = container.sh("cat /sys/devices/system/cpu/possible");
    assert_ne!(possible, "0");
    // One vCPU alone is made, and none after it.
    let two = pod(2, 128);
    wait_cpus(&two.start(BUSYBOX, &["sleep", "1000"]), 2);
}

fn a_vm_grows_and_shrinks_with_its_containers_limits() {
    let pod = Pod::run();
    let container = running(
        &pod,
        json!({"memory_limit_in_bytes": 64 * MIB, "cpu_quota": 50000, "cpu_period": 100000}),
        "sleep 1000",
    );
    wait_memory(&container, 64 + 180, 64 + 256);
    let update = |mib: u64, quota: u64| {
        sh(&format!(
            "crictl update --memory {} --cpu-quota {quota} --cpu-period 100000 {}",
            mib * MIB,
            container.id
        ))
    };
    update(1024, 300_000);
    wait_memory(&container, 1024 + 180, 1024 + 256);
    wait_cpus(&container, 3);
    // It is there to be used.
    container.sh("dd if=/dev/zero of=/dev/null bs=600M count=1");
    // A second container has its part too, and takes it along.
    let second = running(
        &pod,
        json!({"memory_limit_in_bytes": 512 * MIB}),
        "sleep 1000",
    );
    wait_memory(&container, 1536 + 180, 1536 + 256);
    sh(&format!("crictl rm -f {}", second.id));
    // What the guest can spare is taken back.
    update(64, 50_000);
    wait_memory(&container, 180, 900);
    assert_eq!(
        container.sh("cat /sys/fs/cgroup/memory.max"),
        (64 * MIB).to_string()
    );
}

/// MiB of the guest's memory that the host holds for it alone.
fn guest_memory(pod: &Pod) -> u64 {
    number(&sh(&format!(
        "awk '/^[0-9a-f]+-/{{d=0}} /^Private_Dirty/{{d=$2}} /^VmFlags/{{if (/ dd/) sum+=d}} \
         END{{print int(sum/1024)}}' /proc/{}/smaps",
        vmm(pod)
    )))
}

fn freed_memory_goes_back_to_the_host() {
    let pod = Pod::with(
        handler(),
        json!({"linux": {"resources": {"memory_limit_in_bytes": 512 * MIB}}}),
    );
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let before = guest_memory(&pod);
    container.sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null");
    container
        .sh("dd if=/dev/zero of=/ballast bs=1M count=300 2>/dev/null; cat /ballast >/dev/null");
    let used = guest_memory(&pod);
    assert!(used > before + 200, "{before} MiB, then {used} MiB");
    container.sh("rm /dev/shm/x /ballast");
    // The guest reports what is free every other second.
    for _ in 0..60 {
        if guest_memory(&pod) < before + 60 {
            return;
        }
        sh("sleep 1");
    }
    panic!(
        "{before} MiB, then {used}, and still {}",
        guest_memory(&pod)
    );
}

fn the_vm_is_as_large_as_the_pods_limits() {
    // The test host may have one processor only; a guest has more if it is told so.
    let _configured = Configured::with("max_vcpus = 4");
    let pod = Pod::with(
        handler(),
        json!({"linux": {"resources": {"cpu_quota": 300000, "cpu_period": 100000, "memory_limit_in_bytes": 536870912}}}),
    );
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    // The further CPUs come while the pod runs already.
    container.sh("for i in $(seq 1000); do [ $(nproc) = 3 ] && exit; sleep 0.1; done; exit 1");
    let memory = number(&container.sh("awk '/^MemTotal/{print $2}' /proc/meminfo"));
    assert!((512 << 10..800 << 10).contains(&memory), "{memory} KiB");
}

fn a_full_scratch_disk_is_the_pods_own_trouble() {
    let before = leaks::snapshot();
    {
        let _configured = Configured::with("scratch_mib = 64");
        let pod = Pod::run();
        let greedy = pod.start(BUSYBOX, &["sleep", "1000"]);
        let other = pod.start(BUSYBOX, &["sleep", "1000"]);
        other.sh("echo kept > /kept");
        let said = greedy.sh("dd if=/dev/zero of=/big bs=1M count=1000 2>&1; true");
        assert!(said.contains("No space left on device"), "{said}");
        let said = other.sh("dd if=/dev/zero of=/more bs=1M count=1 2>&1; true");
        assert!(said.contains("No space left on device"), "{said}");
        // Nobody has lost anything, and the space comes back.
        assert_eq!(other.sh("cat /kept"), "kept");
        assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_READY");
        greedy.sh("rm /big");
        other.sh("dd if=/dev/zero of=/more bs=1M count=10 2>/dev/null && sync");
        // Full again when all of it is removed.
        greedy.sh("dd if=/dev/zero of=/big bs=1M count=1000 2>/dev/null; true");
    }
    leaks::settled(&before);
}
