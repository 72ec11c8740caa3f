//! How a process started from the command line is connected: to the caller's own streams, or to a
//! terminal whose other side goes to the caller or is relayed.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use oci_spec::runtime::Process;
use runtime::{Io, Launched, TerminalSize};

use super::console::{self, Socket};
use super::pid_file;
use super::relay::Relay;

/// What `create`, `run` and `exec` have in common.
#[derive(Debug, Args)]
pub(super) struct StreamArgs {
    /// Unix socket that is sent the master side of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that is sent a descriptor of the process
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// File to write the process's id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Hand N more descriptors to the process (beside its streams and $LISTEN_FDS)
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
}

/// What is opened before the process is made, so that nothing has to be taken back when it cannot be.
pub(super) struct Streams {
    console: Option<Socket>,
    pidfd: Option<Socket>,
    pid_file: Option<PathBuf>,
    /// For a terminal that is not handed over.
    relay: Option<Relay>,
    terminal: bool,
    preserve_fds: u32,
}

impl StreamArgs {
    /// For a verb with these two alone.
    pub(super) fn of(console_socket: Option<PathBuf>, pid_file: Option<PathBuf>) -> Self {
        Self {
            console_socket,
            pidfd_socket: None,
            pid_file,
            preserve_fds: 0,
        }
    }

    /// Checks what is asked for of a process and opens it. `listen_fds` of the `inherited`
    /// descriptors are sockets of the service manager.
    pub(super) fn open(
        &self,
        process: Option<&Process>,
        detach: bool,
        listen_fds: u32,
        inherited: u32,
    ) -> Result<Streams> {
        let terminal = process.and_then(Process::terminal).unwrap_or(false);
        match (&self.console_socket, terminal && detach) {
            (None, true) => bail!(
                "a detached process with a terminal needs --console-socket, or process.terminal \
                 false"
            ),
            (Some(_), false) => bail!(
                "--console-socket is for a detached process with a terminal: leave it out, or \
                 set process.terminal"
            ),
            _ => {}
        }
        let preserve_fds = self.preserve_fds + listen_fds;
        ensure!(
            preserve_fds <= inherited,
            "descriptor {} is not open, of the {preserve_fds} from 3 on to be handed over",
            3 + inherited
        );
        Ok(Streams {
            console: self
                .console_socket
                .as_deref()
                .map(Socket::connect)
                .transpose()?,
            pidfd: self
                .pidfd_socket
                .as_deref()
                .map(Socket::connect)
                .transpose()?,
            pid_file: self.pid_file.clone(),
            relay: (terminal && !detach).then(Relay::open).transpose()?,
            terminal,
            preserve_fds,
        })
    }
}

impl Streams {
    /// How many descriptors beside its streams the process gets.
    pub(super) fn preserve_fds(&self) -> u32 {
        self.preserve_fds
    }

    /// The process's side.
    pub(super) fn io(&self) -> Result<Io> {
        if self.terminal {
            let size: Option<TerminalSize> = self.relay.as_ref().and_then(Relay::size);
            return Ok(Io::Terminal { size });
        }
        let copy = |fd: std::os::fd::BorrowedFd<'_>| -> Result<OwnedFd> {
            rustix::io::fcntl_dupfd_cloexec(fd, 3).context("copy a standard stream")
        };
        Ok(Io::Files {
            stdin: copy(rustix::stdio::stdin())?,
            stdout: copy(rustix::stdio::stdout())?,
            stderr: copy(rustix::stdio::stderr())?,
        })
    }

    /// Hands over what the caller has asked for. Returns the relay of a terminal that stays here.
    pub(super) fn hand_over(self, launched: &mut Launched) -> Result<Option<Relay>> {
        let terminal = launched.terminal.take();
        if let (Some(socket), Some(master)) = (&self.console, &terminal) {
            socket.send(console::NAME, master)?;
        }
        if let Some(socket) = &self.pidfd {
            socket.send("pidfd", &launched.pidfd)?;
        }
        if let Some(path) = &self.pid_file {
            pid_file::write(path, launched.pid)?;
        }
        match (self.relay, terminal) {
            (Some(relay), Some(master)) => relay.begin(master).map(Some),
            _ => Ok(None),
        }
    }
}

/// How many descriptors from 3 on are open, without a gap.
pub(super) fn inherited() -> u32 {
    (0..)
        .find(|number| std::fs::symlink_metadata(format!("/proc/self/fd/{}", 3 + number)).is_err())
        .unwrap_or(0)
}

/// How many descriptors the service manager hands over by the protocol of `sd_listen_fds(3)`.
pub(super) fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}
