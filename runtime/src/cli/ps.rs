//! `ps`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::Global;
use super::list::Format;

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// The form of the list
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
    /// Options for ps (default: -ef)
    #[arg(
        value_name = "OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<String>,
}

impl Ps {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let pids = global.container(&self.id)?.pids()?;
        match self.format {
            Format::Json => println!("{}", serde_json::to_string(&pids)?),
            Format::Table => print!("{}", own_lines(&table(&self.options)?, &pids)?),
        }
        Ok(())
    }
}

/// What `ps` says about all processes.
fn table(options: &[String]) -> Result<String> {
    let mut command = Command::new("ps");
    match options {
        [] => command.arg("-ef"),
        options => command.args(options),
    };
    let output = command.output().context("run ps")?;
    ensure!(
        output.status.success(),
        "ps: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The heading and the lines of the container's processes.
fn own_lines(table: &str, pids: &[u32]) -> Result<String> {
    let mut lines = table.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading
        .split_whitespace()
        .position(|name| name == "PID")
        .context("ps prints no column PID; choose it with -o")?;
    let own = lines.filter(|line| {
        line.split_whitespace()
            .nth(column)
            .and_then(|field| field.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    });
    Ok([heading]
        .into_iter()
        .chain(own)
        .fold(String::with_capacity(table.len()), |text, line| {
            text + line + "\n"
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_own_lines_stay() {
        let table = "UID   PID  CMD\nroot    1  init\nroot   17  sleep 1\n";
        assert_eq!(
            own_lines(table, &[17]).unwrap(),
            "UID   PID  CMD\nroot   17  sleep 1\n"
        );
        assert!(own_lines("CMD\nsleep\n", &[1]).is_err());
    }
}
