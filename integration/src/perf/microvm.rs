//! One microVM of ours without containerd, until its agent answers.

use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmm::{BootFiles, Event, VmSpec, Vmm};

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

/// Spawn of `joey-vmm` to the agent's answer over vsock: what a cold sandbox costs
/// without containerd, network and container.
pub async fn joey_boot(parts: &Parts<'_>, scratch: &Path, limit: Duration) -> anyhow::Result<Run> {
    let open = |path: &Path, write: bool| -> anyhow::Result<OwnedFd> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(write)
            .open(path);
        Ok(file
            .with_context(|| format!("cannot open {}", path.display()))?
            .into())
    };
    let socket = parts.directory.join("joey.vsock");
    let _ = std::fs::remove_file(&socket);

    let begin = Instant::now();
    let mut stages = Vec::new();
    let mut lap = Duration::ZERO;
    let mut stage = |name: &str| {
        let now = begin.elapsed();
        stages.push((name.to_owned(), lap, now));
        lap = now;
    };
    let mut vmm = Vmm::spawn(parts.vmm, None, None).context("cannot spawn joey-vmm")?;
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
        scratch: scratch.as_fd(),
        vsock_listener: vsock_listener.as_fd(),
        tap: None,
        serial: None,
    };
    let spec = VmSpec {
        id: "bench".into(),
        vcpus: 1,
        memory_mib: parts.memory_mib,
        net: None,
        uid: 64999,
        gid: 64999,
        console: false,
    };
    vmm.boot(&spec, files)?;
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
