//! Waiting for a process in the foreground: signals go on to it, its terminal is relayed, its exit
//! code becomes ours.

use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime::Launched;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, getpid, set_child_subreaper};

use super::notify::Notify;
use super::relay::Relay;

/// All signals of this process, to be read instead of being acted upon.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// For a verb that stays in the foreground, unless it is to `detach`; what the container leaves
    /// behind comes to a subreaper. To be called before there is a process: no signal must find
    /// nobody.
    pub(super) fn of_foreground(detach: bool, subreaper: bool) -> Result<Option<Self>> {
        if detach {
            return Ok(None);
        }
        let signals = Self::take()?;
        if subreaper {
            set_child_subreaper(Some(getpid())).context("become a subreaper")?;
        }
        Ok(Some(signals))
    }

    /// Blocks all signals from here on. New processes of the engine start without this.
    fn take() -> Result<Self> {
        let all = SigSet::all();
        all.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(
            SignalFd::with_flags(&all, flags).context("read signals")?,
        ))
    }
}

/// Waits for the end of the process and gives its exit code, 128 and the number for a signal. On the
/// way a service manager is told when the container is ready.
pub(super) fn wait(
    launched: &Launched,
    mut relay: Option<Relay>,
    signals: Signals,
    mut notify: Option<Notify>,
) -> Result<ExitCode> {
    let mut status = None;
    while status.is_none() {
        let mut fds = vec![PollFd::new(&signals.0, PollFlags::IN)];
        if let Some(relay) = &relay {
            fds.extend(relay.wanted());
        }
        let relayed = fds.len();
        fds.extend(
            notify
                .iter()
                .map(|notify| PollFd::new(notify, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the process"),
        }
        let ready: Vec<PollFlags> = fds[1..relayed].iter().map(PollFd::revents).collect();
        if fds[relayed..].iter().any(|fd| !fd.revents().is_empty())
            && let Some(hears) = &notify
            && hears.hears_ready()?
        {
            // For the manager this process is the service: it stays as long as the container.
            if let Err(error) = hears.tell(std::process::id()) {
                tracing::warn!("{error:#}");
            }
            notify = None;
        }
        while let Some(signal) = signals.0.read_signal().context("read signals")? {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => {}
                // What the terminal's driver tells a process that reads in the background.
                Ok(Signal::SIGTTIN | Signal::SIGTTOU) => {}
                Ok(Signal::SIGWINCH) if relay.is_some() => {
                    relay.iter().for_each(Relay::resize);
                }
                // It may have ended at this very moment.
                _ => drop(launched.signal(signal.ssi_signo as i32)),
            }
        }
        if let Some(relay) = &mut relay {
            relay.carry(&ready)?;
        }
        // Signals of one kind are told once: look for every child each time.
        status = collect(launched.pid)?;
    }
    if let Some(relay) = &mut relay {
        relay.drain()?;
    }
    let code = status.map_or(0, |status| {
        let signal = status.terminating_signal().unwrap_or(0);
        status.exit_status().unwrap_or(128 + signal)
    });
    Ok(ExitCode::from(code as u8))
}

/// Collects children that have ended: the process `pid`, whose status this gives, and those that
/// the container has left to us.
fn collect(pid: u32) -> Result<Option<WaitStatus>> {
    let mut found = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((child, status))) if child.as_raw_pid() as u32 == pid => found = Some(status),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(found),
            Err(Errno::CHILD) if found.is_some() => return Ok(found),
            Err(error) => return Err(error).context("collect the process"),
        }
    }
}
