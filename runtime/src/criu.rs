//! Checkpoint and restore by [criu](https://criu.org): [`dump`] and [`restore`] say what is to be
//! done, here is how criu is run and talked to. It runs as a service for one request (`criu swrk`),
//! over a socket of packets.

mod dump;
mod mounts;
mod restore;
mod wire;

pub use dump::{DumpOptions, PageServer};
pub use restore::RestoreOptions;

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, Mode, OFlags, access, openat};
use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown,
    SocketFlags, SocketType, recvmsg, send, shutdown, socketpair,
};
use rustix::process::{Signal, pidfd_send_signal};
use thiserror::Error;

use crate::Status;
use crate::hooks::HookError;
use crate::plan::{NamespaceKind, PlanError};
use crate::process::{end, reap};
use crate::rootfs::relative;
use crate::sys::{self, NewProcess};
use wire::{Message, Value, fields, option};

/// Why a container could not be checkpointed, or restored.
#[derive(Debug, Error)]
pub enum CriuError {
    /// There is no criu in the caller's `PATH`.
    #[error("criu is not installed: install the package criu")]
    NotInstalled,
    /// Only a running container can be checkpointed.
    #[error("container {id} is {status}; only a running one can be checkpointed")]
    NotRunning {
        /// The container.
        id: String,
        /// What it is instead.
        status: Status,
    },
    /// Something that criu, or the way it is driven here, cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// The container's spec is not what it was when the container was made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// criu has given up.
    #[error("criu could not {action} the container: {problem}; see {}", log.display())]
    Failed {
        /// `dump` or `restore`.
        action: &'static str,
        /// The last error that it has logged.
        problem: String,
        /// Its log.
        log: PathBuf,
    },
    /// A step on this side failed.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, CriuError>;

fn system<W: Into<String>>(what: W) -> impl FnOnce(io::Error) -> CriuError {
    let what = what.into();
    move |source| CriuError::System { what, source }
}

/// What becomes of cgroups: the modes of criu's option `--manage-cgroups`, by its numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// They stay as they are, and so does who is in them.
    Ignore = 0,
    /// Those that are missing are made.
    Soft = 3,
    /// Likewise, and limits are set in any case.
    Full = 4,
    /// All must be missing.
    Strict = 5,
    /// As criu likes.
    #[default]
    Default = 6,
}

/// What dump and restore have in common. Most are criu's own options, by their names there.
#[derive(Debug, Clone, Default)]
pub struct CriuOptions {
    /// The directory of the images.
    pub images: PathBuf,
    /// The directory of the log; that of the images otherwise.
    pub work: Option<PathBuf>,
    /// Established connections of TCP are allowed.
    pub tcp_established: bool,
    /// Unix sockets whose other end is outside are allowed.
    pub ext_unix_sk: bool,
    /// A terminal of the caller's is allowed.
    pub shell_job: bool,
    /// Locks of files are allowed.
    pub file_locks: bool,
    /// Pages that a later image has are dropped from earlier ones.
    pub auto_dedup: bool,
    /// What becomes of cgroups.
    pub cgroups: CgroupMode,
}

/// The file beside the images in which it stands what the standard streams were, as runc has it.
const STREAMS: &str = "descriptors.json";
/// criu's configuration for containers; a container's annotation may name another.
const CONFIG: &str = "/etc/criu/runc.conf";
const CONFIG_ANNOTATION: &str = "org.criu.config";

/// What criu knows a namespace by that is not the container's own; runc's name for it.
fn external_name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "extRootPidNS",
        _ => "extRootNetNS",
    }
}

/// What criu is asked for.
#[derive(Debug)]
struct Request {
    /// `dump` or `restore`.
    action: &'static str,
    kind: u64,
    options: Message,
    images: PathBuf,
    /// The images once more, where others than root have to read them.
    mapped: Option<OwnedFd>,
    work: Option<PathBuf>,
    log: PathBuf,
}

/// Kinds of requests and answers.
const DUMP: u64 = 1;
const RESTORE: u64 = 2;
const PRE_DUMP: u64 = 4;
const NOTIFY: u64 = 6;

impl Request {
    fn new(
        action: &'static str,
        kind: u64,
        common: &CriuOptions,
        annotations: &Option<HashMap<String, String>>,
    ) -> Self {
        let mut options = Message::default();
        let log = format!("{action}.log");
        options
            .flag(option::EXT_UNIX_SK, common.ext_unix_sk)
            .flag(option::TCP_ESTABLISHED, common.tcp_established)
            .flag(option::SHELL_JOB, common.shell_job)
            .flag(option::FILE_LOCKS, common.file_locks)
            .number(option::LOG_LEVEL, 4)
            .text(option::LOG_FILE, &log)
            .flag(option::NOTIFY_SCRIPTS, true)
            .flag(option::AUTO_DEDUP, common.auto_dedup)
            .flag(option::MANAGE_CGROUPS, true);
        // Interfaces are not criu's: whoever has made them makes them again.
        let empty = libc::CLONE_NEWNET as u64;
        options
            .number(option::MANAGE_CGROUPS_MODE, common.cgroups as u64)
            .number(option::EMPTY_NS, empty)
            .flag(option::ORPHAN_PTS_MASTER, true);
        let named = annotations
            .as_ref()
            .and_then(|annotations| annotations.get(CONFIG_ANNOTATION));
        match named.map_or(CONFIG, String::as_str) {
            "" => {}
            path => drop(options.text(option::CONFIG_FILE, path)),
        }
        let directory = common.work.as_ref().unwrap_or(&common.images);
        Self {
            action,
            kind,
            options,
            images: common.images.clone(),
            mapped: None,
            work: common.work.clone(),
            log: directory.join(log),
        }
    }

    fn failed(&self, problem: &str) -> CriuError {
        CriuError::Failed {
            action: self.action,
            problem: last_error(&self.log).unwrap_or_else(|| problem.to_owned()),
            log: self.log.clone(),
        }
    }
}

/// The last error in a log of criu that is news, without the time before it: each of its steps adds
/// that it has failed, too.
fn last_error(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut errors = text.lines().filter(|line| line.contains("Error ("));
    let echoes = ["FAILED.", ": exited, status=", " failed with -"];
    let news = |line: &&str| !echoes.iter().any(|echo| line.contains(echo));
    let line = errors.rfind(news)?;
    Some(line[line.find("Error (")?..].trim().to_owned())
}

/// criu, waiting for its request. Dropping it ends it.
#[derive(Debug)]
struct Criu {
    pid: u32,
    pidfd: Option<OwnedFd>,
    channel: OwnedFd,
}

/// criu's program.
fn program() -> Result<CString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("criu"))
        .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
        .and_then(|file| CString::new(file.into_os_string().into_vec()).ok())
        .ok_or(CriuError::NotInstalled)
}

impl Criu {
    /// Starts it. `prepare` runs in its process before; `kept` stay open for it.
    fn start(
        program: &CString,
        how: NewProcess<'_>,
        kept: &[BorrowedFd<'_>],
        prepare: impl FnOnce() -> io::Result<()>,
    ) -> Result<Self> {
        let (channel, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| system("make a socket")(error.into()))?;
        let args = ["criu", "swrk", &theirs.as_raw_fd().to_string()]
            .map(|arg| CString::new(arg).unwrap_or_default());
        let env: Vec<CString> = std::env::vars_os()
            .filter_map(|(name, value)| {
                let entry: OsString = [name, "=".into(), value].into_iter().collect();
                CString::new(entry.into_vec()).ok()
            })
            .collect();
        let run = || -> io::Result<std::convert::Infallible> {
            sys::reset_signals();
            for fd in kept.iter().copied().chain([theirs.as_fd()]) {
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            prepare()?;
            sys::execute(program, &args, &env)
        };
        let (pid, pidfd) = sys::spawn(how, || match run() {
            Err(error) => {
                // To the caller's standard error, or to the log that is there.
                eprintln!("run criu: {error}");
                1
            }
            Ok(never) => match never {},
        })
        .map_err(system("make a process for criu (clone3)"))?;
        Ok(Self {
            pid,
            pidfd: Some(pidfd),
            channel,
        })
    }

    /// Has it do what is asked. What it says on the way goes to `hear`, with a process's id and
    /// maybe a descriptor; an error there makes it give up. Returns the id of the process that was
    /// restored.
    fn request(
        mut self,
        request: &Request,
        mut hear: impl FnMut(&str, u32, Option<OwnedFd>) -> Result<()>,
    ) -> Result<u32> {
        let mut options = request.options.clone();
        // criu opens these anew through this process. As it sees them: it may mount things there,
        // which the kernel allows in its own mount namespace only.
        let images = self.directory(&request.images)?;
        let work = request.work.as_deref().map(|work| self.directory(work));
        let work = work.transpose()?;
        let mapped = request.mapped.as_ref().unwrap_or(&images);
        options
            .number(option::IMAGES_DIR_FD, mapped.as_raw_fd() as u64)
            .number(
                option::WORK_DIR_FD,
                work.as_ref().unwrap_or(&images).as_raw_fd() as u64,
            );
        let mut message = Message::default();
        message.number(1, request.kind).message(2, &options);
        self.send(&message, request)?;
        let mut refused = None;
        let pid = loop {
            let (bytes, fd) = self.receive(request)?;
            let answer = Answer::read(&bytes);
            if answer.kind == NOTIFY && answer.success {
                let heard = hear(&answer.script, answer.pid, fd);
                let mut reply = Message::default();
                reply.number(1, NOTIFY).number(3, u64::from(heard.is_ok()));
                refused = refused.or(heard.err());
                self.send(&reply, request)?;
                continue;
            }
            if let Some(error) = refused {
                return Err(error);
            }
            if !answer.success {
                return Err(request.failed(&answer.problem));
            }
            if answer.kind != request.kind {
                return Err(request.failed("it has answered another question"));
            }
            break answer.pid;
        };
        let _ = shutdown(&self.channel, Shutdown::Write);
        if let Some(pidfd) = self.pidfd.take() {
            // After a first dump of memory it would wait for the next: nothing is left to do.
            if request.kind == PRE_DUMP {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
            let ended = reap(pidfd.as_fd()).map_err(system("wait for criu"))?;
            let good = ended.is_some_and(|status| status.exit_status() == Some(0));
            if !good && request.kind != PRE_DUMP {
                return Err(request.failed("it has ended with an error"));
            }
        }
        Ok(pid)
    }

    /// A directory in criu's mount namespace.
    fn directory(&self, path: &Path) -> Result<OwnedFd> {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, root.join(relative(path)), flags, Mode::empty())
            .map_err(|error| system(format!("open {}", path.display()))(error.into()))
    }

    fn send(&self, message: &Message, request: &Request) -> Result<()> {
        retry_on_intr(|| send(&self.channel, message.bytes(), SendFlags::NOSIGNAL))
            .map(drop)
            .map_err(|error| request.failed(&format!("it does not listen: {error}")))
    }

    fn receive(&self, request: &Request) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        /// criu's answers are short.
        const LONGEST: usize = 64 * 1024;
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut data = [IoSliceMut::new(&mut bytes)];
            recvmsg(
                &self.channel,
                &mut data,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = received.map_err(|error| system("hear from criu")(error.into()))?;
        if received.bytes == 0 {
            return Err(request.failed("it has ended without an answer"));
        }
        bytes.truncate(received.bytes);
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((bytes, fd))
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            end(pidfd.as_fd());
        }
    }
}

/// What criu says.
#[derive(Debug, Default)]
struct Answer {
    kind: u64,
    success: bool,
    /// What a notification is about.
    script: String,
    /// The process that a notification, or the end of a restore, is about.
    pid: u32,
    problem: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut answer = Self::default();
        let mut number = 0;
        for (field, value) in fields(bytes) {
            match (field, value) {
                (1, Value::Number(kind)) => answer.kind = kind,
                (2, Value::Number(success)) => answer.success = success == 1,
                (4, Value::Bytes(restored)) => {
                    for (field, value) in fields(restored) {
                        if let (1, Value::Number(pid)) = (field, value) {
                            answer.pid = pid as u32;
                        }
                    }
                }
                (5, Value::Bytes(notification)) => {
                    for (field, value) in fields(notification) {
                        match (field, value) {
                            (1, Value::Bytes(script)) => answer.script = text(script),
                            (2, Value::Number(pid)) => answer.pid = pid as u32,
                            _ => {}
                        }
                    }
                }
                (7, Value::Number(error)) => number = error as i32,
                (9, Value::Bytes(problem)) => answer.problem = text(problem),
                _ => {}
            }
        }
        if answer.problem.is_empty() {
            answer.problem = match number {
                0 => "it gives no reason".to_owned(),
                number => io::Error::from_raw_os_error(number).to_string(),
            };
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_told() {
        let log = std::env::temp_dir().join(format!("criu-log-{}", std::process::id()));
        let text = "(00.01) Error (criu/a.c:1): first\n(00.02) Warn  (criu/b.c:2): second\n\
            (00.03) Error (criu/c.c:3): Can't do it\n(00.04) Error (criu/d.c:4): Dumping FAILED.\n";
        std::fs::write(&log, text).unwrap();
        let told = last_error(&log);
        std::fs::remove_file(&log).unwrap();
        assert_eq!(told.as_deref(), Some("Error (criu/c.c:3): Can't do it"));
        assert_eq!(last_error(&log), None);
    }

    #[test]
    fn answers_are_read() {
        let mut inner = Message::default();
        inner.text(1, "post-restore").number(2, 77);
        let mut message = Message::default();
        message.number(1, NOTIFY).number(2, 1).message(5, &inner);
        let answer = Answer::read(message.bytes());
        assert!(answer.success);
        assert_eq!((answer.kind, answer.pid), (NOTIFY, 77));
        assert_eq!(answer.script, "post-restore");
        let mut message = Message::default();
        message.number(1, DUMP).number(2, 0).number(7, 52);
        let answer = Answer::read(message.bytes());
        assert!(!answer.success);
        assert!(answer.problem.contains("os error 52"), "{}", answer.problem);
    }
}
