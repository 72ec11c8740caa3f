//! `exec`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::runtime::{Capabilities, LinuxCapabilitiesBuilder, Process, Spec};
use runtime::ExecOptions;

use super::Global;
use super::foreground;
use super::streams::StreamArgs;

#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    streams: StreamArgs,
    /// File with the process as a spec describes it
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Return when the command runs
    #[arg(short, long)]
    detach: bool,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Environment variable to add
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// User id and group id
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Group id to add
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Let the process gain no privileges
    #[arg(long)]
    no_new_privs: bool,
    /// Capability to add
    #[arg(short, long, value_name = "NAME")]
    cap: Vec<String>,
    /// Cgroup below the container's own to run in
    #[arg(long, value_name = "[CONTROLLER:]PATH")]
    cgroup: Vec<String>,
    /// Add the process to a paused container too
    #[arg(long)]
    ignore_paused: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

impl Exec {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        let container = global.container(&self.id)?;
        let process = match &self.process {
            Some(path) => read(path)?,
            None => self.process(container.spec())?,
        };
        let streams = self
            .streams
            .open(Some(&process), self.detach, 0, global.inherited)?;
        let signals = foreground::Signals::of_foreground(self.detach, false)?;
        let mut launched = container.exec(
            &process,
            ExecOptions {
                io: streams.io()?,
                preserve_fds: streams.preserve_fds(),
                keep_keyring: false,
                sub_cgroup: self.sub_cgroup()?,
                even_paused: self.ignore_paused,
            },
        )?;
        let relay = match streams.hand_over(&mut launched) {
            Ok(relay) => relay,
            Err(error) => {
                // It may have ended by itself.
                let _ = launched.signal(libc::SIGKILL);
                return Err(error);
            }
        };
        match signals {
            Some(signals) => foreground::wait(&launched, relay, signals, None),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// The container's own process with what the options change.
    fn process(&self, spec: &Spec) -> Result<Process> {
        let mut process = spec
            .process()
            .clone()
            .context("the container has no process")?;
        if self.command.is_empty() {
            bail!("no command is given; name one, or a file with --process");
        }
        process.set_args(Some(self.command.clone()));
        process.set_terminal(Some(self.tty));
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        let mut env = process.env().clone().unwrap_or_default();
        // It is for the container's own command.
        env.retain(|variable| variable != runtime::NOTIFY_VARIABLE);
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        self.add_capabilities(&mut process)?;
        self.change_user(&mut process)?;
        Ok(process)
    }

    fn change_user(&self, process: &mut Process) -> Result<()> {
        let id = |text: &str, what: &str| -> Result<u32> {
            text.parse()
                .with_context(|| format!("{what} {text:?} is not a number from 0 to 4294967295"))
        };
        let mut user = process.user().clone();
        if let Some(ids) = &self.user {
            let (uid, gid) = match ids.split_once(':') {
                Some((uid, gid)) => (uid, Some(gid)),
                None => (ids.as_str(), None),
            };
            user.set_uid(id(uid, "user")?);
            if let Some(gid) = gid {
                user.set_gid(id(gid, "group")?);
            }
        }
        if !self.additional_gids.is_empty() {
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            groups.extend(&self.additional_gids);
            user.set_additional_gids(Some(groups));
        }
        process.set_user(user);
        Ok(())
    }

    /// Adds capabilities to the sets that make them count. Ambient ones need to be inheritable, so
    /// they are added only where something is.
    fn add_capabilities(&self, process: &mut Process) -> Result<()> {
        let mut added = Capabilities::new();
        for name in &self.cap {
            let known = name.strip_prefix("CAP_").unwrap_or(name).parse();
            match known {
                Ok(capability) => _ = added.insert(capability),
                // As in a spec.
                Err(_) => tracing::warn!("left out: {name:?} is no capability of Linux"),
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        let old = process.capabilities().clone();
        let with = |set: Option<&Option<Capabilities>>| -> Capabilities {
            let old = set.and_then(Option::as_ref).into_iter().flatten();
            old.chain(&added).copied().collect()
        };
        let old = old.as_ref();
        let inheritable = old.and_then(|old| old.inheritable().clone());
        let ambient = match &inheritable {
            Some(_) => with(old.map(|old| old.ambient())),
            None => old
                .and_then(|old| old.ambient().clone())
                .unwrap_or_default(),
        };
        let sets = LinuxCapabilitiesBuilder::default()
            .bounding(with(old.map(|old| old.bounding())))
            .effective(with(old.map(|old| old.effective())))
            .permitted(with(old.map(|old| old.permitted())))
            .inheritable(inheritable.unwrap_or_default())
            .ambient(ambient)
            .build()?;
        process.set_capabilities(Some(sets));
        Ok(())
    }

    /// The one cgroup that is asked for. A hierarchy of version 2 has no controllers to tell apart.
    fn sub_cgroup(&self) -> Result<Option<PathBuf>> {
        match self.cgroup.as_slice() {
            [] => Ok(None),
            [one] if !one.contains(':') => Ok(Some(one.into())),
            _ => bail!("--cgroup takes one path below the container's cgroup, without controllers"),
        }
    }
}

fn read(path: &PathBuf) -> Result<Process> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    runtime::parse_process(&text).with_context(|| format!("the process in {}", path.display()))
}
