//! `joeyctl`: the operator's tool.

mod bench;
mod checks;
mod console;
mod doctor;
mod logs;
mod metrics;
mod node;
mod ps;
mod reconcile;
mod snapshot;
mod template;
mod waterfall;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use shim::config::Config;

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
    /// Lists the sandboxes of this node.
    Ps {
        /// All that is known, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints what a sandbox's guest kernel and agent have said, or lists what is kept
    /// of sandboxes that died.
    Logs {
        /// The start of its id, or the name of its pod.
        sandbox: Option<String>,
    },
    /// Runs the shell that `debug_shell` names in a sandbox's guest, beside its agent. At
    /// a terminal, Ctrl-] leaves it.
    Console {
        /// The start of its id, or the name of its pod.
        sandbox: String,
        /// What the shell is called with, its name first.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            default_value = "sh"
        )]
        command: Vec<String>,
    },
    /// Prints the metrics of all sandboxes for Prometheus.
    Metrics {
        /// Serves them over HTTP there instead, such as 127.0.0.1:9180.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
    /// Makes, lists and removes what sandboxes start from.
    Template {
        #[command(subcommand)]
        what: template::Template,
    },
    /// Saves a sandbox to disk, which frees its memory, and lets it go on.
    Snapshot {
        #[command(subcommand)]
        what: snapshot::Snapshot,
    },
    /// Starts microVMs by this node's configuration, without containerd, network and
    /// containers, and tells how long the parts of that take. Leaves nothing. Run it as root.
    Bench {
        /// How many, one after the other.
        #[arg(long, default_value_t = 10)]
        runs: u32,
        /// Without a template: each boots.
        #[arg(long)]
        cold: bool,
        /// Starts none, but tells of the sandboxes that run what their shims noted.
        #[arg(long, conflicts_with_all = ["runs", "cold"])]
        running: bool,
        /// All that is known, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Removes what a crash or a reboot left: sandboxes without a shim, unfinished files.
    /// Shims do the same now and then.
    Reconcile {
        /// Only says what there is.
        #[arg(long)]
        dry_run: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Doctor => doctor::run(cli.config.as_deref()),
        other => match run(other, cli.config.as_deref()) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("joeyctl: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(command: Command, config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = config.map_or_else(Config::load, Config::read);
    let config = config.context("`joeyctl doctor` tells more")?;
    match command {
        Command::Doctor => Ok(()),
        Command::Ps { json } => ps::run(&config, json),
        Command::Logs { sandbox: None } => logs::list(&config),
        Command::Logs { sandbox: Some(id) } => logs::show(&config, &id),
        Command::Console { sandbox, command } => return console::run(&config, &sandbox, command),
        Command::Metrics { listen: None } => metrics::print(&config),
        Command::Metrics {
            listen: Some(address),
        } => metrics::serve(&config, address),
        Command::Template { what } => template::run(&config, what),
        Command::Snapshot { what } => snapshot::run(&config, &what),
        Command::Bench {
            running: true,
            json,
            ..
        } => bench::running(&config, json),
        Command::Bench {
            runs, cold, json, ..
        } => bench::run(&config, runs, cold, json),
        Command::Reconcile { dry_run } => reconcile::run(&config, dry_run),
    }
    .map(|()| ExitCode::SUCCESS)
}
