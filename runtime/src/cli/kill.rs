//! `kill`.

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use runtime::KillError;

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Kill {
    /// Send the signal to all processes of the container
    #[arg(short, long)]
    all: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
    /// The signal's name or number
    #[arg(
        value_name = "SIGNAL",
        default_value = "SIGTERM",
        allow_hyphen_values = true
    )]
    signal: String,
}

impl Kill {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = global.container(&self.id)?;
        let signal = number(&self.signal)?;
        if self.all {
            return Ok(container.kill_all(signal)?);
        }
        match container.kill(signal) {
            // The words that callers look for.
            Err(KillError::NotRunning(id)) => bail!("container not running: {id}"),
            other => Ok(other?),
        }
    }
}

/// The number of a signal: 15, TERM or SIGTERM, in any case.
fn number(signal: &str) -> Result<i32> {
    if let Ok(number) = signal.parse() {
        return Ok(number);
    }
    let name = signal.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(number) = real_time(name) {
        return Ok(number);
    }
    format!("SIG{name}")
        .parse::<Signal>()
        .map(|signal| signal as i32)
        .ok()
        .with_context(|| {
            format!("unknown signal {signal:?}; give a name such as TERM, or a number")
        })
}

/// Signals without names of their own: RTMIN+2, RTMAX-1.
fn real_time(name: &str) -> Option<i32> {
    let (base, rest) = [("RTMIN", libc::SIGRTMIN()), ("RTMAX", libc::SIGRTMAX())]
        .into_iter()
        .find_map(|(base, number)| Some((number, name.strip_prefix(base)?)))?;
    let offset: i32 = if rest.is_empty() {
        0
    } else {
        rest.parse().ok()?
    };
    Some(base + offset).filter(|number| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for name in ["15", "TERM", "SIGTERM", "sigterm", "term"] {
            assert_eq!(number(name).unwrap(), libc::SIGTERM, "{name}");
        }
        assert_eq!(number("RTMIN+2").unwrap(), libc::SIGRTMIN() + 2);
        assert_eq!(number("SIGRTMAX-1").unwrap(), libc::SIGRTMAX() - 1);
        for name in ["", "SIG", "HUPS", "RTMAX+1"] {
            assert!(number(name).is_err(), "{name}");
        }
    }
}
