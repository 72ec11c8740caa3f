//! One command: its process, and the bytes between it and its client.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Context;
use integration::channel::{Frame, Request, Size};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const CHUNK: usize = 64 * 1024;

/// Where a command's output goes.
type Wrap = fn(Vec<u8>) -> Frame;

/// A running command.
pub struct Session<'a> {
    socket: &'a TcpStream,
    child: Child,
    pidfd: OwnedFd,
    /// Input that the command has not taken yet, and where it goes. No further
    /// frame is read while there is any, which is the back pressure.
    pending: Vec<u8>,
    closing: bool,
    stdin: Option<File>,
    outputs: Vec<(File, Wrap)>,
    /// The same terminal as `stdin` and `outputs`, for its size.
    terminal: Option<OwnedFd>,
}

/// Whether the conversation goes on.
enum Client {
    Present,
    Gone,
}

impl<'a> Session<'a> {
    /// Starts the command that `request` names.
    pub fn start(socket: &'a TcpStream, request: &Request) -> anyhow::Result<Session<'a>> {
        let (program, arguments) = request.argv.split_first().context("no command")?;
        let mut command = match request.terminal {
            Some(_) => {
                let mut command = Command::new("/proc/self/exe");
                command.arg("terminal").arg(program);
                command
            }
            None => {
                let mut command = Command::new(program);
                command.process_group(0);
                command
            }
        };
        command
            .args(arguments)
            .current_dir(&request.cwd)
            .envs(request.env.iter().map(|(name, value)| (name, value)));
        let terminal = request.terminal.map(open_terminal).transpose()?;
        match &terminal {
            Some((_, user)) => command
                .stdin(user.try_clone()?)
                .stdout(user.try_clone()?)
                .stderr(user.try_clone()?),
            None => command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| program.clone())?;
        // The command keeps duplicates of its ends, which would keep them open.
        drop(command);
        let pidfd = pidfd_open(pid(&child), PidfdFlags::empty()).context("pidfd_open")?;

        let mut outputs: Vec<(File, Wrap)> = Vec::new();
        let mut terminal_side = None;
        let stdin = match terminal {
            Some((ours, _)) => {
                outputs.push((File::from(ours.try_clone()?), Frame::Stdout));
                terminal_side = Some(ours.try_clone()?);
                Some(File::from(ours))
            }
            None => {
                outputs.extend(
                    child
                        .stdout
                        .take()
                        .map(|pipe| (File::from(OwnedFd::from(pipe)), Frame::Stdout as Wrap)),
                );
                outputs.extend(
                    child
                        .stderr
                        .take()
                        .map(|pipe| (File::from(OwnedFd::from(pipe)), Frame::Stderr as Wrap)),
                );
                child
                    .stdin
                    .take()
                    .map(|pipe| File::from(OwnedFd::from(pipe)))
            }
        };
        if let Some(stdin) = &stdin {
            fcntl_setfl(stdin, fcntl_getfl(stdin)? | OFlags::NONBLOCK)?;
        }
        Ok(Session {
            socket,
            child,
            pidfd,
            pending: Vec::new(),
            closing: false,
            stdin,
            outputs,
            terminal: terminal_side,
        })
    }

    /// Carries bytes until the command ends, and returns its exit code, or none if
    /// the client went away first. Output that is there at the end is still sent;
    /// what a left-over child may write later is not.
    pub fn run(mut self) -> Option<i32> {
        let outcome = self.carry();
        if outcome.is_none() {
            let _ = kill_process_group(pid(&self.child), Signal::KILL);
        }
        let status = self.child.wait().ok();
        outcome.and(status.map(exit_code))
    }

    fn carry(&mut self) -> Option<()> {
        loop {
            let mut fds = vec![
                PollFd::new(&self.pidfd, PollFlags::IN),
                PollFd::new(
                    self.socket,
                    if self.pending.is_empty() {
                        PollFlags::IN | PollFlags::RDHUP
                    } else {
                        PollFlags::RDHUP
                    },
                ),
            ];
            for (file, _) in &self.outputs {
                fds.push(PollFd::new(file, PollFlags::IN));
            }
            let feeding = self.stdin.as_ref().filter(|_| !self.pending.is_empty());
            if let Some(stdin) = feeding {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            wait_for(&mut fds, None)?;
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);

            let (exited, socket) = (!ready[0].is_empty(), ready[1]);
            let count = self.outputs.len();
            if ready.get(2 + count).is_some_and(|flags| !flags.is_empty()) {
                self.feed();
            }
            self.relay(&ready[2..2 + count])?;
            if exited {
                return self.drain();
            }
            if socket.contains(PollFlags::IN) {
                if let Client::Gone = self.receive() {
                    return None;
                }
            } else if !socket.is_empty() {
                return None;
            }
        }
    }

    /// Passes on what each output that is ready has, dropping those that ended.
    fn relay(&mut self, ready: &[PollFlags]) -> Option<()> {
        let mut ended = Vec::new();
        for (index, flags) in ready.iter().enumerate() {
            if flags.is_empty() {
                continue;
            }
            let (file, wrap) = &mut self.outputs[index];
            let mut buffer = vec![0; CHUNK];
            match file.read(&mut buffer) {
                // A terminal whose last user closed it answers EIO.
                Ok(0) | Err(_) => ended.push(index),
                Ok(count) => {
                    buffer.truncate(count);
                    wrap(buffer).write(&mut &*self.socket).ok()?;
                }
            }
        }
        for index in ended.into_iter().rev() {
            drop(self.outputs.remove(index));
        }
        Some(())
    }

    /// After the command's end: sends what is still in the pipes.
    fn drain(&mut self) -> Option<()> {
        while !self.outputs.is_empty() {
            let mut fds: Vec<PollFd> = self
                .outputs
                .iter()
                .map(|(file, _)| PollFd::new(file, PollFlags::IN))
                .collect();
            let count = wait_for(
                &mut fds,
                Some(Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            )?;
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            if count == 0 {
                break;
            }
            self.relay(&ready)?;
        }
        Some(())
    }

    /// Handles one frame of the client.
    fn receive(&mut self) -> Client {
        match Frame::read(&mut &*self.socket) {
            Ok(Frame::Stdin(bytes)) if bytes.is_empty() => {
                self.closing = true;
                self.feed();
            }
            Ok(Frame::Stdin(bytes)) => {
                self.pending = bytes;
                self.feed();
            }
            Ok(Frame::Resize(size)) => {
                if let Some(terminal) = &self.terminal {
                    let _ = tcsetwinsize(terminal, winsize(size));
                }
            }
            Ok(Frame::Signal(number)) => {
                // A signal that does not exist, or comes too late, has no effect.
                if let Some(signal) = Signal::from_named_raw(number) {
                    let _ = kill_process_group(pid(&self.child), signal);
                }
            }
            Ok(_) | Err(_) => return Client::Gone,
        }
        Client::Present
    }

    /// Writes as much pending input as the command takes now.
    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else {
            self.pending.clear();
            return;
        };
        while !self.pending.is_empty() {
            match stdin.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.pending.clear();
                    self.closing = true;
                }
            }
        }
        // A terminal has no end of file of its own; its client types it.
        if self.closing && self.terminal.is_none() {
            self.stdin = None;
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Polls again after a signal; none means that polling itself failed.
fn wait_for(fds: &mut [PollFd], timeout: Option<Timespec>) -> Option<usize> {
    loop {
        match poll(fds, timeout.as_ref()) {
            Ok(count) => return Some(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn winsize(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Our side of a new terminal, and the command's.
fn open_terminal(size: Size) -> anyhow::Result<(OwnedFd, File)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("open a terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?.into_string()?;
    tcsetwinsize(as_fd(&ours), winsize(size))?;
    let user = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&name)
        .with_context(|| format!("open {name}"))?;
    Ok((ours, user))
}

fn as_fd(fd: &OwnedFd) -> BorrowedFd<'_> {
    fd.as_fd()
}
