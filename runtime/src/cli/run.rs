//! `run`: `create` and `start` in one, and without `--detach` the wait for the end.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::Global;
use super::create::{Created, NewContainer, take_back};
use super::foreground;
use super::notify::Notify;

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    new: NewContainer,
    /// Leave the container running and return
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container when its command has ended
    #[arg(long)]
    keep: bool,
    /// Do not collect processes that the container leaves behind
    #[arg(long)]
    no_subreaper: bool,
}

impl Run {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let signals = foreground::Signals::of_foreground(self.detach, !self.no_subreaper)?;
        let Created {
            mut container,
            launched,
            relay,
        } = self.new.create(global, self.detach)?;
        let started = Notify::open(&container).and_then(|notify| {
            container.start()?;
            Ok(notify)
        });
        let notify = match started {
            Ok(notify) => notify,
            Err(error) => {
                take_back(&mut container);
                return Err(error);
            }
        };
        let Some(signals) = signals else {
            if let Some(notify) = notify {
                notify.wait(&container);
            }
            return Ok(ExitCode::SUCCESS);
        };
        let ended = foreground::wait(&launched, relay, signals, notify);
        if !self.keep {
            container.delete(true)?;
        }
        ended
    }
}
