//! The host's debug shell: a program that runs beside the agent, in its namespaces and
//! with all its rights. The guest holds no such program: the host sends it, in the one
//! call that starts it, and it is gone with its last process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use protocol::guest::ConsoleRequest;
use runtime::{Io, TerminalSize};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::boot::CGROUP;
use crate::process::{Ending, Exit, Process};
use crate::stdio::{self, Stdio};
use crate::streams::{Claim, Connection};
use crate::sys;
use crate::tasks::{TaskError, Tasks};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const STATIC: &str = "it must be a static one for x86-64";
/// How often, and with which pause, an emptied cgroup is tried to be removed.
const REMOVALS: u32 = 250;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> TaskError {
    move |error| TaskError::System {
        what,
        source: error.into(),
    }
}

/// Starts what `request` asks for.
///
/// # Errors
/// Names what is wrong with it or what the kernel refused; nothing runs then.
pub fn start(tasks: &Tasks, request: &ConsoleRequest) -> Result<(), TaskError> {
    let control = tasks
        .streams
        .claim(request.control)
        .map_err(stdio::StdioError::from)?;
    let cgroup = Cgroup::make(request.control)?;
    match launch(tasks, request, &cgroup) {
        Ok(process) => {
            tokio::spawn(attend(control, process, cgroup));
            Ok(())
        }
        Err(error) => {
            tokio::spawn(cgroup.end());
            Err(error)
        }
    }
}

fn launch(
    tasks: &Tasks,
    request: &ConsoleRequest,
    cgroup: &Cgroup,
) -> Result<Arc<Process>, TaskError> {
    let [name, arguments @ ..] = request.arguments.as_slice() else {
        return Err(TaskError::Invalid("the debug shell has no name".into()));
    };
    // The C library would hand anything else to a shell.
    if !request.program.starts_with(b"\x7fELF") {
        return Err(TaskError::Invalid(format!(
            "the debug shell is no executable: {STATIC}"
        )));
    }
    let size = size(request.rows, request.columns)?;
    let stdio = Stdio {
        stdin: request.stdin.to_string(),
        stdout: request.stdout.to_string(),
        stderr: request.stderr.to_string(),
        terminal: request.terminal,
    };
    let (prepared, io) = stdio::prepare(&tasks.streams, &stdio, Some(size))?;

    let program = memory_file(&request.program).map_err(system("keep the debug shell"))?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0(name).args(arguments).current_dir("/");
    command.env_clear().env("PATH", PATH).env("HOME", "/");
    if !request.term.is_empty() {
        command.env("TERM", &request.term);
    }
    let master = match io {
        Io::Terminal { .. } => {
            let failed = || system("open a terminal");
            let (master, slave) = runtime::open_terminal(size).map_err(failed())?;
            command.stdin(slave.try_clone().map_err(failed())?);
            command.stdout(slave.try_clone().map_err(failed())?);
            command.stderr(slave);
            Some(master)
        }
        Io::Files {
            stdin,
            stdout,
            stderr,
        } => {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
            None
        }
    };
    let child = sys::lead_session(&mut command, cgroup.processes()?, request.terminal).map_err(
        |error| TaskError::Invalid(format!("the debug shell does not run: {error}; {STATIC}")),
    )?;
    // What it holds of the streams would keep them open.
    drop(command);
    // The event loop has not turned since: not even one that has ended is collected.
    let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .map_err(system("watch the debug shell"))?;
    let attached = prepared.attach(master)?;
    let process = Process::new("", "", child.id(), pidfd, Ending::default(), attached);
    let process = Arc::new(process);
    tasks.reaper.register(process.pid, Arc::clone(&process));
    Ok(process)
}

fn size(rows: u32, columns: u32) -> Result<TerminalSize, TaskError> {
    match (u16::try_from(rows), u16::try_from(columns)) {
        (Ok(rows), Ok(columns)) => Ok(TerminalSize { columns, rows }),
        _ => Err(TaskError::Invalid(format!(
            "no terminal has {rows} rows and {columns} columns"
        ))),
    }
}

fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("console", MemfdFlags::CLOEXEC)?);
    io::Write::write_all(&mut &file, bytes)?;
    // A program that is open for writing cannot be run.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Looks after a console until its process or its client has gone, and leaves nothing
/// of it.
async fn attend(control: Claim, process: Arc<Process>, cgroup: Cgroup) {
    match control.connected().await {
        Ok(mut control) => {
            let exit = last(&mut control, &process).await;
            cgroup.kill();
            if let Some(exit) = exit {
                // The client may have gone just now.
                let _ = control.write_u32_le(exit.status).await;
                let _ = control.shutdown().await;
            }
        }
        Err(error) => log::warn!("console: {error}"),
    }
    cgroup.end().await;
}

/// How the process ended; `None`: the client has gone before.
async fn last(control: &mut Connection, process: &Process) -> Option<Exit> {
    let mut size = [0; 4];
    loop {
        tokio::select! {
            exit = process.ending.wait() => return Some(exit),
            read = control.read_exact(&mut size) => {
                read.ok()?;
                let [r0, r1, c0, c1] = size;
                let size = TerminalSize {
                    rows: u16::from_le_bytes([r0, r1]),
                    columns: u16::from_le_bytes([c0, c1]),
                };
                if let Err(error) = process.resize(size) {
                    log::debug!("console: cannot resize its terminal: {error}");
                }
            }
        }
    }
}

/// What a console's processes are in, however they detach themselves.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(number: u64) -> Result<Self, TaskError> {
        let path = PathBuf::from(format!("{CGROUP}/console-{number}"));
        fs::create_dir(&path).map_err(system("make the console's cgroup"))?;
        Ok(Self(path))
    }

    fn processes(&self) -> Result<OwnedFd, TaskError> {
        let file = File::options()
            .write(true)
            .open(self.0.join("cgroup.procs"));
        file.map(OwnedFd::from)
            .map_err(system("open the console's cgroup"))
    }

    fn kill(&self) {
        if let Err(error) = fs::write(self.0.join("cgroup.kill"), "1") {
            log::warn!("cannot kill a console: {error}");
        }
    }

    /// Kills what is in it and removes it.
    async fn end(self) {
        self.kill();
        for _ in 0..REMOVALS {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tokio::time::sleep(REMOVAL_PAUSE).await;
                }
                Ok(()) => return,
                Err(error) => return log::warn!("cannot remove {}: {error}", self.0.display()),
            }
        }
        log::warn!(
            "processes of a console do not end; {} stays",
            self.0.display()
        );
    }
}
