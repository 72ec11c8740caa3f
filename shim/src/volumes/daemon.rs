//! virtiofsd: the process that serves the pod's shares. One a sandbox, in the pod's
//! cgroup, in namespaces of its own, with the capabilities of a file server alone.
//!
//! It stays while its pod is saved. It ends with the sandbox; with the cgroup, which is killed
//! as one; and with the shim, whose end closes its connection, as it is the VMM's too.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};
use tokio::sync::watch;
use vmm::sys::{Birth, Child, Program};

use super::tree::{Tree, TreeError};
use crate::host::{oom_score, record};

/// Where distributions install it.
const PLACES: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/bin/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];

/// What to install when it is missing.
const PACKAGE: &str = "install the package `virtiofsd` or set `virtiofsd` in the configuration";

/// Its name in the state directory until it is connected.
const SOCKET: &str = "virtiofsd";

/// What it may keep: to give files their owners and modes, whoever they are, and to
/// enter its tree.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    // Given up by itself once it has started.
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_RESOURCE);

/// How long it may take to be ready. A node under load is slow.
const READY_TIME: Duration = Duration::from_secs(20);

/// Most lines of its messages that are logged, and bytes of one: a guest can cause them.
const MAX_LINES: usize = 100;
const MAX_LINE: u64 = 512;

/// No virtiofsd.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It is not installed.
    #[error("volumes need virtiofsd, which is not at {0}; {PACKAGE}")]
    Missing(String),
    /// It cannot be started.
    #[error("cannot start {}: {what}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It does not answer.
    #[error("virtiofsd did not get ready: {ended}")]
    Silent {
        /// How it ended.
        ended: String,
        /// What became of the question.
        source: io::Error,
    },
    /// The tree that it shares cannot be made.
    #[error("cannot make the tree of shares")]
    Tree(#[from] TreeError),
}

/// Where virtiofsd is: where the operator says, or where distributions have it.
///
/// # Errors
/// When it is in none of these places.
pub fn find(configured: Option<&Path>) -> Result<PathBuf, DaemonError> {
    match configured {
        Some(path) if path.is_file() => Ok(path.to_owned()),
        Some(path) => Err(DaemonError::Missing(path.display().to_string())),
        None => PLACES
            .iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .ok_or_else(|| DaemonError::Missing(PLACES.join(", "))),
    }
}

/// A virtiofsd. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Daemon {
    pid: i32,
    pidfd: OwnedFd,
    /// Returns why it ended.
    thread: Option<JoinHandle<String>>,
    serves: Arc<AtomicBool>,
}

impl Daemon {
    /// A path that leads to its root.
    pub(super) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.pid).into()
    }

    /// The guest uses it: from now on its end is a loss.
    pub(super) fn serve(&self) {
        self.serves.store(true, Ordering::Release);
    }

    /// Says how willingly the host's kernel kills it when it is out of memory.
    pub(super) fn set_oom_score(&self, score: i32) {
        // Its pid is its own: it is reaped when its thread sees its end.
        let running = self.thread.as_ref().is_some_and(|it| !it.is_finished());
        if running && let Err(error) = oom_score::set(self.pid.unsigned_abs(), score) {
            tracing::debug!(%error, "cannot set virtiofsd's OOM score");
        }
    }

    /// Kills it. Returns why it ended: by that, or by itself before.
    fn kill(&mut self) -> String {
        // One that has ended already is fine.
        let _ = vmm::sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts it, for the connection that is returned. When it ends while it serves, `lost`
/// says why.
pub(super) fn start(
    program: &Path,
    state_dir: &Path,
    cgroup: File,
    lost: watch::Sender<Option<String>>,
) -> Result<(Tree, Daemon, UnixStream), DaemonError> {
    let failed = |what, source| DaemonError::Start {
        program: program.to_owned(),
        what,
        source,
    };
    let (listener, socket) =
        connection(state_dir).map_err(|error| failed("make its socket", error))?;
    let (sender, receiver) = mpsc::channel();
    // What the thread becomes is for the process that it starts, and it is not used
    // for anything else.
    let (program_, directory) = (program.to_owned(), state_dir.to_owned());
    let serves = Arc::new(AtomicBool::new(false));
    let served = serves.clone();
    let thread = std::thread::Builder::new()
        .name("virtiofsd".into())
        .spawn(move || {
            let started = on_own_thread(&program_, &directory, listener, &cgroup);
            drop(cgroup);
            match started {
                Ok((tree, child, messages)) => {
                    let pidfd = child.pidfd.try_clone();
                    let _ = sender.send(Ok((tree, child.pid, pidfd)));
                    let ended = watch_end(&child, messages);
                    if served.load(Ordering::Acquire) {
                        lost.send_replace(Some(ended.clone()));
                    }
                    ended
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                    String::new()
                }
            }
        })
        .map_err(|error| failed("start a thread", error))?;
    let (tree, pid, pidfd) = receiver
        .recv()
        .unwrap_or_else(|_| Err(failed("start a thread", io::ErrorKind::Other.into())))?;
    let mut daemon = Daemon {
        pid,
        pidfd: pidfd.map_err(|error| failed("keep a handle on it", error))?,
        thread: Some(thread),
        serves,
    };
    match wait_ready(&socket) {
        Ok(()) => Ok((tree, daemon, socket)),
        Err(source) => Err(DaemonError::Silent {
            ended: daemon.kill(),
            source,
        }),
    }
}

/// Asks it for its features (the vhost-user protocol's GET_FEATURES, which changes
/// nothing): it answers when it is in its root and has given up what it does not need.
fn wait_ready(mut socket: &UnixStream) -> io::Result<()> {
    const GET_FEATURES: u32 = 1;
    const VERSION: u32 = 1;
    const REPLY: u32 = 1 << 2;
    let message = |words: [u32; 3]| words.map(u32::to_ne_bytes).concat();

    socket.set_read_timeout(Some(READY_TIME))?;
    socket.write_all(&message([GET_FEATURES, VERSION, 0]))?;
    let mut answer = [0; 20];
    socket.read_exact(&mut answer)?;
    socket.set_read_timeout(None)?;
    if answer[..12] != message([GET_FEATURES, VERSION | REPLY, 8]) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its answer is {answer:?}"),
        ));
    }
    Ok(())
}

/// A listening socket with no name any more, and the one connection to it.
fn connection(state_dir: &Path) -> io::Result<(UnixListener, UnixStream)> {
    let directory = File::open(state_dir)?;
    let path = record::socket_path(&directory, SOCKET);
    let listener = UnixListener::bind(&path)?;
    let connected = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener, connected?))
}

fn on_own_thread(
    program: &Path,
    directory: &Path,
    listener: UnixListener,
    cgroup: &File,
) -> Result<(Tree, Child, io::PipeReader), DaemonError> {
    let failed = |what, source: io::Error| DaemonError::Start {
        program: program.to_owned(),
        what,
        source,
    };
    let tree = Tree::new_on_this_thread(directory)?;
    unshare(
        CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(|error| failed("make its namespaces", error.into()))?;
    set_no_new_privs(true).map_err(|error| failed("take its privileges", error.into()))?;
    for capability in (CapabilitySet::all() - CAPABILITIES).iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not have.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(failed("take its capabilities", error.into())),
        }
    }

    let (messages, their_messages) = io::pipe().map_err(|error| failed("make a pipe", error))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| failed("open /dev/null", error))?;
    let path = |path: &Path| {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|error| failed("read its path", error.into()))
    };
    let (executable, shared) = (path(program)?, path(directory)?);
    let child = vmm::sys::spawn(
        &Program {
            path: &executable,
            arguments: &[
                c"virtiofsd",
                // The listening socket.
                c"--fd=3",
                c"--shared-dir",
                &shared,
                // Its namespaces are made here, where mounts can be added later.
                c"--sandbox=chroot",
                c"--seccomp=kill",
                // Attributes and names are asked for again after a second.
                c"--cache=auto",
                // Files of two file systems are told apart in the guest.
                c"--announce-submounts",
                // Handles would need the right to read every file of the host.
                c"--inode-file-handles=never",
                c"--xattr",
                c"--posix-acl",
                c"--log-level=warn",
            ],
            environment: &[],
        },
        &[
            null.as_fd(),
            their_messages.as_fd(),
            their_messages.as_fd(),
            listener.as_fd(),
        ],
        Birth {
            cgroup: Some(cgroup.as_fd()),
            own_pids: false,
        },
    )
    .map_err(|error| failed("execute it", error))?;
    Ok((tree, child, messages))
}

/// Logs what it says until it ends; then why it did.
fn watch_end(child: &Child, messages: io::PipeReader) -> String {
    let mut reader = BufReader::with_capacity(1024, messages);
    let mut last = String::new();
    let mut lines = 0;
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(length) if length > 0 => {
                last = String::from_utf8_lossy(&line).trim().to_owned();
                lines += 1;
                if lines <= MAX_LINES {
                    tracing::warn!("virtiofsd: {last}");
                }
            }
            _ => break,
        }
    }
    let ended = loop {
        match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other,
        }
    };
    let how = match ended {
        Ok(WaitStatus::Exited(_, status)) => format!("it exited with status {status}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("it was killed by {signal}"),
        _ => "it ended".to_owned(),
    };
    if last.is_empty() {
        how
    } else {
        format!("{how}; it last said: {last}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_virtiofsd_is_named_with_its_package() {
        let text = find(Some(Path::new("/none/virtiofsd")))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("/none/virtiofsd") && text.contains("package"),
            "{text}"
        );
        assert_eq!(
            find(Some(Path::new("/bin/sh"))).unwrap(),
            Path::new("/bin/sh")
        );
    }

    #[test]
    fn its_socket_has_no_name_and_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("n".repeat(76)).join("i".repeat(76));
        std::fs::create_dir_all(&long).unwrap();
        let (listener, _connected) = connection(&long).unwrap();
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
        listener.accept().unwrap();
    }
}
