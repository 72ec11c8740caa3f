//! The jail of a real pod's VMM as the host sees it. What a VMM that was taken over cannot
//! reach, attempt by attempt, is in the VMM's own tests.

use libtest_mimic::Trial;

use crate::cri::{BUSYBOX, Container, Pod, run, sh, text};
use crate::leaks;
use crate::trial;

/// Bound on the memory of what runs a guest of 256 MiB: that, a quarter of it, and 1 GiB.
const MEMORY: u64 = 1344 << 20;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "jail::the_vmm_has_nothing_of_the_host",
            the_vmm_has_nothing_of_the_host,
        ),
        trial("jail::threads_are_bounded", threads_are_bounded),
        trial("jail::memory_is_bounded", memory_is_bounded),
        trial("jail::the_cgroup_ends_the_vmm", the_cgroup_ends_the_vmm),
    ]
}

/// A pod's VMM.
struct Jailed {
    _pod: Pod,
    /// Before it is started, a VMM that waited for a pod may not be in the pod's cgroup.
    container: Container,
    pid: u64,
}

impl Jailed {
    fn run() -> Self {
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        let pid = pod.inspect()["info"]["pid"].as_u64().expect("a pid");
        Self {
            _pod: pod,
            container,
            pid,
        }
    }

    /// A file of its directory in /proc, trimmed.
    fn read(&self, file: &str) -> String {
        sh(&format!("cat /proc/{}/{file}", self.pid))
    }

    /// The words after each line's name in its status, or a thread's.
    fn status(&self, directory: &str, name: &str) -> Vec<String> {
        let text = self.read(&format!("{directory}status"));
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn cgroup(&self) -> String {
        let path = sh(&format!("sed -n 's/^0:://p' /proc/{}/cgroup", self.pid));
        format!("/sys/fs/cgroup{path}")
    }
}

fn the_vmm_has_nothing_of_the_host() {
    let before = leaks::snapshot();
    {
        let vmm = Jailed::run();
        let pid = vmm.pid;
        // All that a guest has it talks to while somebody looks.
        assert_eq!(vmm.container.sh("echo fine"), "fine");

        let user = vmm.status("", "Uid:").remove(0);
        assert!(user.parse::<u32>().expect("a user id") >= 1_885_000_000);
        assert_eq!(vmm.status("", "Uid:"), vec![user.clone(); 4]);
        assert_eq!(vmm.status("", "Gid:"), vec![user.clone(); 4]);
        assert!(vmm.status("", "Groups:").is_empty());
        for map in ["uid_map", "gid_map"] {
            let text = vmm.read(map);
            let words: Vec<_> = text.split_whitespace().collect();
            assert_eq!(words, [user.as_str(), user.as_str(), "1"], "{map}");
        }
        assert_eq!(vmm.read("setgroups"), "deny");
        assert_eq!(
            vmm.status("", "NSpid:").last().map(String::as_str),
            Some("1")
        );

        // KVM's own thread too.
        let threads = sh(&format!("ls /proc/{pid}/task"));
        assert!(threads.lines().count() > 4, "{threads}");
        for thread in threads.lines() {
            let directory = format!("task/{thread}/");
            assert_eq!(vmm.status(&directory, "Seccomp:"), ["2"]);
            assert_eq!(vmm.status(&directory, "NoNewPrivs:"), ["1"]);
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(vmm.status(&directory, set), ["0000000000000000"], "{set}");
            }
        }

        for namespace in ["mnt", "pid", "net", "ipc", "uts", "user"] {
            let ours = sh(&format!("readlink /proc/self/ns/{namespace}"));
            let theirs = sh(&format!("readlink /proc/{pid}/ns/{namespace}"));
            assert_ne!(ours, theirs, "{namespace}");
        }
        assert_eq!(sh(&format!("ls -A /proc/{pid}/root/")), "");
        assert_eq!(vmm.read("mountinfo").lines().count(), 1);
        assert_eq!(
            sh(&format!("nsenter -t {pid} -n ip -o link | wc -l")),
            "1",
            "a loopback interface alone"
        );
        assert_eq!(sh(&format!("nsenter -t {pid} -u hostname")), "joey");

        // Nothing that leads to the host's files but what the VM is made of.
        let files = sh(&format!(
            "for f in /proc/{pid}/fd/*; do readlink $f; done | grep ^/ | grep -v ^/dev/null"
        ));
        for file in files.lines() {
            let expected = file == "/usr/local/share/joey/vmlinux"
                || file == "/dev/net/tun"
                // Its user id is taken as long as it lives; no thread's filter lets it lock.
                || file == "/run/joey/uids.lock"
                || file.starts_with("/var/lib/joey/")
                || file.ends_with(".erofs");
            assert!(expected, "{file} is open");
        }

        let limits = vmm.read("limits");
        for limit in [
            "core file size",
            "locked memory",
            "msgqueue size",
            "pending signals",
            "nice priority",
            "realtime priority",
        ] {
            let line = limits.lines().find(|line| line.contains(limit));
            let words: Vec<_> = line.expect("a limit").split_whitespace().collect();
            let numbers = words.iter().filter(|word| **word == "0").count();
            assert_eq!(numbers, 2, "{limit}: {words:?}");
        }
        let of_cgroup = |file: &str| sh(&format!("cat {}/{file}", vmm.cgroup()));
        assert_eq!(of_cgroup("memory.max"), MEMORY.to_string());
        assert_eq!(of_cgroup("pids.max"), "128");

        // The next one joins the same network, which was mounted once.
        let next = Jailed::run();
        let network = |pid| sh(&format!("readlink /proc/{pid}/ns/net"));
        assert_eq!(network(pid), network(next.pid));
        let mounts = "grep -c ' /run/joey/no-network ' /proc/self/mountinfo";
        assert_eq!(sh(mounts), "1");
        for namespace in ["mnt", "pid", "ipc", "uts", "user"] {
            let of = |pid| sh(&format!("readlink /proc/{pid}/ns/{namespace}"));
            assert_ne!(of(pid), of(next.pid), "{namespace}");
        }
    }
    leaks::settled(&before);
}

/// A stranger in the VMM's cgroup stands for one that was taken over.
fn threads_are_bounded() {
    let vmm = Jailed::run();
    let said = run(&format!(
        "sh -c 'echo $$ > {}/cgroup.procs; for i in $(seq 200); do sleep 30 & done; wait' 2>&1",
        vmm.cgroup()
    ));
    let said = text(&said.stdout);
    assert!(said.contains("fork"), "{said}");
    assert_eq!(vmm.container.sh("echo fine"), "fine");
}

fn memory_is_bounded() {
    let vmm = Jailed::run();
    let said = run(&format!(
        "sh -c 'echo $$ > {}/cgroup.procs; exec dd if=/dev/zero of=/dev/null bs=1600M count=1'",
        vmm.cgroup()
    ));
    assert_eq!(said.status, 137, "{}", text(&said.stderr));
    // The largest process is killed, which is not the VMM.
    assert_eq!(vmm.container.sh("echo fine"), "fine");
}

/// The first process of a pid namespace is spared many signals, but not this one.
fn the_cgroup_ends_the_vmm() {
    let before = leaks::snapshot();
    {
        let vmm = Jailed::run();
        sh(&format!("echo 1 > {}/cgroup.kill", vmm.cgroup()));
        assert_eq!(vmm.container.wait(), 137);
    }
    leaks::settled(&before);
}
