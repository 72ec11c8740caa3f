//! The network namespace of all VMMs of this node: an empty one, in which none of them can
//! do anything. It is made once in a boot and then joined, since making one costs a
//! millisecond and 320 KiB of the kernel's memory, more than the VMM's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::lock::ByteLock;

/// The file in the state directory over which the namespace is mounted.
pub const FILE: &str = "no-network";

/// The namespace cannot be made or kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep an empty network namespace in {}", .0.display())]
pub struct NoNetworkError(PathBuf, #[source] io::Error);

/// Opens the namespace, and makes it if it is not there.
///
/// # Errors
/// When it cannot be made, or not mounted in the state directory.
pub fn open(state_dir: &Path) -> Result<OwnedFd, NoNetworkError> {
    let path = state_dir.join(FILE);
    let failed = |error| NoNetworkError(path.clone(), error);
    if let Some(there) = existing(&path).map_err(failed)? {
        return Ok(there);
    }
    let lock = path.with_extension("lock");
    let _lock = ByteLock::acquire(&lock, 0).map_err(failed)?;
    // Another shim may have been faster.
    if let Some(there) = existing(&path).map_err(failed)? {
        return Ok(there);
    }
    make(&path).map_err(failed)
}

/// The namespace that is mounted at `path`. In a mount namespace that was made before it,
/// there is only the file below.
fn existing(path: &Path) -> io::Result<Option<OwnedFd>> {
    match File::open(path) {
        Ok(file) => {
            let kind = fstatfs(&file)?.filesystem_type();
            Ok((kind == NSFS_MAGIC).then(|| file.into()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn make(path: &Path) -> io::Result<OwnedFd> {
    let network = vmm::place::empty_network()?;
    File::create(path)?;
    let source = format!("/proc/self/fd/{}", network.as_raw_fd());
    mount(
        Some(source.as_str()),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(network)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nix::mount::{MntFlags, umount2};

    use super::*;

    #[test]
    fn it_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let inode = |file: OwnedFd| File::from(file).metadata().unwrap().ino();
        let first = inode(open(dir.path()).unwrap());
        assert_eq!(inode(open(dir.path()).unwrap()), first);
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_ne!(first, own);

        // As seen from a mount namespace without it.
        umount2(&dir.path().join(FILE), MntFlags::MNT_DETACH).unwrap();
        assert!(existing(&dir.path().join(FILE)).unwrap().is_none());
        let again = open(dir.path());
        umount2(&dir.path().join(FILE), MntFlags::MNT_DETACH).unwrap();
        again.unwrap();
    }
}
