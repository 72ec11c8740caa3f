//! The life of a container without containerd, by the command lines of OCI runtimes: create, start
//! and delete of `true`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use serde_json::json;

use super::report::Run;

/// The cgroup for a runtime and its container, so that the memory of both is counted together.
const CGROUP: &str = "/sys/fs/cgroup/joey-bench-oci";

/// A bundle and what drives it.
pub struct Lives {
    bundle: PathBuf,
}

impl Lives {
    /// Makes a bundle below `directory` whose command is a static `true`, with what containerd asks
    /// for in its specs. The calling process collects the containers' processes from here on.
    pub fn prepare(directory: &Path) -> anyhow::Result<Self> {
        let bundle = directory.join("oci-bundle");
        let rootfs = bundle.join("rootfs");
        for path in ["bin", "proc", "sys", "dev"] {
            std::fs::create_dir_all(rootfs.join(path))?;
        }
        std::fs::copy("/usr/bin/busybox", rootfs.join("bin/true")).context("copy busybox")?;
        std::fs::write(bundle.join("config.json"), spec().to_string())?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        for path in [CGROUP.to_owned(), format!("{CGROUP}/runtime")] {
            std::fs::create_dir_all(&path).with_context(|| path)?;
        }
        std::fs::write(format!("{CGROUP}/cgroup.subtree_control"), "+memory +pids")
            .context("count the memory of runtimes")?;
        Ok(Self { bundle })
    }

    /// One life under `runtime`: how long the three calls took, without the time in which `true`
    /// itself ran between them.
    pub fn time(&self, runtime: &Path) -> anyhow::Result<Run> {
        let call = |verb: &str| {
            Command::new(runtime)
                .args(self.arguments(verb))
                .spawn_to_null()
        };
        let begin = Instant::now();
        call("create")?;
        let created = begin.elapsed();
        let first = self.first_process()?;
        let again = Instant::now();
        call("start")?;
        let started = created + again.elapsed();
        wait(&first)?;
        let again = Instant::now();
        call("delete")?;
        let total = started + again.elapsed();
        Ok(Run {
            total,
            stages: vec![
                ("create".to_owned(), Default::default(), created),
                ("start".to_owned(), created, started),
                ("delete".to_owned(), started, total),
            ],
        })
    }

    /// One life under `runtime` in a cgroup: the most memory that the runtime's processes and the
    /// container used at any time, in bytes.
    pub fn peak(&self, runtime: &Path) -> anyhow::Result<u64> {
        let file = format!("{CGROUP}/memory.peak");
        // Writing to it starts the count anew for whoever has it open.
        let counted = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&file)?;
        rustix::io::pwrite(&counted, b"reset", 0).context("start a new count of memory")?;
        for verb in ["create", "start", "delete"] {
            Command::new("/bin/sh")
                .arg("-c")
                .arg(format!(
                    "echo $$ >{CGROUP}/runtime/cgroup.procs; exec \"$0\" \"$@\""
                ))
                .arg(runtime)
                .args(self.arguments(verb))
                .spawn_to_null()?;
            if verb == "start" {
                wait(&self.first_process()?)?;
            }
        }
        let mut text = [0; 32];
        let length = rustix::io::pread(&counted, &mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        text.trim()
            .parse()
            .with_context(|| format!("{file}: {text:?}"))
    }

    fn arguments(&self, verb: &str) -> Vec<String> {
        let path = |name: &str| self.bundle.join(name).display().to_string();
        let mut arguments = vec!["--root".to_owned(), path("state"), verb.to_owned()];
        if verb == "create" {
            let bundle = self.bundle.display().to_string();
            arguments.extend(["--bundle".to_owned(), bundle]);
            arguments.extend(["--pid-file".to_owned(), path("pid")]);
        }
        arguments.push("bench".to_owned());
        arguments
    }

    /// The container's first process.
    fn first_process(&self) -> anyhow::Result<(Pid, OwnedFd)> {
        let text = std::fs::read_to_string(self.bundle.join("pid"))?;
        let pid = Pid::from_raw(text.parse()?).context("the pid file has no process")?;
        Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        for path in [format!("{CGROUP}/runtime"), CGROUP.to_owned()] {
            // Busy only if a life failed, which has been reported.
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Runs a command that must succeed.
trait SpawnToNull {
    fn spawn_to_null(&mut self) -> anyhow::Result<()>;
}

impl SpawnToNull for Command {
    fn spawn_to_null(&mut self) -> anyhow::Result<()> {
        // Not as pipes: a created container keeps them open.
        let status = self
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()
            .with_context(|| format!("cannot run {:?}", self.get_program()))?;
        ensure!(status.success(), "{self:?}: {status}");
        Ok(())
    }
}

/// Waits for the end of a process and collects it: its runtime has left it to us.
fn wait((pid, pidfd): &(Pid, OwnedFd)) -> anyhow::Result<()> {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None)?;
    waitpid(Some(*pid), WaitOptions::empty()).context("collect the container's process")?;
    Ok(())
}

fn spec() -> serde_json::Value {
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
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let hidden = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "oomScoreAdj": 0,
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &hidden),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/mqueue", "mqueue", &hidden),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": "/joey-bench-oci/container",
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 134_217_728},
                "pids": {"limit": 100},
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{
                    "names": ["keyctl", "add_key", "request_key", "mount", "umount2", "ptrace",
                        "kexec_load", "init_module", "finit_module", "delete_module", "bpf",
                        "perf_event_open", "reboot", "swapon", "swapoff", "userfaultfd"],
                    "action": "SCMP_ACT_ERRNO",
                }],
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    })
}
