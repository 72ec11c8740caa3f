//! `restore`: a container that `checkpoint` has saved.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use runtime::{Container, CreateOptions, LaunchOptions, RestoreOptions};

use super::Global;
use super::bundle::BundleDir;
use super::checkpoint::{CriuArgs, make_directory};
use super::create::Created;
use super::foreground;
use super::notify;
use super::streams::StreamArgs;

#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    criu: CriuArgs,
    #[command(flatten)]
    bundle: BundleDir,
    /// Unix socket that is sent the master side of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File to write the process's id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Leave the container running and return
    #[arg(short, long)]
    detach: bool,
    /// Do not collect processes that the container leaves behind
    #[arg(long)]
    no_subreaper: bool,
    #[arg(long, hide = true)]
    no_pivot: bool,
    /// Profile of a security module instead of the saved one
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    /// Context of mounts instead of the saved one
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Restore {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        ensure!(
            !self.no_pivot,
            "--no-pivot is not supported: criu enters the root its own way"
        );
        let (bundle, spec) = self.bundle.load()?;
        let common = self.criu.options()?;
        if let Some(work) = &common.work {
            make_directory(work)?;
        }
        let streams = StreamArgs::of(self.console_socket, self.pid_file);
        let streams = streams.open(spec.process().as_ref(), self.detach, 0, global.inherited)?;
        let signals = foreground::Signals::of_foreground(self.detach, !self.no_subreaper)?;
        let made = Container::restore(RestoreOptions {
            create: CreateOptions {
                id: self.id,
                bundle,
                spec,
                state_dir: global.state_dir(),
                io: streams.io()?,
                cgroup: global.cgroup_driver(),
                launch: LaunchOptions {
                    notify: notify::is_wanted(),
                    ..LaunchOptions::default()
                },
            },
            common,
            lsm_profile: self.lsm_profile,
            lsm_mount_context: self.lsm_mount_context,
        })?;
        let Created {
            mut container,
            launched,
            relay,
        } = Created::hand_over(made, streams)?;
        let Some(signals) = signals else {
            return Ok(ExitCode::SUCCESS);
        };
        let ended = foreground::wait(&launched, relay, signals, None);
        container.delete(true)?;
        ended
    }
}
