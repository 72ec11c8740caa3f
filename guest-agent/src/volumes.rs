//! Volumes: what containers mount beside their root file system. Shares of the host
//! come through one virtio-fs device, directories are made here, disks are bound to
//! the kernel's driver when they are attached.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use protocol::guest::{self, CreateOptions, volume};
use protocol::ids;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use thiserror::Error;

use crate::storage::{Storage, StorageError};

/// Where the kernel shows the platform's devices and their drivers.
pub const PLATFORM: &str = "/sys/bus/platform";
/// The tag of the file system that holds the shares.
const TAG: &str = "joey";
/// Longest path below a directory volume.
const MAX_PARTS: usize = 64;

/// Why a volume could not be had.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// The request makes no sense.
    #[error("volume: {0}")]
    Invalid(String),
    /// Scratch cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The step and what it was for.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> VolumeError {
    let what = what.into();
    move |error| VolumeError::System {
        what,
        source: error.into(),
    }
}

/// Volumes of the pod.
pub struct Volumes {
    /// [`PLATFORM`].
    platform: PathBuf,
    /// Where the shares are mounted.
    shares: PathBuf,
    /// Where directories in memory are mounted.
    memory: PathBuf,
    shares_mounted: bool,
    /// Directories by name, in memory and on scratch.
    directories: BTreeMap<String, PathBuf>,
    /// Platform devices of the disks that are bound.
    disks: BTreeSet<String>,
}

/// A disk's node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What was asked for.
    pub disk: guest::Disk,
    /// Its number in this kernel.
    pub major: i64,
    /// Its number in this kernel.
    pub minor: i64,
}

/// What a mount of the spec stands for.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is the host's, which has shown it with the container's ids already.
    pub shared: bool,
}

/// A container's volumes, ready to be mounted.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The source of each of the request's volumes, in order.
    pub sources: Vec<Source>,
    /// Its disks.
    pub nodes: Vec<Node>,
    /// What keeps sources that are named by descriptor.
    _held: Vec<OwnedFd>,
}

impl Volumes {
    /// None yet; mounts are made below `base`.
    pub fn new(platform: PathBuf, base: &Path) -> Self {
        Self {
            platform,
            shares: base.join("shares"),
            memory: base.join("memory"),
            shares_mounted: false,
            directories: BTreeMap::new(),
            disks: BTreeSet::new(),
        }
    }

    /// Makes what a container's request names. After an error its disks are released.
    pub fn prepare(
        &mut self,
        options: &CreateOptions,
        storage: &mut Storage,
    ) -> Result<Prepared, VolumeError> {
        let mut prepared = Prepared::default();
        match self.prepare_all(options, storage, &mut prepared) {
            Ok(()) => Ok(prepared),
            Err(error) => {
                self.release(&prepared.nodes);
                Err(error)
            }
        }
    }

    fn prepare_all(
        &mut self,
        options: &CreateOptions,
        storage: &mut Storage,
        prepared: &mut Prepared,
    ) -> Result<(), VolumeError> {
        if !options.share_device.is_empty() {
            self.mount_shares(&options.share_device)?;
        }
        for volume in &options.volumes {
            let path = match &volume.kind {
                Some(volume::Kind::Share(number)) => self.share(*number)?,
                Some(volume::Kind::Directory(directory)) => {
                    let root = self.directory(directory, storage)?;
                    match part(&root, &directory.path)? {
                        None => root,
                        Some(fd) => {
                            // By descriptor: a container could put a link in its place.
                            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                            prepared._held.push(fd);
                            path.into()
                        }
                    }
                }
                _ => {
                    return Err(VolumeError::Invalid(
                        "a kind that this agent does not know".into(),
                    ));
                }
            };
            let shared = matches!(volume.kind, Some(volume::Kind::Share(_)));
            prepared.sources.push(Source { path, shared });
        }
        for disk in &options.disks {
            let (major, minor) = self.bind_disk(&disk.device)?;
            prepared.nodes.push(Node {
                disk: disk.clone(),
                major,
                minor,
            });
        }
        Ok(())
    }

    /// Lets go of a container's disks. Blocks until the kernel has written them.
    pub fn release(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.unbind_disk(&node.disk.device);
        }
    }

    /// Forgets shares that the host has taken away: nothing here may hold them, or the
    /// host could not unmount what they show.
    pub fn drop_shares(&self, shares: &[u32]) {
        for number in shares {
            let path = self.shares.join(number.to_string());
            match unmount(&path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                // It was a file, or never looked at.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => log::warn!("cannot unmount share {number}: {error}"),
            }
            // The name is still cached. To make it anew the kernel has to ask the host,
            // learns that it is gone, and forgets what it was. The host lets nobody make
            // anything here.
            if let Ok(()) = mkdirat(CWD, &path, Mode::RWXU) {
                log::warn!("the host let share {number} be made");
            }
        }
    }

    /// Has the kernel's driver take a platform device, or give it back.
    fn drive(&self, device: &str, verb: &str) -> Result<(), VolumeError> {
        let file = self.platform.join("drivers/virtio-mmio").join(verb);
        fs::write(&file, device).map_err(system(format!("write {device} to {}", file.display())))
    }

    fn device(&self, device: &str) -> Result<PathBuf, VolumeError> {
        if !ids::is_valid(device) {
            return Err(VolumeError::Invalid(format!(
                "{device:?} is no name of a device"
            )));
        }
        Ok(self.platform.join("devices").join(device))
    }

    fn mount_shares(&mut self, device: &str) -> Result<(), VolumeError> {
        if self.shares_mounted {
            return Ok(());
        }
        let driver = self.device(device)?.join("driver");
        if !driver.exists() {
            self.drive(device, "bind")?;
        }
        fs::create_dir_all(&self.shares)
            .map_err(system(format!("make {}", self.shares.display())))?;
        // A container's mounts take their flags from here: it asks for its own.
        mount(TAG, &self.shares, "virtiofs", MountFlags::empty(), None)
            .map_err(system("mount the host's shares"))?;
        self.shares_mounted = true;
        Ok(())
    }

    /// Where a share is. Looking into it mounts it here, so that all containers have it
    /// from this one mount: of two, the kernel would cache the same file twice.
    fn share(&self, number: u32) -> Result<PathBuf, VolumeError> {
        if !self.shares_mounted {
            return Err(VolumeError::Invalid(
                "a share without the device that holds it".into(),
            ));
        }
        let path = self.shares.join(number.to_string());
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match openat(CWD, path.join("."), flags, Mode::empty()) {
            Ok(_) | Err(Errno::NOTDIR) => Ok(path),
            Err(error) => Err(system(format!("look at share {number}"))(error)),
        }
    }

    fn directory(
        &mut self,
        wanted: &guest::Directory,
        storage: &mut Storage,
    ) -> Result<PathBuf, VolumeError> {
        if !ids::is_valid(&wanted.name) {
            return Err(VolumeError::Invalid(format!(
                "{:?} is no name of a volume",
                wanted.name
            )));
        }
        if let Some(path) = self.directories.get(&wanted.name) {
            return Ok(path.clone());
        }
        let path = if wanted.memory {
            self.in_memory(wanted)?
        } else {
            storage.ensure_scratch()?;
            let path = storage.volumes_base().join(&wanted.name);
            make_directory(&path)?;
            path
        };
        own(&path, wanted)?;
        self.directories.insert(wanted.name.clone(), path.clone());
        Ok(path)
    }

    fn in_memory(&self, wanted: &guest::Directory) -> Result<PathBuf, VolumeError> {
        let path = self.memory.join(&wanted.name);
        make_directory(&path)?;
        let mut options = String::from("mode=700");
        if wanted.size_bytes > 0 {
            options.push_str(&format!(",size={}", wanted.size_bytes));
        }
        let what = || format!("mount tmpfs on {}", path.display());
        let options = std::ffi::CString::new(options).map_err(system(what()))?;
        mount(
            "tmpfs",
            &path,
            "tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .map_err(system(what()))?;
        Ok(path)
    }

    /// Has the kernel find a disk; answers with its number.
    fn bind_disk(&mut self, device: &str) -> Result<(i64, i64), VolumeError> {
        let directory = self.device(device)?;
        if self.disks.contains(device) {
            return Err(VolumeError::Invalid(format!("disk {device} is in use")));
        }
        self.drive(device, "bind")?;
        self.disks.insert(device.to_owned());
        let found = disk_number(&directory);
        if found.is_err() {
            self.unbind_disk(device);
        }
        found.map_err(system(format!("find the disk of {device}")))
    }

    /// Lets go of a disk if it is bound.
    fn unbind_disk(&mut self, device: &str) {
        if self.disks.remove(device)
            && let Err(error) = self.drive(device, "unbind")
        {
            log::warn!("cannot release disk {device}: {error}");
        }
    }
}

/// `virtio*/block/*/dev` below a platform device holds "MAJOR:MINOR".
fn disk_number(device: &Path) -> io::Result<(i64, i64)> {
    let only = |directory: &Path, prefix: &str| -> io::Result<PathBuf> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
            {
                return Ok(entry.path());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    };
    let disk = only(&only(device, "virtio")?.join("block"), "")?;
    let number = fs::read_to_string(disk.join("dev"))?;
    number
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::Error::other(format!("{number:?} is no number of a device")))
}

fn make_directory(path: &Path) -> Result<(), VolumeError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(system(format!("make {}", path.display())))
}

fn own(path: &Path, wanted: &guest::Directory) -> Result<(), VolumeError> {
    // After the owner: changing it clears set-id bits.
    chown(path, Some(wanted.uid), Some(wanted.gid))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(wanted.mode & 0o7777)))
        .map_err(system(format!("set owner and mode of {}", path.display())))
}

/// Opens what is at `path` below a volume's root; makes missing directories. Links are
/// not followed: the pod's containers can make them.
fn part(root: &Path, path: &str) -> Result<Option<OwnedFd>, VolumeError> {
    if path.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = path.split('/').collect();
    let plain = |part: &&str| !matches!(*part, "" | "." | "..") && !part.contains('\0');
    if parts.len() > MAX_PARTS || !parts.iter().all(plain) {
        return Err(VolumeError::Invalid(format!(
            "{path:?} is no path below a volume"
        )));
    }
    let what = || format!("open {path} in the volume");
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut fd =
        openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(system(what()))?;
    for (index, part) in parts.iter().enumerate() {
        match mkdirat(&fd, *part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(system(what())(error)),
        }
        let last = index + 1 == parts.len();
        let kind = if last {
            OFlags::empty()
        } else {
            OFlags::DIRECTORY
        };
        fd = openat(&fd, *part, flags | kind, Mode::empty()).map_err(system(what()))?;
    }
    let kind = rustix::fs::FileType::from_raw_mode(
        rustix::fs::fstat(&fd).map_err(system(what()))?.st_mode,
    );
    if kind.is_symlink() {
        return Err(VolumeError::Invalid(format!(
            "{path} in the volume is a link, which is not followed"
        )));
    }
    Ok(Some(fd))
}
