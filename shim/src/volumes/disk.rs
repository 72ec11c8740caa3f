//! Block devices of the host on the VM's spare disks.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::stat::{major, minor};
use protocol::guest::Disk;
use tokio::task::spawn_blocking;

use crate::error::{Error, Result};
use crate::vm::Vm;

/// A disk counts in these.
const SECTOR: u64 = 512;

/// A block device of the host that a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSource {
    /// Its node's path in the container.
    pub path: PathBuf,
    /// Its number on the host.
    pub number: u64,
    /// The node's mode.
    pub mode: u32,
    /// The node's owner.
    pub uid: u32,
    /// The node's group.
    pub gid: u32,
    /// What the container may do with it, of "rwm"; empty: it has no rule for it.
    pub access: String,
}

impl DiskSource {
    fn read_only(&self) -> bool {
        !self.access.is_empty() && !self.access.contains('w')
    }
}

/// Puts a device behind a spare disk. Returns the disk's slot.
pub(super) async fn attach(vm: &Arc<Vm>, source: DiskSource) -> Result<(u8, Disk)> {
    let named = format!(
        "device {} (block device {}:{} of the host)",
        source.path.display(),
        major(source.number),
        minor(source.number)
    );
    let path = source
        .path
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Invalid(format!("{named}: its path is not UTF-8")))?;
    let read_only = source.read_only();
    let number = source.number;
    let (file, size) = spawn_blocking(move || open(number, read_only))
        .await
        .map_err(Error::failed)?
        .map_err(|error| Error::Invalid(format!("{named}: cannot be opened: {error}")))?;
    let (slot, device) = vm
        .attach_disk(file, size, read_only)
        .await
        .map_err(|error| error.context(&named))?;
    Ok((
        slot,
        Disk {
            device,
            path,
            mode: source.mode,
            uid: source.uid,
            gid: source.gid,
            access: source.access,
            ..Default::default()
        },
    ))
}

/// Opens a block device by its number; says its size in whole sectors.
fn open(number: u64, read_only: bool) -> std::io::Result<(File, u64)> {
    // By the name that the kernel gave it: the path that the pod's maker used may be
    // one of another mount namespace.
    let about = format!("/sys/dev/block/{}:{}/uevent", major(number), minor(number));
    let text = std::fs::read_to_string(about)?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .ok_or(std::io::ErrorKind::NotFound)?;
    let path = PathBuf::from("/dev").join(name);
    let mut file = File::options().read(true).write(!read_only).open(&path)?;
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() || metadata.rdev() != number {
        return Err(std::io::Error::other(format!(
            "{} is another device",
            path.display()
        )));
    }
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size - size % SECTOR))
}
