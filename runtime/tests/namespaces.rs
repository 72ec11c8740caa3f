//! Namespaces, made and joined.

mod common;

use std::process::{Child, Command, Stdio};

use common::Bundle;
use serde_json::{Value, json};

/// A process of the host in namespaces of its own, for a container to join. It ends when its
/// standard input does.
struct Holder(Child);

impl Holder {
    fn new(flags: &[&str]) -> Self {
        use std::io::{BufRead, BufReader};
        let mut child = Command::new("unshare")
            .args(flags)
            .args(["sh", "-c", "echo ready; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }

    fn link(&self, kind: &str) -> String {
        let link = std::fs::read_link(self.path(kind)).unwrap();
        link.to_str().unwrap().to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn join(bundle: &mut Bundle, kind: &str, path: &str) {
    bundle.without_namespace(kind);
    bundle.push("/linux/namespaces", json!({"type": kind, "path": path}));
}

fn own(kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    link.to_str().unwrap().to_owned()
}

#[test]
fn each_kind_is_the_container_s_own() {
    let mut bundle = Bundle::new(
        "for n in cgroup ipc mnt net pid time uts; do readlink /proc/self/ns/$n; done; echo pid $$; cat /proc/self/cgroup; ls /sys/class/net",
    );
    bundle.push("/linux/namespaces", json!({"type": "time"}));
    let text = bundle.run();
    for (line, kind) in text
        .lines()
        .zip(["cgroup", "ipc", "mnt", "net", "pid", "time", "uts"])
    {
        assert!(line.starts_with(kind) && line != own(kind), "{line}");
    }
    assert!(text.contains("\npid 1\n"), "{text}");
    assert!(text.contains("\n0::/\n"), "{text}");
    assert!(text.ends_with("\nlo\n"), "{text}");
}

#[test]
fn what_is_not_listed_is_shared_with_the_host() {
    let mut bundle = Bundle::new("for n in ipc net uts; do readlink /proc/self/ns/$n; done");
    for kind in ["ipc", "network", "uts"] {
        bundle.without_namespace(kind);
    }
    bundle.spec["hostname"] = json!(null);
    assert_eq!(
        bundle.run(),
        format!("{}\n{}\n{}\n", own("ipc"), own("net"), own("uts"))
    );
}

#[test]
fn names_and_kernel_parameters() {
    let mut bundle = Bundle::new(
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax",
    );
    bundle.spec["domainname"] = json!("example");
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"});
    assert_eq!(bundle.run(), "inside\nexample\n1\n4096\n");
}

#[test]
fn a_network_ipc_and_uts_namespace_are_joined() {
    let holder = Holder::new(&["-n", "-i", "-u"]);
    let mut bundle = Bundle::new("for n in ipc net uts; do readlink /proc/self/ns/$n; done");
    bundle.spec["hostname"] = json!(null);
    for (kind, file) in [("ipc", "ipc"), ("network", "net"), ("uts", "uts")] {
        join(&mut bundle, kind, &holder.path(file));
    }
    assert_eq!(
        bundle.run(),
        format!(
            "{}\n{}\n{}\n",
            holder.link("ipc"),
            holder.link("net"),
            holder.link("uts")
        )
    );
}

#[test]
fn a_pid_namespace_is_joined_and_the_next_process_is_not_born_there() {
    let holder = Holder::new(&["-p", "-f"]);
    let mut bundle = Bundle::new("readlink /proc/self/ns/pid; echo own $$");
    let path = format!("/proc/{}/ns/pid_for_children", holder.0.id());
    join(&mut bundle, "pid", &path);
    let added = json!({"exec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["readlink", "/proc/self/ns/pid"]}}});
    let outcomes = bundle.take(json!(["create", added, "start", "wait",
        {"delete": {"force": false}}, "children"]));
    let inside = std::fs::read_link(&path)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(outcomes[1]["output"], format!("{inside}\n"));
    let text = outcomes[3]["output"].as_str().unwrap();
    assert!(
        text.starts_with(&inside) && !text.contains("own 1\n"),
        "{text}"
    );
}

#[test]
fn clocks_are_moved_in_a_time_namespace() {
    let mut bundle = Bundle::new("cut -d. -f1 /proc/uptime");
    bundle.push("/linux/namespaces", json!({"type": "time"}));
    bundle.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000}});
    let seconds: u64 = bundle.run().trim().parse().unwrap();
    assert!(seconds >= 1_000_000_000, "{seconds}");
}

fn map_users(bundle: &mut Bundle) {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.push("/linux/namespaces", json!({"type": "user"}));
    bundle.spec["linux"]["uidMappings"] = maps.clone();
    bundle.spec["linux"]["gidMappings"] = maps;
    give_root(bundle);
}

fn give_root(bundle: &Bundle) {
    let status = Command::new("chown")
        .args(["-Rh", "100000:100000"])
        .arg(bundle.rootfs())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_user_namespace_is_made() {
    let mut bundle = Bundle::new(
        "cat /proc/self/uid_map; id -u; stat -c %u /new; echo x > /dev/null && \
         stat -c '%t:%T' /dev/zero; grep CapEff /proc/self/status; cat /data/file; stat -c %u /made",
    );
    map_users(&mut bundle);
    bundle.spec["process"]["cwd"] = json!("/new");
    let host = bundle.dir.join("private");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "data\n").unwrap();
    std::fs::set_permissions(
        &bundle.dir,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/data", "type": "bind", "source": host,
        "options": ["rbind", "ro"]}),
    );
    bundle.push(
        "/mounts",
        json!({"destination": "/made", "type": "tmpfs", "source": "tmpfs"}),
    );
    let text = bundle.run();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
    assert_eq!(
        lines[1..],
        ["0", "0", "1:5", "CapEff:\t00000000080000e1", "data", "0"]
    );
    let made = std::fs::metadata(bundle.rootfs().join("new")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

#[test]
fn a_user_namespace_takes_no_priority_away() {
    let mut bundle = Bundle::new("cut -d' ' -f19,41 /proc/self/stat; cat /proc/self/oom_score_adj");
    map_users(&mut bundle);
    bundle.spec["process"]["oomScoreAdj"] = json!(7);
    bundle.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": -5});
    assert_eq!(bundle.run(), "-5 3\n7\n");
}

#[test]
fn a_time_namespace_is_joined() {
    let holder = Holder::new(&["-T", "--boottime", "2000000000"]);
    let mut bundle = Bundle::new("cut -d. -f1 /proc/uptime");
    let path = holder.path("time_for_children");
    bundle.push("/linux/namespaces", json!({"type": "time", "path": path}));
    let seconds: u64 = bundle.run().trim().parse().unwrap();
    assert!(seconds >= 2_000_000_000, "{seconds}");
}

#[test]
fn a_user_namespace_sees_the_shared_queues_names_and_network() {
    let mut bundle = Bundle::new(
        "for n in ipc net uts; do readlink /proc/self/ns/$n; done; \
         ls -d /sys/class/net /dev/mqueue; grep -c ' /dev/mqueue .* mqueue ' /proc/self/mountinfo",
    );
    map_users(&mut bundle);
    for kind in ["ipc", "network", "uts"] {
        bundle.without_namespace(kind);
    }
    bundle.spec["hostname"] = json!(null);
    assert_eq!(
        bundle.run(),
        format!(
            "{}\n{}\n{}\n/dev/mqueue\n/sys/class/net\n1\n",
            own("ipc"),
            own("net"),
            own("uts")
        )
    );
}

#[test]
fn a_process_is_added_to_a_user_namespace() {
    let mut bundle = Bundle::new("exec sleep 1000");
    map_users(&mut bundle);
    bundle.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]);
    let added = json!({"exec": {"process": {"user": {"uid": 7, "gid": 8, "additionalGids": [9]},
        "cwd": "/", "args": ["sh", "-c", "id -u; id -G; ulimit -n; readlink /proc/self/ns/user"]}}});
    let outcomes = bundle.take(json!(["create", "start", added, {"delete": {"force": true}}]));
    let text = outcomes[2]["output"].as_str().unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["7", "8 9", "64"]);
    assert_ne!(lines[3], own("user"));
}

#[test]
fn a_user_namespace_is_joined_with_others_made_in_it() {
    let holder = Holder::new(&["-U", "-n"]);
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", holder.0.id()), "0 100000 65536").unwrap();
    }
    let mut bundle = Bundle::new(
        "for n in user net; do readlink /proc/self/ns/$n; done; id -u; echo pid $$; hostname; \
         ls /sys/class/net; stat -c %u /mapped",
    );
    give_root(&bundle);
    join(&mut bundle, "user", &holder.path("user"));
    join(&mut bundle, "network", &holder.path("net"));
    // Given again as they are, they say nothing new; others would not come true.
    let maps = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
    bundle.spec["linux"]["uidMappings"] = maps(100_000);
    bundle.spec["linux"]["gidMappings"] = maps(200_000);
    let error = bundle.fail().0;
    assert!(error.starts_with("linux.gidMappings: "), "{error}");
    bundle.spec["linux"]["gidMappings"] = maps(100_000);
    // An id-mapped mount takes the namespace's.
    let host = bundle.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/mapped", "source": host, "options": ["rbind", "idmap"]}),
    );
    let outcomes = bundle.take(
        json!(["create", "start", "wait", {"delete": {"force": false}},
        "children"]),
    );
    assert_eq!(outcomes[2]["code"], 0, "{outcomes:?}");
    assert_eq!(
        outcomes[2]["output"],
        format!(
            "{}\n{}\n0\npid 1\ninside\nlo\n0\n",
            holder.link("user"),
            holder.link("net")
        )
    );
    assert_eq!(outcomes[3], Value::Null);
    assert_eq!(outcomes[4], false);
}

#[test]
fn without_a_mount_namespace_nothing_stays_on_the_host() {
    let mut bundle =
        Bundle::new("readlink /proc/self/ns/mnt; ls /; echo started > /tmp/there; sleep 1000");
    bundle.spec["linux"]["namespaces"] = json!([]);
    for field in ["hostname", "domainname"] {
        bundle.spec.as_object_mut().unwrap().remove(field);
    }
    // An mqueue of the host's may not be shown twice, and sysfs is the host's.
    bundle.spec["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]);
    bundle.spec["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    bundle.spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let look = json!({"exec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["/bin/sh", "-c", "until [ -e /tmp/there ]; do :; done; ls /; readlink /proc/self/ns/mnt"]}}});
    let outcomes =
        bundle.take(json!(["create", "start", look, {"delete": {"force": true}}, "wait"]));
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let seen = outcomes[2]["output"].as_str().unwrap();
    assert!(seen.contains(own.to_str().unwrap()), "{seen}");
    assert!(seen.starts_with("bin\n") && !seen.contains("usr"), "{seen}");
    assert_eq!(outcomes[3], json!(null));
    assert_eq!(outcomes[4]["signal"], 9);
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(
        before.matches(&bundle.id).count(),
        after.matches(&bundle.id).count(),
        "{after}"
    );
    // Nor after a failure when all is mounted.
    bundle.spec["process"]["args"] = json!(["/no/such"]);
    bundle.fail();
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!after.contains(&bundle.id), "{after}");
}
