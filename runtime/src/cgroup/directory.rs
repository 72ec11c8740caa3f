//! A cgroup's directory in one hierarchy, which both versions have in common.

use std::io::{Error, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::CgroupError;
use super::hierarchy::Hierarchy;

/// The directory of a cgroup.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The controllers of its hierarchy; none for that of version 2.
    controllers: Vec<String>,
    path: PathBuf,
    fd: OwnedFd,
    /// Directories that `create` has made, outermost first.
    made: Vec<PathBuf>,
}

impl Directory {
    /// Makes the directory `path` (relative to the root of its hierarchy) and those above it.
    /// `prepare` is told of each of them, and before that of the root, when it is there.
    pub(super) fn create(
        hierarchy: &Hierarchy,
        path: &Path,
        prepare: impl Fn(&Path) -> Result<(), CgroupError>,
    ) -> Result<Self, CgroupError> {
        let mut made = Vec::new();
        match Self::make_all(hierarchy, path, prepare, &mut made) {
            Ok(directory) => Ok(Self { made, ..directory }),
            Err(error) => {
                remove_all(&made);
                Err(error)
            }
        }
    }

    fn make_all(
        hierarchy: &Hierarchy,
        path: &Path,
        prepare: impl Fn(&Path) -> Result<(), CgroupError>,
        made: &mut Vec<PathBuf>,
    ) -> Result<Self, CgroupError> {
        let mut current = hierarchy.point.clone();
        for part in path.components() {
            prepare(&current)?;
            current.push(part);
            match std::fs::create_dir(&current) {
                Ok(()) => made.push(current.clone()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(file_error("create", current, source)),
            }
        }
        Self::open(&current, &hierarchy.controllers)
    }

    /// Opens one that is there.
    pub(super) fn open(path: &Path, controllers: &[String]) -> Result<Self, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())
            .map_err(|error| file_error("open", path.to_owned(), error.into()))?;
        Ok(Self {
            controllers: controllers.to_vec(),
            path: path.to_owned(),
            fd,
            made: Vec::new(),
        })
    }

    /// The controllers of its hierarchy; none for that of version 2.
    pub(crate) fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Whether it is in version 2's hierarchy.
    pub(super) fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `create` has made it.
    pub(super) fn is_new(&self) -> bool {
        self.made.contains(&self.path)
    }

    /// Puts a process into it.
    pub(super) fn add(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Processes directly in it.
    pub(super) fn own_pids(&self) -> Result<Vec<u32>, CgroupError> {
        let text = self.read("cgroup.procs")?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Processes in it and in the cgroups that the container has made below it.
    pub(super) fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = self.own_pids()?;
        for child in children(&self.path) {
            match Self::open(&child, &self.controllers).and_then(|child| child.pids()) {
                Ok(more) => pids.extend(more),
                // The container may remove it at any time.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Removes it with the cgroups below it, which must have no process.
    pub(super) fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.path)
    }

    /// Removes what `create` has made, as far as it is not in use.
    pub(super) fn undo(&self) {
        remove_all(&self.made);
    }

    /// Waits until `key` in cgroup.events (of version 2) is `value`. False when it took too long.
    pub(super) fn wait_for_event(
        &self,
        key: &str,
        value: u64,
        patience: Duration,
    ) -> Result<bool, CgroupError> {
        let deadline = Instant::now() + patience;
        let file = self.open_file("cgroup.events", OFlags::RDONLY, "read")?;
        loop {
            // Reading from the start arms the notification for the next change.
            let mut text = [0u8; 256];
            let length = rustix::io::pread(&file, &mut text, 0)
                .map_err(|error| self.error("read", "cgroup.events", error.into()))?;
            let text = String::from_utf8_lossy(&text[..length]);
            let now = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
            if now == Some(value) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.error("poll", "cgroup.events", error.into())),
            }
        }
    }

    fn open_file(&self, name: &str, flags: OFlags, action: &str) -> Result<OwnedFd, CgroupError> {
        openat(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| self.error(action, name, error.into()))
    }

    /// Reads a file of it.
    pub(super) fn read(&self, name: &str) -> Result<String, CgroupError> {
        let mut text = String::new();
        std::fs::File::from(self.open_file(name, OFlags::RDONLY, "read")?)
            .read_to_string(&mut text)
            .map_err(|source| self.error("read", name, source))?;
        Ok(text)
    }

    /// Reads a file that is there only when its controller is enabled.
    pub(super) fn optional(&self, file: &str) -> Result<Option<String>, CgroupError> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            // Without the file the whole cgroup may be gone, which the caller must learn.
            Err(error) if error.is_gone() => self.read("cgroup.procs").map(|_| None),
            // The kernel's answer when the controller does not support the operation.
            Err(CgroupError::File { source, .. })
                if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a file of it, in one call.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let action = format!("write {value:?} to");
        std::fs::File::from(self.open_file(name, OFlags::WRONLY, &action)?)
            .write_all(value.as_bytes())
            .map_err(|source| self.error(&action, name, source))
    }

    /// An error about a file of it; about itself with an empty name.
    pub(super) fn error(&self, action: &str, name: &str, source: Error) -> CgroupError {
        let path = match name {
            "" => self.path.clone(),
            name => self.path.join(name),
        };
        file_error(action, path, source)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn file_error(action: &str, path: PathBuf, source: Error) -> CgroupError {
    CgroupError::File {
        action: action.to_owned(),
        path,
        source,
    }
}

/// The cgroups right below one.
fn children(path: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    match std::fs::remove_dir(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
        Err(source) => return Err(file_error("remove", path.to_owned(), source)),
    }
    for child in children(path) {
        remove_tree(&child)?;
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(file_error("remove", path.to_owned(), error))
        }
        _ => Ok(()),
    }
}

fn remove_all(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // Fails for one that someone else uses by now, which is then theirs.
        let _ = std::fs::remove_dir(path);
    }
}
