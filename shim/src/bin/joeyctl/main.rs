//! `joeyctl`: the operator's tool.

mod checks;
mod doctor;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks after pods in microVMs.
#[derive(Parser)]
#[command(name = "joeyctl", version)]
struct Cli {
    /// The configuration to use instead of /etc/joey/config.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks whether this host can run pods in microVMs, and says what to do
    /// where it cannot. Exits with 1 if something fails. Run it as root.
    Doctor,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Doctor => doctor::run(cli.config.as_deref()),
    }
}
