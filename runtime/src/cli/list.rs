//! `list`.

use std::io::ErrorKind;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use runtime::Container;

use super::Global;
use super::state::Description;

#[derive(Debug, Args)]
pub(super) struct List {
    /// The form of the list
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// Print ids alone
    #[arg(short, long)]
    quiet: bool,
}

/// The form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

impl List {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let containers = containers(global)?;
        if self.quiet {
            containers
                .iter()
                .for_each(|container| println!("{}", container.id));
            return Ok(());
        }
        match self.format {
            Format::Json => println!("{}", serde_json::to_string(&containers)?),
            Format::Table => print_table(&containers),
        }
        Ok(())
    }
}

fn containers(global: &Global) -> Result<Vec<Description>> {
    let state_dir = global.state_dir();
    let entries = match std::fs::read_dir(&state_dir) {
        // Nobody has made a container yet.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        other => other.with_context(|| format!("read {}", state_dir.display()))?,
    };
    let mut list = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", state_dir.display()))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let id = entry.file_name().to_string_lossy().into_owned();
        let described = Container::load(&state_dir, &id)
            .map_err(anyhow::Error::from)
            .and_then(|container| Description::new(&container, &state_dir));
        match described {
            Ok(description) => list.push(description),
            // One that is deleted meanwhile, or in a bad state: the others are to be seen.
            Err(error) => eprintln!("joey: container {id}: {error:#}"),
        }
    }
    list.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(list)
}

fn print_table(containers: &[Description]) {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = containers.iter().map(|container| {
        [
            container.id.clone(),
            container.pid.to_string(),
            container.status.clone(),
            container.bundle.display().to_string(),
            container.created.clone(),
            container.owner.clone(),
        ]
    });
    let rows: Vec<_> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        (longest + 3).max(12)
    };
    let widths: Vec<usize> = (0..5).map(width).collect();
    for row in &rows {
        let line: String = widths
            .iter()
            .zip(row)
            .map(|(width, cell)| format!("{cell:<width$}"))
            .collect();
        println!("{line}{}", row[5]);
    }
}
