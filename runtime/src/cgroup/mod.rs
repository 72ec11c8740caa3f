//! Control groups, version 2: one directory per container, its limits and its counters.
//!
//! Resources of a spec first become settings, without touching the system; a file per
//! controller does that. Then the cgroup carries them out.

mod cpu;
mod cpuset;
pub(crate) mod devices;
mod freezer;
mod io;
mod memory;
mod path;
mod pids;
mod settings;
mod stats;
mod watch;

pub(crate) use path::{container_path, mount_point};
pub(crate) use settings::{Setting, number, settings};
pub use stats::{CgroupStats, CpuStats, IoStats, MemoryStats, PidsStats};
pub use watch::MemoryWatch;

use std::io::{Error, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use thiserror::Error;

/// Who makes the cgroup of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The engine itself, in the cgroup file system.
    #[default]
    Cgroupfs,
}

/// Why a cgroup could not be made, limited, read or removed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No cgroup2 file system is mounted.
    #[error("no cgroup2 file system is mounted; mount one, for example on /sys/fs/cgroup")]
    NotMounted,
    /// A limit needs a controller that the parent cgroup does not offer.
    #[error("{setting}: the {controller} controller is not available in {}", path.display())]
    NoController {
        /// The limit.
        setting: String,
        /// The controller.
        controller: String,
        /// The cgroup.
        path: PathBuf,
    },
    /// Another container has its processes there.
    #[error("cgroup {} has processes already; give the container another cgroupsPath", .0.display())]
    InUse(PathBuf),
    /// A cgroup was asked for that is not below the container's.
    #[error("cgroup {} is not below the container's; give a path inside it", .0.display())]
    Outside(PathBuf),
    /// A value that the kernel's files cannot express.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field of linux.resources.
        field: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// A file of the cgroup could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// `read`, `write "100" to`, `create`, `remove`.
        action: String,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: Error,
    },
}

/// How long processes that have been killed may take to leave the cgroup: one that the kernel holds
/// in a call may take any time, and the caller can try again.
const LEAVING: Duration = Duration::from_secs(5);

/// The cgroup of a container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
    /// Directories that `create` has made, outermost first.
    made: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the cgroup `path` (relative to the cgroup2 mount `root`) and those above it, and hands
    /// the controllers of the root down to it. A cgroup that is there already is taken when it has
    /// no process.
    pub(crate) fn create(root: &Path, path: &Path) -> Result<Self, CgroupError> {
        let mut made = Vec::new();
        match Self::make_all(root, path, &mut made) {
            Ok((path, dir)) => {
                let cgroup = Self { path, dir, made };
                if !cgroup.made.contains(&cgroup.path) && !cgroup.own_pids()?.is_empty() {
                    return Err(CgroupError::InUse(cgroup.path));
                }
                Ok(cgroup)
            }
            Err(error) => {
                remove_all(&made);
                Err(error)
            }
        }
    }

    fn make_all(
        root: &Path,
        path: &Path,
        made: &mut Vec<PathBuf>,
    ) -> Result<(PathBuf, OwnedFd), CgroupError> {
        let mut current = root.to_owned();
        for part in path.components() {
            enable_controllers(&current);
            current.push(part);
            match std::fs::create_dir(&current) {
                Ok(()) => made.push(current.clone()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(file_error("create", current, source)),
            }
        }
        let dir = open_directory(&current)?;
        Ok((current, dir))
    }

    /// Opens a cgroup that is there.
    pub(crate) fn open(path: &Path) -> Result<Self, CgroupError> {
        Ok(Self {
            path: path.to_owned(),
            dir: open_directory(path)?,
            made: Vec::new(),
        })
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, open.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Writes the settings in their order.
    pub(crate) fn apply(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        settings.iter().try_for_each(|setting| self.set(setting))
    }

    fn set(&self, setting: &Setting) -> Result<(), CgroupError> {
        if let Some((file, limit)) = setting.not_below {
            let used = self.read(file)?.trim().parse().unwrap_or(0u64);
            if used > limit {
                return Err(CgroupError::Invalid {
                    field: "resources.memory.limit",
                    problem: format!("{limit} is below the {used} bytes in use"),
                });
            }
        }
        let mut value = setting.value.clone();
        if setting.after_first
            && let Ok(now) = self.read(&setting.file)
        {
            let first = now.split_whitespace().next().unwrap_or("max");
            value = format!("{first} {value}");
        }
        let result = self.write(&setting.file, &value);
        let Err(CgroupError::File { source, .. }) = &result else {
            return result;
        };
        if source.kind() != ErrorKind::NotFound {
            return result;
        }
        if let Some((file, value)) = &setting.otherwise {
            return self.set(&Setting {
                file: file.clone(),
                value: value.clone(),
                otherwise: None,
                ..setting.clone()
            });
        }
        // "No limit" is what a cgroup without the controller has; swap may be compiled out.
        if setting.value == "max" || setting.optional {
            return Ok(());
        }
        Err(CgroupError::NoController {
            setting: setting.field.clone(),
            controller: setting.controller.clone(),
            path: self.path.clone(),
        })
    }

    /// Processes directly in it.
    fn own_pids(&self) -> Result<Vec<u32>, CgroupError> {
        Ok(parse_pids(&self.read("cgroup.procs")?))
    }

    /// Processes in it and in the cgroups that the container has made below it.
    pub(crate) fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = self.own_pids()?;
        for child in children(&self.path) {
            match Self::open(&child).and_then(|child| child.pids()) {
                Ok(more) => pids.extend(more),
                // The container may remove it at any time.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Kills every process in it and below, frozen or not.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Waits until no process is in it or below. False when it took too long.
    pub(crate) fn wait_empty(&self) -> Result<bool, CgroupError> {
        self.wait_for_event("populated", 0, LEAVING)
    }

    /// Removes it with the cgroups below it, which must have no process (see `wait_empty`).
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.path)
    }

    /// Removes what `create` has made, as far as it is not in use: for a failed create.
    pub(crate) fn undo(&self) {
        remove_all(&self.made);
    }

    /// Waits until `key` in cgroup.events is `value`. False when it took too long.
    fn wait_for_event(
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
        openat(&self.dir, name, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| self.error(action, name, error.into()))
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        let mut text = String::new();
        std::fs::File::from(self.open_file(name, OFlags::RDONLY, "read")?)
            .read_to_string(&mut text)
            .map_err(|source| self.error("read", name, source))?;
        Ok(text)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let action = format!("write {value:?} to");
        std::fs::File::from(self.open_file(name, OFlags::WRONLY, &action)?)
            .write_all(value.as_bytes())
            .map_err(|source| self.error(&action, name, source))
    }

    fn error(&self, action: &str, name: &str, source: Error) -> CgroupError {
        let path = match name {
            "" => self.path.clone(),
            name => self.path.join(name),
        };
        file_error(action, path, source)
    }
}

fn file_error(action: &str, path: PathBuf, source: Error) -> CgroupError {
    CgroupError::File {
        action: action.to_owned(),
        path,
        source,
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| file_error("open", path.to_owned(), error.into()))
}

fn is_gone(error: &CgroupError) -> bool {
    matches!(error, CgroupError::File { source, .. }
        if source.kind() == ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV))
}

fn parse_pids(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
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

/// Hands all controllers that a cgroup has down to its children. What cannot be handed down (a
/// cgroup with processes of its own, a controller in use by version 1) shows when a limit needs it.
fn enable_controllers(path: &Path) {
    let list = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let enabled = list("cgroup.subtree_control");
    let missing: Vec<String> = list("cgroup.controllers")
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|other| other == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return;
    }
    let control = path.join("cgroup.subtree_control");
    // One refused controller refuses the whole line, so then they go one by one.
    if std::fs::write(&control, missing.join(" ")).is_err() {
        for name in missing {
            let _ = std::fs::write(&control, name);
        }
    }
}
