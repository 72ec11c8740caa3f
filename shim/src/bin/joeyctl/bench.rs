//! `joeyctl bench`: how long microVMs take to start on this node. Without containerd, network
//! and containers, by the node's configuration; or of the sandboxes that run, as their shims
//! noted it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use shim::config::{Config, Mode};
use shim::guest::{self, Guest, Vsock};
use shim::host::record::Record;
use shim::host::uids::UidLease;
use shim::host::{files, record, scratch};
use shim::stages::{self, Stages};
use vmm::{BootFiles, Event, VmSpec, Vmm};

use crate::node;
use crate::waterfall::{self, Stage, Start};

/// How long a guest may take until its agent is there.
const READY_TIME: Duration = Duration::from_secs(60);
/// Longest event of a VMM in bytes.
const MAX_EVENT: u64 = 8 << 10;

/// Starts so many microVMs one after the other, and one before them that does not count.
pub fn run(config: &Config, runs: u32, json: bool) -> anyhow::Result<()> {
    if config.mode == Mode::Runc {
        bail!("by this configuration pods run on the host's kernel: there is no VM to start");
    }
    ensure!(runs > 0, "--runs must be at least 1");
    let mut starts = Vec::new();
    for number in 0..=runs {
        let start = start(config).with_context(|| format!("microVM {number}"))?;
        // The first one of a node formats the scratch template and reads files from disk.
        if number > 0 {
            starts.push(start);
        }
    }
    let title = format!(
        "microVMs (vcpus {}, memory_mib {}), from nothing to the agent's first answer, cold",
        config.vcpus, config.memory_mib
    );
    waterfall::print(&title, &starts, json)
}

/// Tells what the starts of the sandboxes took that run on this node.
pub fn running(config: &Config, json: bool) -> anyhow::Result<()> {
    let starts: Vec<Start> = node::sandboxes(&config.state_dir)
        .iter()
        .filter_map(|record| noted(&config.state_dir, record))
        .collect();
    ensure!(!starts.is_empty(), "no sandbox runs on this node");
    waterfall::print(
        "the sandboxes of this node, without containers",
        &starts,
        json,
    )
}

/// As the shim writes it.
#[derive(Deserialize)]
struct Noted {
    total: u64,
    stages: Vec<Stage>,
}

/// What a shim noted; one that is still at it has not.
fn noted(state_dir: &Path, record: &Record) -> Option<Start> {
    let path = record::path(state_dir, &record.namespace, &record.id).join(stages::FILE);
    let noted: Noted = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(Start {
        total_us: noted.total,
        stages: noted.stages,
    })
}

/// A directory of our own, which goes with all that is in it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> anyhow::Result<Directory> {
        let path = std::env::temp_dir().join("joeyctl-bench-XXXXXX");
        Ok(Directory(nix::unistd::mkdtemp(&path).with_context(
            || format!("cannot make {}", path.display()),
        )?))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Starts a microVM and ends it.
fn start(config: &Config) -> anyhow::Result<Start> {
    let directory = Directory::new()?;
    let vsock = Vsock::new(directory.0.join("vsock"));
    // The locks of user ids are there, as for every shim.
    fs::create_dir_all(&config.state_dir)?;

    let stages = Stages::default();
    let begin = Instant::now();
    let (kvm, kernel, agent, scratch) = stages.time_blocking("files", || {
        anyhow::Ok((
            files::kvm()?,
            files::kernel(&config.kernel)?,
            files::agent(&config.agent)?,
            scratch::create(&config.data_dir, config.scratch_mib)?,
        ))
    })?;
    let (mut vmm, lease) = stages.time_blocking("spawn", || {
        files::vmm(&config.vmm)?;
        let name = directory.0.to_string_lossy();
        let (base, count) = (config.uid_base, config.uid_count);
        let lease = UidLease::take(&config.state_dir, &name, base, count)?;
        anyhow::Ok((Vmm::spawn(&config.vmm, None, None)?, lease))
    })?;
    let events = stages.time_blocking("boot", || {
        let listener = UnixListener::bind(vsock.path())?;
        let spec = VmSpec {
            id: "joeyctl-bench".into(),
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            net: None,
            uid: lease.uid,
            gid: lease.uid,
            console: false,
        };
        let files = BootFiles {
            kvm: kvm.as_fd(),
            kernel: kernel.as_fd(),
            initramfs: agent.as_fd(),
            scratch: scratch.as_fd(),
            vsock_listener: listener.as_fd(),
            tap: None,
            serial: None,
        };
        vmm.boot(&spec, files)
            .context("cannot boot the VM; `joeyctl doctor` tells more")?;
        anyhow::Ok(vmm.events()?)
    })?;
    stages.time_blocking("ready", || wait_ready(events))?;
    stages.time_blocking("first call", || node::run(answer(vsock)))?;
    let total_us = u64::try_from(begin.elapsed().as_micros())?;
    // What it would do in a guest's time is nobody's: it is killed here, and reaped.
    drop(vmm);
    Ok(Start {
        total_us,
        stages: stages.list().into_iter().map(Stage::from).collect(),
    })
}

fn wait_ready(events: UnixStream) -> anyhow::Result<()> {
    events.set_read_timeout(Some(READY_TIME))?;
    let mut line = String::new();
    BufReader::new(events.take(MAX_EVENT))
        .read_line(&mut line)
        .context("nothing was heard of the guest")?;
    match serde_json::from_str(&line) {
        Ok(Event::Ready) => Ok(()),
        Ok(Event::Stopped { reason }) => bail!("the guest has stopped: {reason}"),
        _ => bail!("the VMM has died; `joeyctl doctor` tells more"),
    }
}

async fn answer(vsock: Vsock) -> anyhow::Result<()> {
    let guest = Guest::connect(vsock).await?;
    guest
        .guest
        .stats(guest::bounded(), &Default::default())
        .await
        .context("the agent does not answer")?;
    Ok(())
}
