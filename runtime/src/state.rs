//! What is kept of a container: one directory with a state file, and the socket on which a created
//! container waits for its start.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cgroup::Location;
use crate::notify;
use crate::process;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Set up; its command has not been started.
    Created,
    /// Its command runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Why the state of a container could not be kept or found.
#[derive(Debug, Error)]
pub enum StateError {
    /// An id becomes a directory's name.
    #[error("container id {0:?} is not usable; use 1 to 255 of a-z A-Z 0-9 _ + - .")]
    InvalidId(String),
    /// The id is taken.
    #[error("container {0} exists already")]
    Exists(String),
    /// The container's creation was cut off before its state was written.
    #[error("container {0} was never finished; delete it")]
    Unfinished(String),
    /// There is no such container.
    #[error("container {0} does not exist")]
    NotFound(String),
    /// A file of the state directory cannot be used.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

const STATE: &str = "state.json";
const SOCKET: &str = "start";
const CGROUP: &str = "cgroup";

/// The kept facts of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Its id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The id of its first process.
    pub pid: u32,
    /// When that process was born, in ticks since boot: an id alone may be another's later.
    pub born: u64,
    /// Where its cgroup is.
    pub cgroup: Location,
    /// When it was created.
    pub created: SystemTime,
    /// Its root file system and what lies beneath it there ([`crate::rootfs::mount_at`]), for a
    /// container that is mounted on the host: without a mount namespace.
    pub beneath: Option<(PathBuf, u64)>,
    /// Its spec.
    pub spec: Spec,
}

/// The state directory of one container.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl StateDir {
    /// Makes the directory of a new container.
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self, StateError> {
        check_id(id)?;
        let file_error = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::File {
                action,
                path,
                source,
            }
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let path = root.join(id);
        let mut made = builder.create(&path);
        if made
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            builder
                .recursive(true)
                .create(root)
                .map_err(file_error("create", root))?;
            made = builder.recursive(false).create(&path);
        }
        match made {
            Ok(()) => Self::open_path(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(StateError::Exists(id.to_owned()))
            }
            Err(source) => Err(file_error("create", &path)(source)),
        }
    }

    /// Opens the directory of a container that is there.
    pub(crate) fn open(root: &Path, id: &str) -> Result<Self, StateError> {
        check_id(id)?;
        match Self::open_path(root.join(id)) {
            Err(StateError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Err(StateError::NotFound(id.to_owned()))
            }
            other => other,
        }
    }

    fn open_path(path: PathBuf) -> Result<Self, StateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(dir) => Ok(Self { path, dir }),
            Err(error) => Err(StateError::File {
                action: "open",
                path,
                source: error.into(),
            }),
        }
    }

    fn error(&self, action: &'static str, name: &str, source: io::Error) -> StateError {
        StateError::File {
            action,
            path: self.path.join(name),
            source,
        }
    }

    /// Writes the state, whole or not at all.
    pub(crate) fn save(&self, saved: &Saved) -> Result<(), StateError> {
        let write = || {
            let new = self.path.join("state.new");
            std::fs::write(&new, serde_json::to_vec(saved)?)?;
            std::fs::rename(new, self.path.join(STATE))
        };
        write().map_err(|error: io::Error| self.error("write", STATE, error))
    }

    /// Notes which directories are about to be made for the cgroup: should the maker be killed before
    /// the state is written, they would be nobody's.
    pub(crate) fn note_cgroup(&self, directories: &[PathBuf]) -> Result<(), StateError> {
        let text: Vec<&str> = directories
            .iter()
            .filter_map(|path| path.to_str())
            .collect();
        std::fs::write(self.path.join(CGROUP), text.join("\n"))
            .map_err(|error| self.error("write", CGROUP, error))
    }

    /// The directories that were noted.
    pub(crate) fn noted_cgroup(&self) -> Vec<PathBuf> {
        let text = std::fs::read_to_string(self.path.join(CGROUP)).unwrap_or_default();
        text.lines().map(PathBuf::from).collect()
    }

    /// Reads the state of `id`.
    pub(crate) fn read(&self, id: &str) -> Result<Saved, StateError> {
        std::fs::read(self.path.join(STATE))
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => StateError::Unfinished(id.to_owned()),
                _ => self.error("read", STATE, error),
            })
    }

    /// The address of the start socket. By descriptor: the path itself may be longer than an
    /// address can be.
    fn address(&self) -> io::Result<SocketAddrUnix> {
        let path = format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_raw_fd());
        Ok(SocketAddrUnix::new(path)?)
    }

    /// The socket on which the first process will wait for its start.
    pub(crate) fn listen(&self) -> Result<OwnedFd, StateError> {
        let make = || {
            let socket = start_socket()?;
            bind(&socket, &self.address()?)?;
            listen(&socket, 1)?;
            Ok(socket)
        };
        make().map_err(|error| self.error("listen on", SOCKET, error))
    }

    /// A connection to the first process that waits for its start. It is the only one: a second
    /// caller finds no socket.
    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        let socket = start_socket()?;
        connect(&socket, &self.address()?)?;
        unlinkat(&self.dir, SOCKET, AtFlags::empty())?;
        Ok(socket)
    }

    /// Makes the directory of the socket on which the container says that it is ready.
    pub(crate) fn make_notify(&self) -> Result<(), StateError> {
        notify::make_dir(&self.path.join(notify::DIR))
            .map_err(|error| self.error("create", notify::DIR, error))
    }

    /// Makes that socket; `None` without the directory.
    pub(crate) fn bind_notify(&self) -> Result<Option<UnixDatagram>, StateError> {
        notify::bind(&self.path.join(notify::DIR))
            .map_err(|error| self.error("make a socket in", notify::DIR, error))
    }

    /// Whether the first process waits for its start.
    pub(crate) fn waits_for_start(&self) -> bool {
        rustix::fs::statat(&self.dir, SOCKET, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes the directory.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.error("remove", "", error))
            }
            _ => Ok(()),
        }
    }
}

fn start_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn check_id(id: &str) -> Result<(), StateError> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if (1..=255).contains(&id.len()) && id.bytes().all(usable) && id != "." && id != ".." {
        Ok(())
    } else {
        Err(StateError::InvalidId(id.to_owned()))
    }
}

/// When a process was born, in ticks since boot.
pub(crate) fn born(pid: u32) -> io::Result<u64> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may contain anything.
    line.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A descriptor of the process `pid` if it still is the one that was born then.
pub(crate) fn open_process(pid: u32, then: u64) -> Option<OwnedFd> {
    let pidfd = process::open(pid).ok()?;
    // Checked after opening: if it matches, the descriptor cannot be of a later process.
    (born(pid).ok()? == then).then_some(pidfd)
}

/// Waits for the end of the process behind a descriptor, without collecting it; without a `timeout`
/// for as long as it takes. False when it took too long.
pub(crate) fn ends_within(pidfd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(ready) => return Ok(ready != 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the process behind a descriptor has not ended.
pub(crate) fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    matches!(ends_within(pidfd, Some(Duration::ZERO)), Ok(false))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn ids_are_names_of_directories() {
        for id in ["a", "A-1_b.c+d", &"x".repeat(255)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_birth() {
        let pid = std::process::id();
        let then = born(pid).unwrap();
        let pidfd = open_process(pid, then).unwrap();
        assert!(is_alive(pidfd.as_fd()));
        assert!(open_process(pid, then + 1).is_none());
    }
}
