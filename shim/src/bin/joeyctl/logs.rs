//! `joeyctl logs`: what a guest's kernel and agent say, and what is kept of sandboxes
//! that died.

use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};
use shim::config::Config;
use shim::host::dead;

use crate::node;

/// Lists what is kept of the dead.
pub fn list(config: &Config) -> anyhow::Result<()> {
    println!("{:<20} {:<64} FILE", "DIED", "SANDBOX");
    for dead in dead::list(&config.data_dir) {
        let seconds = dead
            .at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |at| at.as_secs());
        println!(
            "{:<20} {:<64} {}",
            utc(seconds),
            dead.id,
            dead.path.display()
        );
    }
    Ok(())
}

/// Prints the log of a sandbox, running or dead.
pub fn show(config: &Config, sandbox: &str) -> anyhow::Result<()> {
    if let Some(record) = node::find(&config.state_dir, sandbox)? {
        let log = node::run(async {
            let shim = node::connect(&record).await?;
            Ok(shim.kernel_log(node::call(), &Default::default()).await?)
        })?;
        print!("{}", log.text);
        return Ok(());
    }
    let kept = dead::list(&config.data_dir);
    let Some(dead) = kept.iter().find(|dead| dead.id.starts_with(sandbox)) else {
        bail!(
            "no sandbox is called {sandbox}, running or dead; `joeyctl ps` and `joeyctl logs` list them"
        );
    };
    let text = std::fs::read_to_string(&dead.path)
        .with_context(|| format!("cannot read {}", dead.path.display()))?;
    print!("{text}");
    Ok(())
}

/// A time as "2026-01-31T23:59:59Z" (days to dates as in the proleptic calendar).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Counted from 1 March of year 0, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + late,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_798_761_599), "2026-12-31T23:59:59Z");
    }
}
