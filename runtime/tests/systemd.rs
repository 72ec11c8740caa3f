//! Containers in scopes of a real systemd. It is process 1 of namespaces that the test makes, and
//! has only units of the test; its cgroups are below some that the test makes. Needs the package
//! `systemd`, and of version 1 a systemd before 258.

#![cfg(feature = "systemd")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Bundle, cgroup_version, inside};
use serde_json::{Value, json};

const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Makes the mounts of a host and becomes its systemd. `$1` is the version of cgroups; with
/// version 1 the others are the controllers of each hierarchy.
const BOOT: &str = r#"
    set -e
    mount --make-rprivate /
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mkdir -p /run/units /run/generators
    echo '[Unit]' > /run/units/default.target
    umount -R /sys/fs/cgroup
    version=$1
    shift
    if [ "$version" = 2 ]; then
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    else
        mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
        for options; do
            point=/sys/fs/cgroup/${options#name=}
            mkdir "$point"
            mount -t cgroup -o "$options" cgroup "$point"
        done
    fi
    exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH=/run/units \
        SYSTEMD_GENERATOR_PATH=/run/generators SYSTEMD_PROC_CMDLINE= \
        /usr/lib/systemd/systemd --system --unit=default.target --log-target=null
"#;

/// A systemd. Dropping it ends all that it has started.
struct Host {
    process: Child,
    pid: u32,
    cgroups: Vec<PathBuf>,
}

impl Host {
    /// `None` where there is no systemd for it, or the version is not mounted here.
    fn boot(version: u32) -> Option<Self> {
        if !Path::new(SYSTEMD).exists() {
            eprintln!("not tested here: this machine has no {SYSTEMD}");
            return None;
        }
        let mounts: Vec<(PathBuf, String)> = common::hierarchies()
            .into_iter()
            .filter(|(root, _)| root.join("cgroup.controllers").exists() == (version == 2))
            .collect();
        if mounts.is_empty() || (version == 2 && mounts.len() != 1) {
            eprintln!("not tested here: this machine has no cgroup version {version}");
            return None;
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("joey-systemd-{}-{number}", std::process::id());
        let cgroups: Vec<_> = mounts.iter().map(|(root, _)| root.join(&name)).collect();
        let mut enter = String::new();
        for cgroup in &cgroups {
            std::fs::create_dir(cgroup).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let parents = cgroup.parent().unwrap().join(file);
                if version == 1
                    && let Ok(list) = std::fs::read(parents)
                {
                    std::fs::write(cgroup.join(file), list).unwrap();
                }
            }
            enter.push_str(&format!("echo $$ > {}/cgroup.procs\n", cgroup.display()));
        }
        let unshare = "exec unshare -m -p -u -i -C --fork --kill-child sh -c \"$0\" sh \"$@\"";
        let options = mounts.iter().map(|(_, options)| {
            let all = options.split(',');
            let kept = all.filter(|one| !["rw", "ro", "xattr"].contains(one));
            kept.collect::<Vec<_>>().join(",")
        });
        let process = Command::new("sh")
            .args([
                "-ec",
                &format!("{enter}{unshare}"),
                BOOT,
                &version.to_string(),
            ])
            .args(options.filter(|options| version == 1 && !options.is_empty()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut host = Self {
            process,
            pid: 0,
            cgroups,
        };
        // systemd has its socket when it can be asked.
        let children = format!("/proc/{0}/task/{0}/children", host.process.id());
        for _ in 0..1000 {
            let list = std::fs::read_to_string(&children).unwrap_or_default();
            if let Ok(pid) = list.trim().parse() {
                host.pid = pid;
                if host.systemctl(&["is-active", "default.target"]).trim() == "active" {
                    return Some(host);
                }
            }
            assert!(
                host.process.try_wait().unwrap().is_none(),
                "systemd has ended"
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("systemd does not come up");
    }

    fn systemctl(&self, arguments: &[&str]) -> String {
        let output = inside(self.pid)
            .arg("systemctl")
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Properties of a unit, in their order.
    fn show(&self, unit: &str, names: &str) -> String {
        self.systemctl(&["show", unit, "--value", "-p", names])
            .trim()
            .to_owned()
    }

    fn bundle(&self, script: &str) -> Bundle {
        let mut bundle = Bundle::new(script);
        bundle.driver = Some("systemd");
        bundle.host = Some(self.pid);
        bundle.without_namespace("cgroup");
        bundle.spec["linux"]["cgroupsPath"] = json!(format!("a-b.slice:p:{}", bundle.id));
        bundle
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for cgroup in &self.cgroups {
            // The end of systemd is the end of its namespace; its cgroups are left.
            let remove = format!(
                "until ! grep -q . $(find {0} -name cgroup.procs); do sleep 0.1; done; \
                 find {0} -depth -type d -exec rmdir {{}} +",
                cgroup.display()
            );
            let _ = Command::new("timeout")
                .args(["10", "sh", "-c", &remove])
                .status();
        }
    }
}

fn scope(bundle: &Bundle) -> String {
    format!("p-{}.scope", bundle.id)
}

fn look(script: &str) -> Value {
    json!({"exec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["sh", "-c", script]}}})
}

fn lives_in_its_scope(version: u32) {
    let Some(host) = Host::boot(version) else {
        return;
    };
    let mut bundle = host.bundle("exec sleep 1000");
    let mut annotations = serde_json::Map::new();
    for (name, value) in [
        ("TimeoutStopSec", "uint64 7"),
        ("CollectMode", "'inactive-or-failed'"),
    ] {
        annotations.insert(format!("org.systemd.property.{name}"), json!(value));
    }
    bundle.spec["annotations"] = annotations.into();
    let outcomes = bundle.take(json!([
        "create",
        "start",
        look("cat /proc/self/cgroup"),
        "load",
        "pids",
        "pause",
        "status",
        "resume"
    ]));
    for outcome in &outcomes {
        assert!(outcome.get("error").is_none(), "{outcome}");
    }
    let unit = scope(&bundle);
    let path = format!("/a.slice/a-b.slice/{unit}");
    let tree = if version == 1 { "name=systemd:" } else { "0::" };
    let output = outcomes[2]["output"].as_str().unwrap();
    assert!(output.contains(&format!("{tree}{path}\n")), "{output}");
    // Every hierarchy of version 1, those too that systemd leaves alone.
    let everywhere = output
        .lines()
        .filter(|line| version == 1 && !line.contains("0::"));
    everywhere.for_each(|line| assert!(line.ends_with(&path), "{line}"));
    assert_eq!(outcomes[4].as_array().unwrap().len(), 1);
    assert_eq!(outcomes[6], "paused");
    assert_eq!(host.show(&unit, "ActiveState"), "active");
    assert_eq!(host.show(&unit, "Delegate"), "yes");
    assert_eq!(host.show(&unit, "Slice"), "a-b.slice");
    assert_eq!(host.show(&unit, "TimeoutStopUSec"), "7s");
    assert_eq!(host.show(&unit, "CollectMode"), "inactive-or-failed");

    // Another container with the same name is refused and changes nothing.
    let mut other = host.bundle("true");
    other.spec["linux"]["cgroupsPath"] = json!(format!("a-b.slice:p:{}", bundle.id));
    let (error, _) = other.fail();
    assert!(
        error.contains(&format!("has a unit {unit} already")),
        "{error}"
    );
    assert_eq!(host.show(&unit, "ActiveState"), "active");

    let outcomes = bundle.take(json!(["load", {"delete": {"force": true}}]));
    assert_eq!(outcomes[1], Value::Null);
    assert_eq!(host.show(&unit, "LoadState"), "not-found");

    // A failed create leaves no unit.
    let mut broken = host.bundle("true");
    broken.spec["process"]["args"] = json!(["/no/such"]);
    broken.fail();
    assert_eq!(host.show(&scope(&broken), "LoadState"), "not-found");

    // Deleting is fine when systemd has removed the scope already.
    let ended = host.bundle("true");
    ended.run();
    assert_eq!(host.show(&scope(&ended), "LoadState"), "not-found");
}

#[test]
fn a_container_lives_in_its_scope() {
    lives_in_its_scope(2);
}

#[test]
fn a_container_lives_in_its_scope_of_version_1() {
    lives_in_its_scope(1);
}

#[test]
fn limits_are_properties_and_files() {
    let version = cgroup_version();
    let Some(host) = Host::boot(version) else {
        return;
    };
    let mut bundle = host.bundle("exec sleep 1000");
    let resources = &mut bundle.spec["linux"]["resources"];
    resources["memory"] = json!({"limit": 64 << 20});
    resources["pids"] = json!({"limit": 1});
    resources["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100_000});
    let outcomes = bundle.take(json!(["create", "stats", "start",
        {"update": {"pids": {"limit": 20}, "cpu": {"quota": 25000}}}]));
    for outcome in &outcomes {
        assert!(outcome.get("error").is_none(), "{outcome}");
    }
    assert_eq!(outcomes[1]["pids_limit"], 1);
    assert_eq!(outcomes[1]["pids"], 1);
    let unit = scope(&bundle);
    assert_eq!(host.show(&unit, "TasksMax"), "20");
    assert_eq!(host.show(&unit, "CPUQuotaPerSecUSec"), "250ms");
    let memory = if version == 1 {
        "MemoryLimit"
    } else {
        "MemoryMax"
    };
    assert_eq!(host.show(&unit, memory), (64 << 20).to_string());
    if version == 2 {
        host.systemctl(&["daemon-reload"]);
    }
    let files = match version {
        1 => {
            "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares \
             cpu/cpu.cfs_quota_us; (mknod /tmp/k c 10 229; true < /tmp/k) 2>&1 | grep -c permitted"
        }
        _ => {
            "cd /sys/fs/cgroup/a.slice/a-b.slice/p-*; cat memory.max pids.max cpu.weight cpu.max; \
             (mknod /tmp/k c 10 229; true < /tmp/k) 2>&1 | grep -c permitted"
        }
    };
    let outcomes = bundle.take(json!(["load", look(files), {"delete": {"force": true}}]));
    let expected = match version {
        1 => "67108864\n20\n512\n25000\n1\n",
        _ => "67108864\n20\n59\n25000 100000\n1\n",
    };
    assert_eq!(outcomes[1]["output"], expected);
    assert_eq!(host.show(&unit, "LoadState"), "not-found");
}

#[test]
fn without_systemd_the_error_says_so() {
    if Path::new("/run/systemd/private").exists() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.driver = Some("systemd");
    bundle.spec["linux"]["cgroupsPath"] = json!("a.slice:p:n");
    let (error, _) = bundle.fail();
    assert!(
        error.starts_with("systemd is not running as the system's manager"),
        "{error}"
    );
    bundle.spec["linux"]["cgroupsPath"] = json!("/a/b");
    let (error, _) = bundle.fail();
    assert!(
        error.contains("is not of the form slice:prefix:name"),
        "{error}"
    );
}
