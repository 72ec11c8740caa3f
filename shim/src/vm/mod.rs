//! The pod's VM and all that it has on the host: made side by side, taken apart
//! in one place.

mod end;
mod events;
mod hibernation;
mod obituary;
pub(crate) mod preparation;
mod start;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use network::{Attachment, Endpoint};
use tokio::sync::mpsc::{Sender, WeakSender};
use tokio::task::spawn_blocking;
use vmm::Vmm;

pub use events::Events;
pub use preparation::shape;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::guest::Vsock;
use crate::host::cgroup::Cgroup;
use crate::host::memory::Memory;
use crate::host::oom_score;
use crate::host::record::{Record, StateDir};
use crate::pod::Size;
use crate::vmm_log::VmmLog;

/// How long the VMM may take to tell the kernel's log of a guest that is lost.
const LOG_TIME: Duration = Duration::from_secs(1);

/// Where a VM that does not boot is explained.
const DOCTOR: &str = "`joeyctl doctor` tells whether this host can run VMs";

/// Name in the state directory of the socket that leads into the guest.
pub const VSOCK: &str = "vsock";

/// What a VM is made from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sandbox.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's directory of the sandbox; `None`: it is none of containerd's.
    pub bundle: Option<PathBuf>,
    /// The pod's network namespace, if it has one.
    pub netns: Option<PathBuf>,
    /// As the OCI spec names it.
    pub cgroups_path: PathBuf,
    /// The pod's name and Kubernetes namespace, if it is one's.
    pub pod: (String, String),
    /// The shim's socket.
    pub socket: PathBuf,
    /// How large it is to become.
    pub size: Size,
    /// Whether it may go on from the node's template.
    pub templates: bool,
    /// The operator's settings.
    pub config: Arc<Config>,
}

/// A VM. [`Vm::release`] ends it and removes what it has.
pub struct Vm {
    id: String,
    namespace: String,
    config: Arc<Config>,
    /// `None` while it hibernates.
    process: Mutex<Option<Arc<Process>>>,
    vsock: Vsock,
    /// It booted, instead of going on from a template.
    booted: bool,
    /// The VMM is not in the pod's cgroup yet.
    stray: Mutex<bool>,
    cgroup: Cgroup,
    /// How willingly the host's kernel kills the VMM.
    oom_score: AtomicI32,
    /// What the VMM says goes there.
    events: WeakSender<vmm::Event>,
    /// Keeps that open while the VM hibernates: its end is the sandbox's.
    dormant: Mutex<Option<Sender<vmm::Event>>>,
    /// It shall end.
    killed: AtomicBool,
    /// Set once, by whoever first finds that the guest is lost.
    death: tokio::sync::OnceCell<String>,
    /// The cgroup that this process was in before it moved into the pod's.
    home: Mutex<Option<PathBuf>>,
    endpoint: Option<Endpoint>,
    parts: Mutex<Option<Parts>>,
    released: AtomicBool,
}

/// The process of a VMM.
struct Process {
    pid: u32,
    /// By which it is killed while somebody waits for its answer.
    pidfd: OwnedFd,
    log: VmmLog,
}

/// What ends with the VM, in the order in which it goes.
struct Parts {
    /// `None` while it hibernates.
    vmm: Option<Vmm>,
    /// `None` before it has run.
    backing: Option<Backing>,
    /// While it hibernates.
    saved: Option<Saved>,
    attachment: Option<Attachment>,
    state: StateDir,
    record: Record,
}

/// What the VM runs on, whichever process runs it.
struct Backing {
    scratch: File,
    listener: UnixListener,
    tap: Option<OwnedFd>,
    images: Vec<Image>,
    /// What virtiofsd is reached by, once there is one.
    shares: Option<vmm::FsBackend<OwnedFd>>,
    disks: Vec<Disk>,
}

/// A file in the image window.
struct Image {
    offset: u64,
    length: u64,
    file: File,
}

/// A file or block device of the host on a spare disk.
struct Disk {
    slot: u8,
    file: File,
    size: u64,
    read_only: bool,
}

/// A VM that no process runs. Its files have no names: they go with it.
struct Saved {
    memory: File,
    state: File,
    /// The VMM's ends of connections into the guest, by the host's ports.
    connections: Vec<(u32, OwnedFd)>,
}

impl Vm {
    /// What the VM's devices have done.
    ///
    /// # Errors
    /// When the VMM does not answer in a moment.
    pub async fn stats(self: &Arc<Self>) -> Result<vmm::Stats> {
        self.ask("cannot read the VMM's counters", |vmm| {
            vmm.stats_within(LOG_TIME)
        })
        .await
    }

    /// What VMM, guest and this process cost the host in memory.
    pub async fn memory(&self) -> Memory {
        // Reaped by `release`: its pid may be another's then.
        let lives = !self.released.load(Ordering::Acquire);
        let process = self.process().filter(|_| lives);
        let vmm = process.and_then(|process| i32::try_from(process.pid).ok());
        let config = self.config.clone();
        let count = move || {
            let shim = i32::try_from(std::process::id()).ok();
            Memory::of(vmm, shim, &[&config.kernel, &config.agent])
        };
        // It cannot be cancelled, and does not panic.
        spawn_blocking(count).await.unwrap_or_default()
    }

    /// The VMM's pid: what containerd takes for the sandbox's process. 0 while it hibernates.
    pub fn pid(&self) -> u32 {
        self.process().map_or(0, |process| process.pid)
    }

    /// The operator's settings when it was made.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The way into the guest.
    pub fn vsock(&self) -> &Vsock {
        &self.vsock
    }

    /// The pod's cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The pod's network, if it has one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    /// Says how willingly the host's kernel kills the VMM when it is out of memory.
    pub fn set_oom_score(&self, score: i32) {
        self.oom_score.store(score, Ordering::Release);
        // Not reaped before `release`, nor while it is known here: the pid is still its own.
        let process = lock(&self.process);
        if !self.released.load(Ordering::Acquire)
            && let Some(process) = &*process
        {
            set_oom_score(process.pid, score);
        }
    }

    /// Whether it booted, instead of going on from a template.
    pub fn booted(&self) -> bool {
        self.booted
    }

    /// What it is when the guest does not answer.
    pub fn lost(&self, reason: String) -> Error {
        match self.booted {
            true => Error::Failed(reason),
            false => Error::Template(reason),
        }
    }

    /// Stops the guest.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn pause(self: &Arc<Self>) -> Result<()> {
        self.ask("cannot pause the VM", Vmm::pause).await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn resume(self: &Arc<Self>) -> Result<()> {
        self.ask("cannot resume the VM", Vmm::resume).await
    }

    /// Stops it, writes it to two files, its memory, to one of that length, and the rest, and
    /// lets it go on. It remembers then which pages it writes to.
    ///
    /// # Errors
    /// When the VMM refuses or is gone. It may stand still then.
    pub async fn save(self: &Arc<Self>, memory: File, state: File) -> Result<()> {
        self.ask("cannot save the VM", move |vmm| {
            vmm.pause()?;
            vmm.save(memory.as_fd(), state.as_fd())?;
            vmm.log_writes()?;
            vmm.resume()
        })
        .await
    }

    /// Stops it and writes to `list` which pages of it were written to since its memory was
    /// saved to this file.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn changes(self: &Arc<Self>, memory: File, list: File) -> Result<()> {
        self.ask("cannot list what the VM has written", move |vmm| {
            vmm.pause()?;
            vmm.changes(memory.as_fd(), list.as_fd())
        })
        .await
    }

    /// Bounds what the VMM, and what serves it, may take when the guest has this much memory.
    ///
    /// # Errors
    /// When the kernel does not take the limit.
    pub fn limit_memory(&self, guest_mib: u32) -> Result<()> {
        preparation::limit_memory(&self.config, &self.cgroup, guest_mib)
    }

    /// Shows `length` bytes of a file in the image window.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn map_image(self: &Arc<Self>, offset: u64, length: u64, file: File) -> Result<()> {
        self.attach("cannot show an image to the guest", move |vmm, backing| {
            vmm.map_image(offset, length, file.as_fd())
                .map_err(Error::failed)?;
            backing.images.push(Image {
                offset,
                length,
                file,
            });
            Ok(())
        })
        .await
    }

    /// Asks the guest to have this much memory beyond what it booted with; the VMM's events
    /// tell when it has.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn resize_memory(self: &Arc<Self>, mib: u32) -> Result<()> {
        self.ask("cannot resize the guest's memory", move |vmm| {
            vmm.resize_memory(mib)
        })
        .await
    }

    /// Lets the guest bring a vCPU online.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn online_cpu(self: &Arc<Self>, cpu: u8) -> Result<()> {
        self.ask("cannot start a vCPU", move |vmm| vmm.online_cpu(cpu))
            .await
    }

    /// Puts a file server behind the VM's file system device. Returns the device's name
    /// in the guest.
    ///
    /// # Errors
    /// When the server does not answer, or the VMM refuses or is gone.
    pub async fn attach_fs(
        self: &Arc<Self>,
        socket: std::os::unix::net::UnixStream,
    ) -> Result<String> {
        self.attach("cannot attach the file system", move |vmm, backing| {
            let shares = vmm::connect_fs(socket.as_fd()).map_err(Error::failed)?;
            let device = vmm.attach_fs(&shares).map_err(Error::failed)?;
            backing.shares = Some(shares);
            Ok(device)
        })
        .await
    }

    /// Puts the first `size` bytes of a file behind a spare disk. Returns its slot, and
    /// the device's name in the guest.
    ///
    /// # Errors
    /// When the VMM refuses, as when all spare disks are taken, or is gone.
    pub async fn attach_disk(
        self: &Arc<Self>,
        file: File,
        size: u64,
        read_only: bool,
    ) -> Result<(u8, String)> {
        self.attach("cannot attach the disk", move |vmm, backing| {
            let attached = vmm.attach_disk(file.as_fd(), size, read_only, None);
            let (slot, device) = attached.map_err(Error::failed)?;
            backing.disks.push(Disk {
                slot,
                file,
                size,
                read_only,
            });
            Ok((slot, device))
        })
        .await
    }

    /// Makes a disk's data durable and takes it back.
    ///
    /// # Errors
    /// When the VMM refuses or is gone.
    pub async fn detach_disk(self: &Arc<Self>, slot: u8) -> Result<()> {
        self.attach("cannot detach the disk", move |vmm, backing| {
            vmm.detach_disk(slot).map_err(Error::failed)?;
            backing.disks.retain(|disk| disk.slot != slot);
            Ok(())
        })
        .await
    }

    /// Writes a file in the sandbox's state directory; a failure is logged.
    pub fn note(&self, name: &str, content: &[u8]) {
        if let Some(parts) = self.parts().as_ref()
            && let Err(error) = parts.state.write(name, content)
        {
            tracing::warn!(name, %error, "cannot write in the state directory");
        }
    }

    async fn ask<T: Send + 'static, E: std::error::Error + Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        action: impl FnOnce(&mut Vmm) -> std::result::Result<T, E> + Send + 'static,
    ) -> Result<T> {
        self.with_parts(move |parts| {
            action(running(&mut parts.vmm)?).map_err(|error| Error::failed(error).context(what))
        })
        .await
    }

    /// As [`Self::ask`], of what is attached to the VM: a VM that was saved gets it again.
    async fn attach<T: Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        action: impl FnOnce(&mut Vmm, &mut Backing) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.with_parts(move |parts| {
            let vmm = running(&mut parts.vmm)?;
            let not_yet = || Error::State("the VM does not run yet".into());
            let backing = parts.backing.as_mut().ok_or_else(not_yet)?;
            action(vmm, backing).map_err(|error| error.context(what))
        })
        .await
    }

    async fn with_parts<T: Send + 'static>(
        self: &Arc<Self>,
        action: impl FnOnce(&mut Parts) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let vm = self.clone();
        spawn_blocking(move || {
            let mut parts = vm.parts();
            action(parts.as_mut().ok_or_else(|| vm.gone())?)
        })
        .await
        .map_err(Error::failed)?
    }

    fn process(&self) -> Option<Arc<Process>> {
        lock(&self.process).clone()
    }

    fn parts(&self) -> MutexGuard<'_, Option<Parts>> {
        lock(&self.parts)
    }

    fn gone(&self) -> Error {
        Error::State(format!("the VM of sandbox {} has ended", self.id))
    }
}

fn running(vmm: &mut Option<Vmm>) -> Result<&mut Vmm> {
    let hibernates = || Error::State("the VM hibernates: restore it first".into());
    vmm.as_mut().ok_or_else(hibernates)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_oom_score(pid: u32, score: i32) {
    if let Err(error) = oom_score::set(pid, score) {
        tracing::warn!(pid, %error, "cannot set the VMM's OOM score");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn vmm_and_agent_agree_on_the_first_mac() {
        assert_eq!(vmm::GUEST_MAC, protocol::ids::FIRST_MAC);
    }
}
