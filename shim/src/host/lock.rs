//! Locks on single bytes of a file: many locks, one file, nothing to tidy up.
//!
//! Open-file-description locks also hold between threads, and go when their
//! holder closes the file or dies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct ByteLock {
    file: File,
}

impl AsFd for ByteLock {
    /// Whoever keeps a copy of it open holds the lock as well.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl ByteLock {
    /// Waits for byte `at` of the file, which is made if it is missing.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn acquire(path: &Path, at: u64) -> io::Result<Self> {
        let file = open(path)?;
        let range = range(at);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)) {
                Ok(_) => return Ok(Self { file }),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes byte `at` of the file unless someone holds it: then `None`.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn try_acquire(path: &Path, at: u64) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(at))) {
            Ok(_) => Ok(Some(Self { file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The files of `directory` whose writers were killed; removed if `remove` is set.
/// `byte` tells, by its name, the byte of `lock` that a file's writer holds; `None`: it
/// is not one that is being written.
pub fn unfinished(
    directory: &Path,
    lock: &Path,
    remove: bool,
    byte: impl Fn(&str) -> Option<u64>,
) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let Some(at) = byte(&entry.file_name().to_string_lossy()) else {
                return false;
            };
            let free = ByteLock::try_acquire(lock, at);
            matches!(free, Ok(Some(_))) && (!remove || fs::remove_file(entry.path()).is_ok())
        })
        .map(|entry| entry.path())
        .collect()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        // Whoever can open it could hold a lock that ours wait for.
        .mode(0o600)
        .open(path)
}

fn range(at: u64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: (at & i64::MAX as u64) as i64,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_can_open_a_lock() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        drop(ByteLock::acquire(&path, 0).unwrap());
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_byte_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = ByteLock::acquire(&path, 7).unwrap();
        assert!(ByteLock::try_acquire(&path, 7).unwrap().is_none());
        assert!(ByteLock::try_acquire(&path, 8).unwrap().is_some());
        drop(held);
        assert!(ByteLock::try_acquire(&path, 7).unwrap().is_some());
    }
}
