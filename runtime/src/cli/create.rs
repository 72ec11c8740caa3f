//! `create`, and what it has in common with `run`.

use anyhow::Result;
use clap::Args;
use oci_spec::runtime::Spec;
use runtime::{Container, CreateOptions, LaunchOptions, Launched};

use super::Global;
use super::bundle::BundleDir;
use super::notify;
use super::relay::Relay;
use super::streams::{StreamArgs, Streams, listen_fds};

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    new: NewContainer,
}

impl Create {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        self.new.create(global, true)?;
        Ok(())
    }
}

/// How a container is made.
#[derive(Debug, Args)]
pub(super) struct NewContainer {
    #[command(flatten)]
    bundle: BundleDir,
    #[command(flatten)]
    streams: StreamArgs,
    /// Mount the root over the old one instead of exchanging them (for a root in an initramfs)
    #[arg(long)]
    no_pivot: bool,
    /// Stay in the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

/// A container that has been made.
pub(super) struct Created {
    pub container: Container,
    pub launched: Launched,
    pub relay: Option<Relay>,
}

impl NewContainer {
    /// Makes the container and hands over what the caller has asked for.
    pub(super) fn create(self, global: &Global, detach: bool) -> Result<Created> {
        let (bundle, mut spec) = self.bundle.load()?;
        let sockets = listen_fds();
        pass_sockets(&mut spec, sockets);
        let process = spec.process().as_ref();
        let streams = self
            .streams
            .open(process, detach, sockets, global.inherited)?;
        // Reading the arguments and the spec has taken more than is needed from here on.
        runtime::trim_heap();
        let made = Container::create(CreateOptions {
            id: self.id,
            bundle,
            spec,
            state_dir: global.state_dir(),
            io: streams.io()?,
            cgroup: global.cgroup_driver(),
            launch: LaunchOptions {
                preserve_fds: streams.preserve_fds(),
                no_pivot: self.no_pivot,
                keep_keyring: self.no_new_keyring,
                cgroup_optional: global.cgroup_optional(),
                notify: notify::is_wanted(),
            },
        })?;
        Created::hand_over(made, streams)
    }
}

impl Created {
    /// Hands over what the caller has asked for. A container that cannot be is taken back.
    pub(super) fn hand_over(
        (mut container, mut launched): (Container, Launched),
        streams: Streams,
    ) -> Result<Self> {
        match streams.hand_over(&mut launched) {
            Ok(relay) => Ok(Self {
                container,
                launched,
                relay,
            }),
            Err(error) => {
                take_back(&mut container);
                Err(error)
            }
        }
    }
}

/// Deletes a container whose caller gets an error instead of it.
pub(super) fn take_back(container: &mut Container) {
    if let Err(left) = container.delete(true) {
        tracing::warn!("{left}");
    }
}

/// Tells the command about sockets that the service manager hands over. Its id is that of the first
/// process of a pid namespace, as other engines say.
fn pass_sockets(spec: &mut Spec, sockets: u32) {
    if sockets == 0 {
        return;
    }
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("LISTEN_FDS={sockets}"));
        env.push("LISTEN_PID=1".to_owned());
        process.set_env(Some(env));
    }
}
