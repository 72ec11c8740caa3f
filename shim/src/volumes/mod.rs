//! The pod's volumes: what of the host its containers mount. Directories and files
//! are shared through one virtiofsd a sandbox, emptyDirs are made in the guest, block
//! devices go onto the VM's spare disks.

mod daemon;
mod disk;
mod tree;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use oci_spec::runtime::LinuxIdMapping;
use protocol::guest::{Directory, Disk, DropSharesRequest, Volume, volume};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use crate::error::{Error, Result, chain};
use crate::guest::{self, Guest};
use crate::vm::Vm;

pub use daemon::find as find_daemon;
pub use disk::DiskSource;

use daemon::Daemon;
use tree::Tree;

/// How long a virtiofsd that was killed may take to end.
const END_TIME: Duration = Duration::from_secs(5);

/// How much of a mount may not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {
    /// Nothing: it is writable.
    No,
    /// Not itself; what is mounted below it stays as it is.
    Top,
    /// Not itself and nothing below.
    Recursively,
}

/// A directory or file of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSource {
    /// Where it is.
    pub source: PathBuf,
    /// Where the container wants it; for messages.
    pub destination: PathBuf,
    /// Whether mounts below it come along.
    pub recursive: bool,
    /// Whether mounts that the host makes below it later appear too.
    pub follow: bool,
    /// How much of it may not be written.
    pub read_only: ReadOnly,
    /// The ids that the container's user namespace shows it with, if any.
    pub ids: Option<Ids>,
}

/// A mapping of the ids of files, from inside to outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Of users.
    pub uids: Vec<LinuxIdMapping>,
    /// Of groups.
    pub gids: Vec<LinuxIdMapping>,
    /// Whether mounts below have it too.
    pub recursive: bool,
}

/// A directory that lives as long as the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct EmptyDirSource {
    /// The whole of it on the host.
    pub host: PathBuf,
    /// What it becomes in the guest.
    pub directory: Directory,
    /// Where it has content of the host already: that is shared instead.
    pub share: ShareSource,
}

/// One of a container's volumes.
#[derive(Clone, Debug, PartialEq)]
pub enum VolumeSource {
    /// Shared with the host.
    Share(ShareSource),
    /// Made in the guest.
    EmptyDir(Box<EmptyDirSource>),
}

/// A container's volumes as the agent is told of them.
#[derive(Debug, Default)]
pub struct Prepared {
    /// One for each volume asked for.
    pub volumes: Vec<Volume>,
    /// The device of the shares, if there are some.
    pub share_device: String,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// What makes two shares the same: containers that mount the same directory in the
/// same way see one, so that their caches and locks agree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    source: PathBuf,
    device: u64,
    inode: u64,
    recursive: bool,
    follow: bool,
    read_only: ReadOnly,
    ids: Option<Ids>,
}

struct Share {
    key: Key,
    number: u32,
    /// Containers that mount it, by their ids.
    users: HashSet<String>,
}

/// A virtiofsd that the guest can reach.
struct Shared {
    tree: Arc<Tree>,
    device: String,
}

#[derive(Default)]
struct State {
    shared: Option<Shared>,
    /// A pod has few of them.
    shares: Vec<Share>,
    /// Shares are numbered from 1; a number is used once.
    last_number: u32,
    /// Slots of each container's disks.
    disks: HashMap<String, Vec<u8>>,
    /// Whether each emptyDir is the guest's own. What it was first it stays, or the
    /// pod's containers would see different ones.
    in_guest: HashMap<String, bool>,
}

/// The volumes of a sandbox.
pub struct Volumes {
    /// virtiofsd, when the operator names it.
    program: Option<PathBuf>,
    /// The sandbox's state directory.
    state_dir: PathBuf,
    state: Mutex<State>,
    daemon: StdMutex<Option<Daemon>>,
    /// Why virtiofsd ended, when it has.
    lost: watch::Sender<Option<String>>,
    oom_score: AtomicI32,
}

impl Volumes {
    /// None yet.
    pub fn new(program: Option<PathBuf>, state_dir: PathBuf) -> Self {
        Self {
            program,
            state_dir,
            state: Mutex::default(),
            daemon: StdMutex::default(),
            lost: watch::Sender::new(None),
            oom_score: AtomicI32::new(0),
        }
    }

    /// Makes a container's volumes ready.
    ///
    /// # Errors
    /// Names the volume; nothing of the container's is left then, but what
    /// [`Volumes::release`] removes.
    pub async fn prepare(
        &self,
        vm: &Arc<Vm>,
        container: &str,
        volumes: Vec<VolumeSource>,
        disks: Vec<DiskSource>,
    ) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        if volumes.is_empty() && disks.is_empty() {
            return Ok(prepared);
        }
        let mut state = self.state.lock().await;
        for source in volumes {
            let kind = match source {
                VolumeSource::EmptyDir(empty) if state.is_in_guest(&empty)? => {
                    volume::Kind::Directory(empty.directory)
                }
                VolumeSource::EmptyDir(empty) => {
                    volume::Kind::Share(self.share(vm, &mut state, container, empty.share).await?)
                }
                VolumeSource::Share(share) => {
                    volume::Kind::Share(self.share(vm, &mut state, container, share).await?)
                }
            };
            if matches!(kind, volume::Kind::Share(_))
                && let Some(shared) = &state.shared
            {
                prepared.share_device.clone_from(&shared.device);
            }
            prepared.volumes.push(Volume {
                kind: Some(kind),
                ..Default::default()
            });
        }
        for source in disks {
            let (slot, disk) = disk::attach(vm, source).await?;
            state
                .disks
                .entry(container.to_owned())
                .or_default()
                .push(slot);
            prepared.disks.push(disk);
        }
        Ok(prepared)
    }

    /// The number of a share; it is made if the sandbox has none like it.
    async fn share(
        &self,
        vm: &Arc<Vm>,
        state: &mut State,
        container: &str,
        source: ShareSource,
    ) -> Result<u32> {
        let failed = |error: &dyn std::error::Error| {
            Error::Invalid(format!(
                "mount {} (from {}): cannot be shared with the VM: {}",
                source.destination.display(),
                source.source.display(),
                chain(error)
            ))
        };
        let key = Key::of(&source).map_err(|error| failed(&error))?;
        if let Some(share) = state.shares.iter_mut().find(|share| share.key == key) {
            share.users.insert(container.to_owned());
            return Ok(share.number);
        }
        let tree = match &state.shared {
            Some(shared) => shared.tree.clone(),
            None => {
                let shared = self.start(vm).await?;
                let tree = shared.tree.clone();
                state.shared = Some(shared);
                tree
            }
        };
        let number = state.last_number + 1;
        let shown = source.clone();
        spawn_blocking(move || tree.show(number, &shown))
            .await
            .map_err(Error::failed)?
            .map_err(|error| failed(&error))?;
        state.last_number = number;
        state.shares.push(Share {
            key,
            number,
            users: HashSet::from([container.to_owned()]),
        });
        Ok(number)
    }

    /// Starts virtiofsd and connects the VM to it.
    async fn start(&self, vm: &Arc<Vm>) -> Result<Shared> {
        let program = daemon::find(self.program.as_deref()).map_err(Error::failed)?;
        let cgroup = vm.cgroup().vmm_dir();
        let directory = self.state_dir.clone();
        let lost = self.lost.clone();
        let (tree, daemon, socket) = spawn_blocking(move || {
            let cgroup = File::open(&cgroup)
                .map_err(|error| Error::Failed(format!("{}: {error}", cgroup.display())))?;
            daemon::start(&program, &directory, cgroup, lost).map_err(Error::failed)
        })
        .await
        .map_err(Error::failed)??;
        let root = daemon.root();
        let tree = Arc::new(tree);
        {
            // Owned from here on: whatever fails, it ends with the sandbox.
            let mut ours = self.daemon();
            // It inherits the shim's score, which protects it from the kernel's killer:
            // what a guest makes it use shall not be protected.
            daemon.set_oom_score(self.oom_score.load(Ordering::Relaxed));
            *ours = Some(daemon);
        }
        let sealed = tree.clone();
        let attached = async {
            // The guest reaches it only when nothing of the host is left around it.
            spawn_blocking(move || sealed.seal(&root))
                .await
                .map_err(Error::failed)?
                .map_err(Error::failed)?;
            let attached = vm.attach_fs(socket).await;
            attached.map_err(|error| error.context("cannot connect the VM to virtiofsd"))
        };
        let device = match attached.await {
            Ok(device) => device,
            Err(error) => {
                self.end().await;
                return Err(error);
            }
        };
        if let Some(daemon) = self.daemon().as_ref() {
            daemon.serve();
        }
        Ok(Shared { tree, device })
    }

    /// Takes back what a container had, when the agent has removed it.
    pub async fn release(&self, vm: &Arc<Vm>, guest: &Guest, container: &str) {
        let mut state = self.state.lock().await;
        for slot in state.disks.remove(container).unwrap_or_default() {
            if let Err(error) = vm.detach_disk(slot).await {
                tracing::warn!(container, slot, %error, "detaching a disk");
            }
        }
        let mut gone = Vec::new();
        state.shares.retain_mut(|share| {
            if share.users.remove(container) && share.users.is_empty() {
                gone.push(share.number);
                return false;
            }
            true
        });
        let Some(shared) = state.shared.as_ref().filter(|_| !gone.is_empty()) else {
            return;
        };
        let tree = shared.tree.clone();
        let numbers = gone.clone();
        let hidden = spawn_blocking(move || {
            for number in numbers {
                if let Err(error) = tree.hide(number) {
                    tracing::warn!(number, error = chain(&error), "taking a share away");
                }
            }
        });
        if let Err(error) = hidden.await {
            tracing::error!(%error, "taking shares away");
        }
        // Nothing waits for the answer: the host's side is gone already.
        let (guest, container) = (guest.clone(), container.to_owned());
        tokio::spawn(async move {
            let request = DropSharesRequest {
                shares: gone,
                ..Default::default()
            };
            let dropped = guest.guest.drop_shares(guest::question(), &request);
            if let Err(error) = dropped.await {
                tracing::warn!(container, %error, "the guest may hold a volume for longer");
            }
        });
    }

    /// Says how willingly the host's kernel kills virtiofsd, now and when it is started.
    pub fn set_oom_score(&self, score: i32) {
        self.oom_score.store(score, Ordering::Relaxed);
        if let Some(daemon) = self.daemon().as_ref() {
            daemon.set_oom_score(score);
        }
    }

    /// Waits until virtiofsd has ended, and says why. For ever when there is none.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        // The sender is a field of ours, so waiting cannot fail.
        let reason = lost.wait_for(Option::is_some).await;
        reason
            .map_or_else(|_| None, |reason| reason.clone())
            .unwrap_or_default()
    }

    /// Kills virtiofsd and waits for its end, for a while: one that the kernel holds in
    /// a call to a file system that does not answer ends when that does.
    pub async fn end(&self) {
        let Some(daemon) = self.daemon().take() else {
            return;
        };
        let ended = spawn_blocking(move || drop(daemon));
        if tokio::time::timeout(END_TIME, ended).await.is_err() {
            tracing::error!("virtiofsd has not ended: a file system of the host does not answer");
        }
    }

    fn daemon(&self) -> std::sync::MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether an emptyDir is the guest's own: one that nobody on the host has put
    /// something into.
    fn is_in_guest(&mut self, empty: &EmptyDirSource) -> Result<bool> {
        let name = &empty.directory.name;
        if let Some(in_guest) = self.in_guest.get(name) {
            return Ok(*in_guest);
        }
        let in_guest = is_empty(&empty.host).map_err(|error| {
            Error::Failed(format!("cannot read {}: {error}", empty.host.display()))
        })? && protocol::ids::is_valid(name);
        self.in_guest.insert(name.clone(), in_guest);
        Ok(in_guest)
    }
}

fn is_empty(directory: &Path) -> std::io::Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

impl Key {
    fn of(share: &ShareSource) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(&share.source)?;
        Ok(Self {
            source: share.source.clone(),
            device: metadata.dev(),
            inode: metadata.ino(),
            recursive: share.recursive,
            follow: share.follow,
            read_only: share.read_only,
            ids: share.ids.clone(),
        })
    }
}
