//! Firecracker beside our own microVM: with the same kernel and size, a minimal init, no
//! network and no disk. Without its seccomp filters, which only make it slower.

use std::ffi::CString;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify;
use serde_json::{Value, json};

use super::microvm::Parts;
use super::report::Run;

const BOOT_ARGUMENTS: &str =
    "reboot=k panic=-1 nomodule quiet i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
/// Names in a run's directory: the API's socket, the vsock device's, and what the host is
/// dialled on by the guest's init.
const API: &str = "fc.api";
const VSOCK: &str = "fc.vsock";
const DOORBELL: &str = "fc.vsock_1";
/// Longest answer of the API that is read.
const MAX_ANSWER: usize = 4096;

/// Spawn of a Firecracker to the moment that its init dials the host.
pub fn boot(firecracker: &Path, parts: &Parts, limit: Duration) -> anyhow::Result<Run> {
    let machine = Machine::prepare(parts)?;
    let begin = Instant::now();
    let _process = machine.spawn(firecracker, |command| command.arg("--no-api"))?;
    machine.wait_for_init(limit)?;
    Ok(Run {
        total: begin.elapsed(),
        stages: Vec::new(),
    })
}

/// What a booted VM was saved to. It is removed when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    directory: PathBuf,
}

impl Snapshot {
    /// Boots a VM, pauses it when its init runs, and saves all of it to `directory`, which
    /// is made, and should be on a tmpfs: a disk would be measured otherwise.
    pub fn take(
        firecracker: &Path,
        parts: &Parts,
        directory: &Path,
        limit: Duration,
    ) -> anyhow::Result<Snapshot> {
        std::fs::create_dir_all(directory)?;
        let snapshot = Snapshot {
            directory: directory.to_owned(),
        };
        let machine = Machine::prepare(parts)?;
        let socket = Socket::announced(parts.directory)?;
        let _process = machine.spawn(firecracker, |command| {
            command.arg("--api-sock").arg(parts.directory.join(API))
        })?;
        let mut api = socket.connect(limit)?;
        machine.wait_for_init(limit)?;
        call(&mut api, "PATCH", "/vm", &json!({"state": "Paused"}))?;
        let request = json!({
            "snapshot_type": "Full",
            "snapshot_path": snapshot.state(),
            "mem_file_path": snapshot.memory(),
        });
        call(&mut api, "PUT", "/snapshot/create", &request)?;
        Ok(snapshot)
    }

    /// Spawn of a Firecracker to its answer that the snapshot is loaded and runs.
    pub fn restore(
        &self,
        firecracker: &Path,
        parts: &Parts,
        limit: Duration,
    ) -> anyhow::Result<Run> {
        remove_sockets(parts.directory);
        let socket = Socket::announced(parts.directory)?;
        let request = json!({
            "snapshot_path": self.state(),
            "mem_backend": {"backend_type": "File", "backend_path": self.memory()},
            "resume_vm": true,
        });
        let mut command = Command::new(firecracker);
        command.arg("--no-seccomp");
        command.arg("--api-sock").arg(parts.directory.join(API));
        let begin = Instant::now();
        let _process = Process::spawn(&mut command)?;
        let mut api = socket.connect(limit)?;
        let connected = begin.elapsed();
        call(&mut api, "PUT", "/snapshot/load", &request)?;
        let total = begin.elapsed();
        Ok(Run {
            total,
            stages: vec![
                ("API socket".to_owned(), Duration::ZERO, connected),
                ("load and resume".to_owned(), connected, total),
            ],
        })
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // The test host, and with it the tmpfs, ends with the bench.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What a VM boots from, and where its init will be heard.
struct Machine {
    config: PathBuf,
    doorbell: UnixListener,
}

impl Machine {
    fn prepare(parts: &Parts) -> anyhow::Result<Machine> {
        remove_sockets(parts.directory);
        let doorbell =
            UnixListener::bind(parts.directory.join(DOORBELL)).context("doorbell socket")?;
        let config = parts.directory.join("fc.json");
        let machine = json!({
            "boot-source": {
                "kernel_image_path": parts.kernel,
                "initrd_path": parts.initramfs,
                "boot_args": BOOT_ARGUMENTS,
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": parts.memory_mib},
            "drives": [],
            "vsock": {"guest_cid": 3, "uds_path": parts.directory.join(VSOCK)},
        });
        std::fs::write(&config, machine.to_string())?;
        Ok(Machine { config, doorbell })
    }

    fn spawn(
        &self,
        firecracker: &Path,
        api: impl FnOnce(&mut Command) -> &mut Command,
    ) -> anyhow::Result<Process> {
        let mut command = Command::new(firecracker);
        command.arg("--no-seccomp").arg("--config-file");
        Process::spawn(api(command.arg(&self.config)))
    }

    fn wait_for_init(&self, limit: Duration) -> anyhow::Result<()> {
        let rang = wait_readable(self.doorbell.as_fd(), limit)?;
        ensure!(
            rang,
            "Firecracker's guest did not reach its init in {limit:?}"
        );
        Ok(())
    }
}

/// A process that is killed and reaped when it is dropped.
struct Process(Child);

impl Process {
    fn spawn(command: &mut Command) -> anyhow::Result<Process> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let program = command.get_program().to_string_lossy();
        Ok(Process(
            child.with_context(|| format!("cannot run {program}"))?,
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have died already; reaping it cannot fail then either.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The API's socket, of which the kernel tells when it appears: a look now and then would
/// cost instructions that are not Firecracker's, or time.
struct Socket {
    path: PathBuf,
    announcements: OwnedFd,
}

impl Socket {
    /// To be called before the process is started.
    fn announced(directory: &Path) -> anyhow::Result<Socket> {
        let announcements = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&announcements, directory, inotify::WatchFlags::CREATE)?;
        Ok(Socket {
            path: directory.join(API),
            announcements,
        })
    }

    fn connect(&self, limit: Duration) -> anyhow::Result<UnixStream> {
        let name = CString::new(API)?;
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut announced = inotify::Reader::new(&self.announcements, &mut buffer);
        loop {
            let there =
                !announced.is_buffer_empty() || wait_readable(self.announcements.as_fd(), limit)?;
            ensure!(there, "Firecracker's API did not appear in {limit:?}");
            if announced.next()?.file_name() == Some(name.as_c_str()) {
                break;
            }
        }
        loop {
            match UnixStream::connect(&self.path) {
                // It is bound and announced, but not yet listened to: two system calls.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    std::thread::yield_now();
                }
                stream => {
                    let stream = stream.context("Firecracker's API")?;
                    stream.set_read_timeout(Some(limit))?;
                    return Ok(stream);
                }
            }
        }
    }
}

/// One request, which must be answered with "204 No Content".
fn call(api: &mut UnixStream, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
    let body = body.to_string();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    api.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 512];
        let count = api.read(&mut piece).with_context(|| path.to_owned())?;
        ensure!(
            count > 0 && answer.len() < MAX_ANSWER,
            "Firecracker broke off its answer to {path}"
        );
        answer.extend_from_slice(&piece[..count]);
    }
    if !answer.starts_with(b"HTTP/1.1 204") {
        bail!(
            "Firecracker refused {path}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    Ok(())
}

/// What an earlier VM left: Firecracker does not bind a path that is there.
fn remove_sockets(directory: &Path) {
    for name in [API, VSOCK, DOORBELL] {
        let _ = std::fs::remove_file(directory.join(name));
    }
}

fn wait_readable(fd: BorrowedFd, limit: Duration) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::try_from(limit)?)? == 1)
}
