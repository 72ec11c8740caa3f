//! Bundles, and the program that drives the engine with them.
//!
//! The tests make containers and so need root, cgroups and a static busybox (the package
//! `busybox-static`, or the file named by `RUNTIME_TEST_BUSYBOX`). The driver is the example
//! `engine`, which cargo builds with the tests; `RUNTIME_TEST_ENGINE` names another copy, for a
//! machine without cargo.

#![allow(dead_code, reason = "each test file uses its own part")]

#[cfg(feature = "cli")]
pub mod driven;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// A container to be, with its bundle in a directory of its own. Dropping it removes the directory.
pub struct Bundle {
    pub dir: PathBuf,
    pub id: String,
    pub spec: Value,
    pub terminal: Option<&'static str>,
    /// Who makes the cgroup; the engine itself by default.
    pub driver: Option<&'static str>,
    /// A process in whose namespaces the engine runs.
    pub host: Option<u32>,
}

impl Bundle {
    /// A bundle with a root file system of busybox, and a spec like those that containerd makes,
    /// whose command is a shell that runs `script`.
    pub fn new(script: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("t{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(format!("runtime-{id}"));
        let rootfs = dir.join("rootfs");
        for path in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "var"] {
            std::fs::create_dir_all(rootfs.join(path)).unwrap();
        }
        let busybox = busybox();
        std::fs::copy(&busybox, rootfs.join("bin/busybox")).unwrap();
        let list = Command::new(&busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines() {
            if applet != "busybox" {
                std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
            }
        }
        std::fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
        )
        .unwrap();
        let spec = spec(&id, script);
        Self {
            dir,
            id,
            spec,
            terminal: None,
            driver: None,
            host: None,
        }
    }

    /// The root file system's directory.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Adds an entry to a list of the spec.
    pub fn push(&mut self, pointer: &str, value: Value) {
        self.spec
            .pointer_mut(pointer)
            .and_then(Value::as_array_mut)
            .unwrap_or_else(|| panic!("no list {pointer}"))
            .push(value);
    }

    /// Takes the namespaces of a type out of the spec.
    pub fn without_namespace(&mut self, kind: &str) {
        self.spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|namespace| namespace["type"] != kind);
    }

    /// Takes steps and returns the outcome of each.
    pub fn take(&self, steps: Value) -> Vec<Value> {
        let script = json!({
            "id": self.id,
            "bundle": self.dir,
            "state_dir": self.dir.join("state"),
            "spec": self.spec,
            "terminal": self.terminal,
            "driver": self.driver,
            "steps": steps,
        });
        let mut engine = match self.host {
            None => Command::new(engine()),
            Some(host) => {
                let mut command = inside(host);
                command.arg(engine());
                command
            }
        };
        let mut engine = engine
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        engine
            .stdin
            .take()
            .unwrap()
            .write_all(script.to_string().as_bytes())
            .unwrap();
        let output = engine.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let outcomes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        // Shown when the test fails.
        for outcome in &outcomes {
            eprintln!("{outcome}");
        }
        outcomes
    }

    /// Runs the container from create to delete, and returns what it wrote. It must exit with 0.
    pub fn run(&self) -> String {
        let outcomes = self.take(json!(["create", "start", "wait", {"delete": {"force": false}}]));
        for outcome in &outcomes {
            assert!(outcome.get("error").is_none(), "{outcome}");
        }
        assert_eq!(outcomes[2]["code"], 0, "{}", outcomes[2]);
        outcomes[2]["output"].as_str().unwrap().to_owned()
    }

    /// Creates the container, which must fail and leave nothing behind. Returns the error and its
    /// kind.
    pub fn fail(&self) -> (String, String) {
        let outcomes = self.take(json!(["create", "children"]));
        let text = |name: &str| match outcomes[0][name].as_str() {
            Some(text) => text.to_owned(),
            None => panic!("no {name}: {}", outcomes[0]),
        };
        assert_eq!(outcomes[1], false, "a process is left behind");
        assert!(!self.dir.join("state").join(&self.id).exists());
        assert_eq!(cgroups_of(&self.id), Vec::<PathBuf>::new());
        (text("error"), text("kind"))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // The directory of a failed test is of use only to whoever looks at it.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
            for (root, _) in hierarchies() {
                // Goes with the last container in it.
                let _ = std::fs::remove_dir(root.join("joey-test"));
            }
        }
    }
}

/// A command to be completed that runs in the namespaces of a process.
pub fn inside(host: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &host.to_string(), "-m", "-p", "-u", "-i", "-C"]);
    command
}

/// The lines of a text as `name: value` or `name value` pairs, found by name.
pub fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix([':', ' ', '='])?
                .trim()
                .into()
        })
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Where the cgroup hierarchies are mounted, each with the options of the mount.
pub fn hierarchies() -> Vec<(PathBuf, String)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = right.split(' ');
            fields.next()?.starts_with("cgroup").then_some(())?;
            let point = PathBuf::from(left.split(' ').nth(4)?);
            Some((point, fields.nth(1)?.to_owned()))
        })
        .collect()
}

/// The version of cgroups that has the controllers.
pub fn cgroup_version() -> u32 {
    let separate = hierarchies().iter().any(|(_, options)| {
        let mut options = options.split(',');
        options.any(|option| ["memory", "cpu", "pids", "devices"].contains(&option))
    });
    if separate { 1 } else { 2 }
}

/// What there is of a container's cgroup, in all hierarchies.
pub fn cgroups_of(id: &str) -> Vec<PathBuf> {
    hierarchies()
        .into_iter()
        .map(|(root, _)| root.join("joey-test").join(id))
        .filter(|path| path.exists())
        .collect()
}

/// Whether a controller is there; says so when it is not, and the test ends there.
pub fn has_controller(name: &str) -> bool {
    let there = hierarchies().iter().any(|(root, options)| {
        let list = std::fs::read_to_string(root.join("cgroup.controllers"));
        options.split(',').any(|option| option == name)
            || list.is_ok_and(|list| list.split_whitespace().any(|other| other == name))
    });
    if !there {
        eprintln!("not tested here: this machine has no controller {name}");
    }
    there
}

/// A file's name in the container, by the version of cgroups.
pub fn by_version(first: &'static str, second: &'static str) -> &'static str {
    if cgroup_version() == 1 { first } else { second }
}

fn engine() -> PathBuf {
    if let Some(path) = std::env::var_os("RUNTIME_TEST_ENGINE") {
        return path.into();
    }
    // Tests lie in <target>/<profile>/deps, examples beside that.
    let test = std::env::current_exe().unwrap();
    let engine = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/engine");
    assert!(
        engine.exists(),
        "build the driver: cargo build -p runtime --examples"
    );
    engine
}

fn busybox() -> PathBuf {
    let named = std::env::var_os("RUNTIME_TEST_BUSYBOX").map(PathBuf::from);
    named
        .into_iter()
        .chain(["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from))
        .find(|path| path.exists())
        .expect("busybox is missing: install busybox-static")
}

fn spec(id: &str, script: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/joey-test/{id}"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/sys/firmware", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
