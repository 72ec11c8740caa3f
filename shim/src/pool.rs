//! VMs that wait for a pod: restored from the node's template by a sandbox that has just
//! started, for one that is about to. They belong to nobody: each is a process that waits
//! at a socket for its owner, and ends by itself when none comes for some time.
//!
//! A spare VM is the socket `<state_dir>/.pool/<template>/<pid>.<start time>`. Whoever
//! moves it away first has it. How many there are follows how many sandboxes were started
//! lately.

mod demand;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use vmm::Vmm;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::host::cgroup::{self, Cgroup};
use crate::host::lock::ByteLock;
use crate::host::record;
use crate::stages::Stages;
use crate::templates::Template;
use crate::vm::preparation::{find_template, restore};

/// Place of the spare VMs in the state directory; no namespace of containerd begins with a
/// dot.
pub const DIRECTORY: &str = ".pool";
/// Name of the file that is locked by whoever adds spare VMs.
const LOCK: &str = "pool.lock";
/// Their cgroup, until they get their pod's.
const CGROUP: &str = "/joey-pool";
/// How long one waits for its pod.
const IDLE: Duration = Duration::from_secs(600);

/// A spare VM's place.
struct Spare {
    socket: PathBuf,
    pid: i32,
    started: u64,
}

impl Spare {
    /// By its socket's path; `None`: it is something else.
    fn at(socket: PathBuf) -> Option<Self> {
        let name = socket.file_name().and_then(OsStr::to_str)?;
        let (pid, started) = name.split_once('.')?;
        Some(Self {
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
            socket,
        })
    }

    fn lives(&self) -> bool {
        record::start_time(self.pid).is_ok_and(|found| found == Some(self.started))
    }

    /// Takes it, unless it is gone or somebody else is faster.
    fn take(self, log: &File) -> Option<Vmm> {
        // Whoever moves it is the only one who connects.
        let mine = self
            .socket
            .with_extension(format!("taken-{}", std::process::id()));
        fs::rename(&self.socket, &mine).ok()?;
        let taken = || {
            // First the descriptor, then the look whether it is that process's.
            let pidfd = open_process(self.pid)?;
            let log = log.try_clone().ok()?;
            let pid = u32::try_from(self.pid).ok().filter(|_| self.lives())?;
            Vmm::take(&mine, pid, pidfd, log).ok()
        };
        let vmm = taken();
        let _ = fs::remove_file(&mine);
        vmm
    }
}

fn open_process(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Takes a spare VM of a template, if there is one. Its messages go to `log`.
pub fn take(config: &Config, key: &str, log: File) -> Option<Vmm> {
    if config.pool_max == 0 {
        return None;
    }
    let place = place(config, key);
    // Without a directory there is no demand yet, and the first to fill it makes one.
    demand::note(&place);
    entries(&place).find_map(|spare| spare.take(&log))
}

/// Adds spare VMs until there are as many as are wanted, unless somebody else does. What
/// goes wrong is logged.
pub async fn fill(config: Arc<Config>) {
    if config.pool_max == 0 {
        return;
    }
    let added = spawn_blocking(move || add(&config));
    match added.await {
        Ok(Ok(added)) => {
            tokio::spawn(collect(added));
        }
        Ok(Err(error)) => tracing::warn!(%error, "cannot add a spare VM"),
        Err(error) => tracing::warn!(%error, "adding spare VMs"),
    }
}

/// Takes spare VMs' processes off the process table when they end, as long as this process
/// is their parent.
async fn collect(mut processes: Vec<OwnedFd>) {
    let mut children = match signal(SignalKind::child()) {
        Ok(children) => children,
        Err(error) => {
            tracing::warn!(%error, "spare VMs that end stay on the process table");
            return;
        }
    };
    loop {
        processes.retain(|process| matches!(vmm::reap(process.as_fd()), Ok(false)));
        if processes.is_empty() || children.recv().await.is_none() {
            return;
        }
    }
}

/// Blocks.
fn add(config: &Config) -> Result<Vec<OwnedFd>> {
    let mut added = Vec::new();
    let lock = ByteLock::try_acquire(&config.state_dir.join(LOCK), 0);
    let Some(_lock) = lock.map_err(|error| Error::Failed(format!("{LOCK}: {error}")))? else {
        return Ok(added);
    };
    let Some(template) = find_template(config) else {
        return Ok(added);
    };
    let place = place(config, &template.key);
    fs::create_dir_all(&place)
        .map_err(|error| Error::Failed(format!("{}: {error}", place.display())))?;
    tidy(config, &template.key);
    let wanted = demand::wanted(&place, config.pool_max);
    let there = spares(&place).count();
    if there >= wanted {
        return Ok(added);
    }
    let cgroup = Cgroup::create(Path::new(CGROUP), config.pool_max).map_err(Error::failed)?;
    for _ in there..wanted {
        added.push(one(config, &template, &cgroup, &place)?);
    }
    Ok(added)
}

/// Makes one; returns the descriptor of its process.
fn one(config: &Config, template: &Template, cgroup: &Cgroup, place: &Path) -> Result<OwnedFd> {
    let name = format!("spare-{}", std::process::id());
    let stages = Stages::default();
    let (vmm, _log) = restore(config, &name, template, &cgroup.vmm_dir(), true, &stages)?;
    let pid = i32::try_from(vmm.pid()).map_err(Error::failed)?;
    let started = record::start_time(pid).map_err(|error| Error::Failed(error.to_string()))?;
    let started = started.ok_or_else(|| Error::Failed("the VMM has died".into()))?;
    // Not a name that is looked for, until it listens.
    let socket = place.join(format!("new-{pid}"));
    let published = || {
        let listener = Vmm::listener(&socket).map_err(|error| Error::Failed(error.to_string()))?;
        let pidfd = vmm.park(listener.as_fd(), IDLE).map_err(Error::failed)?;
        fs::rename(&socket, place.join(format!("{pid}.{started}")))
            .map_err(|error| Error::Failed(format!("{}: {error}", place.display())))?;
        Ok(pidfd)
    };
    let published = published();
    if published.is_err() {
        let _ = fs::remove_file(&socket);
    }
    published
}

/// All spare VMs, also those that have ended.
fn entries(place: &Path) -> impl Iterator<Item = Spare> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.filter_map(|entry| Spare::at(entry.path()))
}

/// Spare VMs that live; the sockets of others are removed.
fn spares(place: &Path) -> impl Iterator<Item = Spare> {
    entries(place).filter(|spare| {
        let lives = spare.lives();
        if !lives {
            let _ = fs::remove_file(&spare.socket);
        }
        lives
    })
}

/// How many spare VMs of a template there are.
pub fn count(config: &Config, key: &str) -> usize {
    spares(&place(config, key)).count()
}

/// Ends all spare VMs; returns how many there were. Blocks while others are added.
pub fn drain(config: &Config) -> usize {
    // Without the lock some may come back, which are no worse than those.
    let _lock = ByteLock::acquire(&config.state_dir.join(LOCK), 0);
    let mut count = 0;
    for place in places(config) {
        for spare in spares(&place) {
            // To take it and let it go is its end.
            let Ok(null) = File::options().write(true).open("/dev/null") else {
                continue;
            };
            count += usize::from(spare.take(&null).is_some());
        }
    }
    tidy(config, "");
    if let Ok(directory) = cgroup::place(Path::new(CGROUP)) {
        // Unless somebody has just added one.
        let _ = Cgroup::existing(directory).remove();
    }
    count
}

/// Removes what is left of other templates' spare VMs.
fn tidy(config: &Config, key: &str) {
    for place in places(config) {
        if place.file_name() == Some(OsStr::new(key)) || spares(&place).next().is_some() {
            continue;
        }
        let _ = fs::remove_dir_all(&place);
    }
    // Only an empty one goes.
    let _ = fs::remove_dir(config.state_dir.join(DIRECTORY));
}

fn places(config: &Config) -> Vec<PathBuf> {
    let all = fs::read_dir(config.state_dir.join(DIRECTORY));
    let all = all.into_iter().flatten().flatten();
    all.map(|entry| entry.path()).collect()
}

fn place(config: &Config, key: &str) -> PathBuf {
    config.state_dir.join(DIRECTORY).join(key)
}
