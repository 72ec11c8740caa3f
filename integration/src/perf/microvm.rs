//! One microVM without containerd: ours until the agent answers, Firecracker's
//! until its init runs.

use std::fs::File;
use std::io::BufRead;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use vmm::{BootFiles, Event, Place, RunFiles, VmSpec, Vmm};

use super::report::Run;

/// Where the parts of a microVM lie.
pub struct Parts<'a> {
    /// The `joey-vmm` binary.
    pub vmm: &'a Path,
    /// Guest kernel.
    pub kernel: &'a Path,
    /// Initramfs whose init rings the doorbell.
    pub initramfs: &'a Path,
    /// A directory for the run's socket and scratch file.
    pub directory: &'a Path,
    /// Guest memory in MiB.
    pub memory_mib: u32,
}

/// Spawn of a Firecracker to the moment that its init dials the host. The same
/// kernel as ours, `initramfs` with a minimal init, no network and no disk.
pub fn firecracker_boot(firecracker: &Path, parts: &Parts, limit: Duration) -> anyhow::Result<Run> {
    let socket = parts.directory.join("fc.vsock");
    let doorbell = parts.directory.join("fc.vsock_1");
    for stale in [&socket, &doorbell] {
        let _ = std::fs::remove_file(stale);
    }
    let listener = UnixListener::bind(&doorbell).context("doorbell socket")?;
    let config = parts.directory.join("fc.json");
    std::fs::write(
        &config,
        json!({
            "boot-source": {
                "kernel_image_path": parts.kernel,
                "initrd_path": parts.initramfs,
                "boot_args": "reboot=k panic=-1 nomodule quiet i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce",
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": parts.memory_mib},
            "drives": [],
            "vsock": {"guest_cid": 3, "uds_path": socket},
        })
        .to_string(),
    )?;
    let begin = Instant::now();
    let mut child = Command::new(firecracker)
        .args(["--no-api", "--no-seccomp", "--config-file"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {}", firecracker.display()))?;
    let rang = wait_readable(&listener, limit);
    let total = begin.elapsed();
    child.kill()?;
    child.wait()?;
    if !rang? {
        bail!("Firecracker's guest did not reach its init in {limit:?}");
    }
    Ok(Run {
        total,
        stages: Vec::new(),
    })
}

fn wait_readable(listener: &UnixListener, limit: Duration) -> anyhow::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::try_from(limit)?)? == 1)
}

/// Spawn of `joey-vmm` to the agent's answer over vsock: what a cold sandbox costs
/// without containerd, network and container.
pub async fn joey_boot(parts: &Parts<'_>, scratch: &Path, limit: Duration) -> anyhow::Result<Run> {
    let open = |path: &Path, write: bool| -> anyhow::Result<File> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(write)
            .open(path);
        file.with_context(|| format!("cannot open {}", path.display()))
    };
    let socket = parts.directory.join("joey.vsock");
    let _ = std::fs::remove_file(&socket);
    // A node has made it before.
    let network = vmm::place::empty_network().context("cannot make a network namespace")?;
    let place = Place {
        cgroup: None,
        network: Some(network.as_fd()),
        lease: None,
    };

    let begin = Instant::now();
    let mut stages = Vec::new();
    let mut lap = Duration::ZERO;
    let mut stage = |name: &str| {
        let now = begin.elapsed();
        stages.push((name.to_owned(), lap, now));
        lap = now;
    };
    let mut vmm = Vmm::spawn(parts.vmm, place, None).context("cannot spawn joey-vmm")?;
    stage("spawn");
    let kvm = open(Path::new("/dev/kvm"), true)?;
    let kernel = open(parts.kernel, false)?;
    let initramfs = open(parts.initramfs, false)?;
    let scratch = open(scratch, true)?;
    let vsock_listener = UnixListener::bind(&socket)?;
    let files = BootFiles {
        kvm: kvm.as_fd(),
        kernel: kernel.as_fd(),
        initramfs: initramfs.as_fd(),
        serial: None,
    };
    let spec = VmSpec {
        vcpus: 1,
        memory_mib: parts.memory_mib,
        hotplug_mib: 0,
        offloads: vmm::offloads(),
        uid: 64999,
        gid: 64999,
        console: false,
    };
    let size = scratch.metadata()?.len();
    vmm.boot(&spec, files)?;
    let files = RunFiles {
        scratch: scratch.as_fd(),
        vsock_listener: vsock_listener.as_fd(),
        tap: None,
        outlets: None,
    };
    vmm.run(files, size, spec.offloads)?;
    stage("boot: VM made and jailed");
    let events = vmm.events().context("joey-vmm has no event stream")?;
    events.set_read_timeout(Some(limit))?;
    let mut line = String::new();
    std::io::BufReader::new(events).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(Event::Ready) => {}
        other => bail!("instead of Ready the VMM said {other:?}"),
    }
    stage("guest kernel and agent");
    tokio::time::timeout(limit, answer(&socket))
        .await
        .context("the agent does not answer")??;
    stage("first call");
    let total = begin.elapsed();
    vmm.shutdown()?;
    Ok(Run { total, stages })
}

/// One call of the agent over a fresh vsock connection.
async fn answer(socket: &Path) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream
        .write_all(format!("CONNECT {}\n", protocol::ports::RPC).as_bytes())
        .await?;
    // Byte by byte: what follows the line belongs to ttrpc.
    let mut byte = [0];
    while byte != *b"\n" {
        stream
            .read_exact(&mut byte)
            .await
            .context("the guest refused the connection")?;
    }
    let client =
        ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::new(stream));
    let guest = protocol::guest_ttrpc::GuestClient::new(client);
    guest
        .stats(
            ttrpc::context::with_duration(Duration::from_secs(30)),
            &Default::default(),
        )
        .await?;
    Ok(())
}
