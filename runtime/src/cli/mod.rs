//! The command line: what all verbs share, and the way to each. Flags, outputs and exit codes are
//! those of runc 1.3, so that what drives runc can drive joey.

mod bundle;
mod checkpoint;
mod console;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod flags;
mod foreground;
mod kill;
mod list;
mod log;
mod notify;
mod own_program;
mod pause;
mod pid_file;
mod ps;
mod relay;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod streams;
mod update;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use runtime::{CgroupDriver, Container, is_root_of_the_host};

/// Where containers are remembered when nothing else is said. Not below the shim's directory.
const STATE_DIR: &str = "/run/joey-oci";

/// In the form in which runc tells its own, which callers take apart.
const VERSION: &str = concat!(
    "version ",
    env!("CARGO_PKG_VERSION"),
    "\nspec: ",
    features::spec_version!()
);

/// Runs containers from OCI bundles, with the command line of runc.
#[derive(Debug, Parser)]
#[command(
    name = "joey",
    version = VERSION,
    disable_version_flag = true,
    args_override_self = true
)]
struct CommandLine {
    #[command(flatten)]
    global: Global,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    verb: Verb,
}

/// Options before the verb.
#[derive(Debug, Args)]
struct Global {
    /// Log more
    #[arg(long)]
    debug: bool,
    /// File to append messages to (default: standard error)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of messages
    #[arg(long, value_name = "FORM", default_value = "text")]
    log_format: log::Format,
    /// Directory of the containers' state, best in memory (default: /run/joey-oci)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Have systemd make the cgroups; cgroupsPath is then slice:prefix:name
    #[arg(long)]
    systemd_cgroup: bool,
    /// Do without cgroups where the caller may not make any
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    rootless: Rootless,
    #[arg(long, hide = true)]
    criu: Option<String>,
    /// How many descriptors from 3 on the caller has left open for the container.
    #[arg(skip)]
    inherited: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rootless {
    True,
    False,
    Auto,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a container whose command waits to be started
    Create(create::Create),
    /// Run the command of a created container
    Start(start::Start),
    /// Make and start a container, and wait for its end
    Run(run::Run),
    /// Run a command in a container
    Exec(exec::Exec),
    /// Send a signal to a container's first process
    Kill(kill::Kill),
    /// Remove a container
    Delete(delete::Delete),
    /// Print a container's state
    State(state::State),
    /// Print all containers
    List(list::List),
    /// Print the processes of a container
    Ps(ps::Ps),
    /// Freeze all processes of a container
    Pause(pause::Pause),
    /// Let the processes of a paused container go on
    Resume(pause::Resume),
    /// Change the limits of a container
    Update(update::Update),
    /// Print what a container uses, and when it runs out of memory
    Events(events::Events),
    /// Save a running container with criu
    Checkpoint(checkpoint::Checkpoint),
    /// Make a container from what checkpoint has saved
    Restore(restore::Restore),
    /// Write a spec to start from
    Spec(spec::Spec),
    /// Print what this program can do
    Features(features::Features),
}

impl CommandLine {
    fn read() -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let args = flags::plain(&command, std::env::args_os());
        let mut matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }
}

/// The program's life.
pub(crate) fn main() -> ExitCode {
    // Before anything is opened here.
    let inherited = streams::inherited();
    let line = match CommandLine::read() {
        Ok(line) => line,
        Err(answer) => {
            // Nothing is left to do for a closed output.
            let _ = answer.print();
            return match answer.kind() {
                ErrorKind::InvalidSubcommand => ExitCode::from(3),
                _ => ExitCode::from(u8::from(answer.use_stderr())),
            };
        }
    };
    let CommandLine {
        mut global, verb, ..
    } = line;
    global.inherited = inherited;
    if let Err(error) = log::begin(&global) {
        eprintln!("joey: {error:#}");
        return ExitCode::FAILURE;
    }
    let exec = matches!(verb, Verb::Exec(_));
    match run(&global, verb) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            if global.log.is_some() {
                eprintln!("joey: {error:#}");
            }
            // A command's own codes end where a shell would say that it could not be run.
            ExitCode::from(if exec { 255 } else { 1 })
        }
    }
}

fn run(global: &Global, verb: Verb) -> Result<ExitCode> {
    if matches!(verb, Verb::Create(_) | Verb::Run(_) | Verb::Exec(_)) {
        own_program::protect().context("protect this program from its containers")?;
    }
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match verb {
        Verb::Create(create) => done(create.run(global)),
        Verb::Start(start) => done(start.run(global)),
        Verb::Run(run) => run.run(global),
        Verb::Exec(exec) => exec.run(global),
        Verb::Kill(kill) => done(kill.run(global)),
        Verb::Delete(delete) => done(delete.run(global)),
        Verb::State(state) => done(state.run(global)),
        Verb::List(list) => done(list.run(global)),
        Verb::Ps(ps) => done(ps.run(global)),
        Verb::Pause(pause) => done(pause.run(global)),
        Verb::Resume(resume) => done(resume.run(global)),
        Verb::Update(update) => done(update.run(global)),
        Verb::Events(events) => done(events.run(global)),
        Verb::Checkpoint(checkpoint) => done(checkpoint.run(global)),
        Verb::Restore(restore) => restore.run(global),
        Verb::Spec(spec) => done(spec.run()),
        Verb::Features(features) => done(features.run()),
    }
}

impl Global {
    /// Where containers are remembered.
    fn state_dir(&self) -> PathBuf {
        let own = || {
            let root = rustix::process::geteuid().is_root();
            // Root of a system in a container has such a directory too, and does not mean it.
            let system = || std::env::var_os("USER").is_some_and(|user| user == "root");
            let is_users = !root || !(is_root_of_the_host() || system());
            std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| is_users && !dir.is_empty())
        };
        match &self.root {
            Some(root) => root.clone(),
            None => own().map_or(STATE_DIR.into(), |dir| PathBuf::from(dir).join("joey-oci")),
        }
    }

    /// A container that is there.
    fn container(&self, id: &str) -> Result<Container> {
        Ok(Container::load(&self.state_dir(), id)?)
    }

    /// Whether a container may do without a cgroup.
    fn cgroup_optional(&self) -> bool {
        match self.rootless {
            Rootless::True => true,
            Rootless::False => false,
            Rootless::Auto => !is_root_of_the_host(),
        }
    }

    /// Who makes cgroups.
    fn cgroup_driver(&self) -> CgroupDriver {
        match (self.systemd_cgroup, rustix::process::geteuid().is_root()) {
            (false, _) => CgroupDriver::Cgroupfs,
            (true, true) => CgroupDriver::Systemd,
            (true, false) => CgroupDriver::SystemdUser,
        }
    }
}
