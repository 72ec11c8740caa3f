//! One microVM of ours without containerd, until its agent answers.

use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmm::{BootFiles, Event, Place, RestoreFiles, RunFiles, VmSpec, Vmm};

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
pub async fn cold(parts: &Parts<'_>, scratch: &Path, limit: Duration) -> anyhow::Result<Run> {
    let host = Host::new(parts, scratch)?;
    let mut watch = Watch::start();
    let mut vmm = host.spawn(parts)?;
    watch.stage("spawn");
    host.boot(parts, &mut vmm)?;
    watch.stage("boot: VM made and jailed");
    host.run(&mut vmm)?;
    wait_ready(&vmm, limit)?;
    watch.stage("guest kernel and agent");
    let run = watch.answer(&host, limit).await?;
    vmm.shutdown()?;
    Ok(run)
}

/// A VM that is gone on from.
pub struct Template {
    memory: File,
    state: File,
    changes: File,
}

impl Template {
    /// Boots a VM and saves it, in two files of this directory.
    pub async fn make(
        parts: &Parts<'_>,
        scratch: &Path,
        directory: &Path,
        limit: Duration,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let file = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true);
            options.open(directory.join(name))
        };
        let (memory, state, changes) = (file("memory")?, file("state")?, file("changes")?);
        memory.set_len(u64::from(parts.memory_mib) << 20)?;
        let host = Host::new(parts, scratch)?;
        let mut vmm = host.spawn(parts)?;
        host.boot(parts, &mut vmm)?;
        host.run(&mut vmm)?;
        wait_ready(&vmm, limit)?;
        Watch::start().answer(&host, limit).await?;
        while vmm.stats()?.vsock.open > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        vmm.pause()?;
        vmm.save(memory.as_fd(), state.as_fd())?;
        vmm.log_writes()?;
        vmm.resume()?;
        Watch::start().answer(&host, limit).await?;
        vmm.pause()?;
        vmm.changes(memory.as_fd(), changes.as_fd())?;
        vmm.shutdown()?;
        Ok(Self {
            memory,
            state,
            changes,
        })
    }

    /// `ahead`: nobody waits for it yet.
    fn restore(&self, parts: &Parts<'_>, vmm: &mut Vmm, ahead: bool) -> anyhow::Result<()> {
        let (kvm, kernel) = (
            open(Path::new("/dev/kvm"), true)?,
            open(parts.kernel, false)?,
        );
        let files = RestoreFiles {
            kvm: kvm.as_fd(),
            kernel: kernel.as_fd(),
            memory: self.memory.as_fd(),
            state: self.state.as_fd(),
            changes: Some(self.changes.as_fd()),
        };
        Ok(vmm.restore(&spec(parts), files, ahead)?)
    }
}

/// Spawn of `joey-vmm` to the agent's answer, from a template: where no spare VM is left.
pub async fn restored(
    parts: &Parts<'_>,
    template: &Template,
    scratch: &Path,
    limit: Duration,
) -> anyhow::Result<Run> {
    let host = Host::new(parts, scratch)?;
    let mut watch = Watch::start();
    let mut vmm = host.spawn(parts)?;
    watch.stage("spawn");
    template.restore(parts, &mut vmm, false)?;
    watch.stage("restore: VM made and jailed");
    watch.finish(&host, &mut vmm, limit).await
}

/// The taking of a VM that waits for a pod to its agent's answer.
pub async fn taken(
    parts: &Parts<'_>,
    template: &Template,
    scratch: &Path,
    limit: Duration,
) -> anyhow::Result<Run> {
    let host = Host::new(parts, scratch)?;
    let mut spare = host.spawn(parts)?;
    template.restore(parts, &mut spare, true)?;
    let path = parts.directory.join("spare");
    let _ = std::fs::remove_file(&path);
    let pid = spare.pid();
    let pidfd = spare.park(Vmm::listener(&path)?.as_fd(), limit)?;

    let mut watch = Watch::start();
    let log = open(Path::new("/dev/null"), true)?;
    let mut vmm = Vmm::take(&path, pid, pidfd.try_clone()?, log)?;
    watch.stage("take");
    let run = watch.finish(&host, &mut vmm, limit).await?;
    vmm.wait()?;
    Ok(run)
}

/// What a VM needs of the host, made before the watch is started.
struct Host {
    network: OwnedFd,
    scratch: File,
    socket: PathBuf,
    listener: UnixListener,
}

impl Host {
    fn new(parts: &Parts<'_>, scratch: &Path) -> anyhow::Result<Self> {
        let socket = parts.directory.join("joey.vsock");
        let _ = std::fs::remove_file(&socket);
        Ok(Self {
            // A node has made it before.
            network: vmm::place::empty_network().context("cannot make a network namespace")?,
            scratch: open(scratch, true)?,
            listener: UnixListener::bind(&socket)?,
            socket,
        })
    }

    fn spawn(&self, parts: &Parts<'_>) -> anyhow::Result<Vmm> {
        let place = Place {
            cgroup: None,
            network: Some(self.network.as_fd()),
            lease: None,
        };
        Vmm::spawn(parts.vmm, place, None).context("cannot spawn joey-vmm")
    }

    fn boot(&self, parts: &Parts<'_>, vmm: &mut Vmm) -> anyhow::Result<()> {
        let kvm = open(Path::new("/dev/kvm"), true)?;
        let (kernel, initramfs) = (open(parts.kernel, false)?, open(parts.initramfs, false)?);
        let files = BootFiles {
            kvm: kvm.as_fd(),
            kernel: kernel.as_fd(),
            initramfs: initramfs.as_fd(),
            serial: None,
        };
        Ok(vmm.boot(&spec(parts), files)?)
    }

    fn run(&self, vmm: &mut Vmm) -> anyhow::Result<()> {
        let files = RunFiles {
            scratch: self.scratch.as_fd(),
            vsock_listener: self.listener.as_fd(),
            tap: None,
            outlets: None,
        };
        Ok(vmm.run(files, self.scratch.metadata()?.len(), vmm::offloads())?)
    }
}

/// A stop watch with laps.
struct Watch {
    begin: Instant,
    lap: Duration,
    stages: Vec<(String, Duration, Duration)>,
}

impl Watch {
    fn start() -> Self {
        Self {
            begin: Instant::now(),
            lap: Duration::ZERO,
            stages: Vec::new(),
        }
    }

    fn stage(&mut self, name: &str) {
        let now = self.begin.elapsed();
        self.stages.push((name.to_owned(), self.lap, now));
        self.lap = now;
    }

    /// The last laps of a VM that goes on, which then ends.
    async fn finish(mut self, host: &Host, vmm: &mut Vmm, limit: Duration) -> anyhow::Result<Run> {
        host.run(vmm)?;
        self.stage("run");
        let run = self.answer(host, limit).await?;
        vmm.shutdown()?;
        Ok(run)
    }

    /// The last lap: the agent answers.
    async fn answer(mut self, host: &Host, limit: Duration) -> anyhow::Result<Run> {
        tokio::time::timeout(limit, answer(&host.socket))
            .await
            .context("the agent does not answer")??;
        self.stage("first call");
        Ok(Run {
            total: self.lap,
            stages: self.stages,
        })
    }
}

fn spec(parts: &Parts<'_>) -> VmSpec {
    VmSpec {
        vcpus: 1,
        memory_mib: parts.memory_mib,
        hotplug_mib: 0,
        offloads: vmm::offloads(),
        uid: 64999,
        gid: 64999,
        console: false,
    }
}

fn open(path: &Path, write: bool) -> anyhow::Result<File> {
    let file = File::options().read(true).write(write).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn wait_ready(vmm: &Vmm, limit: Duration) -> anyhow::Result<()> {
    let events = vmm.events().context("joey-vmm has no event stream")?;
    events.set_read_timeout(Some(limit))?;
    let mut line = String::new();
    std::io::BufReader::new(events).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(Event::Ready) => Ok(()),
        other => bail!("instead of Ready the VMM said {other:?}"),
    }
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
