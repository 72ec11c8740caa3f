//! A case's directory: its bundle with a root file system of busybox and the probe.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::case::Case;
use super::host::CGROUPS;
use super::probe;

/// The cgroup below which every case has its own.
pub const CGROUP: &str = "differential";
/// Where busybox is: the package `busybox-static`.
const BUSYBOX: &str = "/usr/bin/busybox";
const APPLETS: [&str; 32] = [
    "cat", "chmod", "cp", "dd", "echo", "env", "false", "grep", "head", "id", "ionice", "kill",
    "ln", "ls", "mkdir", "mknod", "mount", "ps", "pwd", "readlink", "rm", "sed", "sh", "sleep",
    "sort", "stat", "stty", "test", "touch", "tr", "true", "wc",
];

/// The places of one case.
#[derive(Debug, Clone)]
pub struct Place {
    /// The container's id.
    pub id: String,
    /// The case's own directory.
    pub dir: PathBuf,
    /// What `{runtime}` stands for: the program with its global options.
    pub runtime: String,
}

impl Place {
    /// The place of a case below `work`.
    pub fn new(work: &Path, case: &Case, runtime: &Path) -> Place {
        let id = case.name.replace('/', "-");
        let dir = work.join(&id);
        let runtime = format!("{} --root {}/state", runtime.display(), dir.display());
        Place { id, dir, runtime }
    }

    /// The root of the runtime's state.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// The cgroup that the spec names.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(CGROUPS).join(CGROUP).join(&self.id)
    }

    /// A text with its placeholders filled. Where a number is wanted, `"{n:disk-major}"` and
    /// `"{n:disk-minor}"` stand for a disk of this machine.
    pub fn fill(&self, text: &str) -> String {
        let (major, minor) = disk();
        let path = |path: PathBuf| path.display().to_string();
        text.replace("{id}", &self.id)
            .replace("{dir}", &path(self.dir.clone()))
            .replace("{bundle}", &path(self.bundle()))
            .replace("{rootfs}", &path(self.bundle().join("rootfs")))
            .replace("{state}", &path(self.state()))
            .replace("{cgroup}", &path(self.cgroup()))
            .replace("{runtime}", &self.runtime)
            .replace("\"{n:disk-major}\"", &major.to_string())
            .replace("\"{n:disk-minor}\"", &minor.to_string())
            .replace("{disk}", &format!("{major}:{minor}"))
    }

    /// Makes the directory with the bundle.
    ///
    /// # Errors
    /// When a file cannot be made; `BUSYBOX` is missing, for example.
    pub fn make(&self, case: &Case) -> io::Result<()> {
        let rootfs = self.bundle().join("rootfs");
        for path in [
            "bin", "etc", "proc", "sys", "dev", "tmp", "root", "var", "run",
        ] {
            fs::create_dir_all(rootfs.join(path))?;
        }
        fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::copy(BUSYBOX, rootfs.join("bin/busybox"))?;
        fs::copy(
            "/proc/self/exe",
            rootfs.join(probe::PATH.trim_start_matches('/')),
        )?;
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
        )?;
        fs::write(rootfs.join("etc/group"), "root:x:0:\nstaff:x:50:ann\n")?;
        let config = self.fill(&case.config(base(&self.id)));
        fs::write(self.bundle().join("config.json"), config)
    }
}

/// Any disk of this machine: limits of I/O want one.
fn disk() -> (u64, u64) {
    let number = |path: PathBuf| {
        let text = fs::read_to_string(path.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let mut disks: Vec<_> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("device").exists())
        .collect();
    disks.sort();
    disks.into_iter().find_map(number).unwrap_or((7, 0))
}

/// A spec like those that containerd makes, whose command is the probe.
pub(super) fn base(id: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]);
    let mount = |on: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": on, "type": kind, "source": source, "options": options});
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [probe::PATH],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"]),
            mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{CGROUP}/{id}"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                "/proc/sysrq-trigger"],
        },
    })
}
