//! The container's first process, from its birth to the user's command.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::State;
use rustix::fs::Mode;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{setsid, umask};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::Io;
use super::finish::{self, Prepared};
use super::message::{Channel, Failure, FailureKind, Message, Stage, Step};
use crate::container::LaunchOptions;
use crate::hooks::{self, Side};
use crate::mounts::{self, Sources};
use crate::namespaces::{self, Joined, open_proc, write_at};
use crate::plan::{IdMapping, NamespaceKind, Plan};
use crate::rootfs::{self, Root};
use crate::tty::Terminal;
use crate::{devices, network, sys};

/// What the process inherits.
pub(super) struct Inherited<'a> {
    pub plan: &'a Plan,
    pub joined: &'a Joined,
    pub sources: &'a Sources,
    pub channel: Channel,
    /// Where `Start` comes in.
    pub listener: OwnedFd,
    pub io: &'a Io,
    pub options: LaunchOptions,
    /// The state for hooks; the process fills in its own id.
    pub state: State,
    /// Whether the process waits until it is in its cgroup and known to the caller.
    pub waits: bool,
    /// Whether the caller is not root.
    pub rootless: bool,
    /// Whether a helper has joined the namespaces that are to be joined.
    pub joined_already: bool,
}

/// The life of the process. Returns the exit code for a failure, which has been reported.
pub(super) fn run(inherited: Inherited<'_>) -> i32 {
    let (failure, channel) = match prepare(&inherited) {
        Ok(prepared) => match wait_for_start(&inherited) {
            Ok(channel) => match start(&inherited, prepared, &channel) {
                Err(failure) => (failure, channel),
            },
            Err(failure) => (failure, inherited.channel),
        },
        Err(failure) => (failure, inherited.channel),
    };
    report(&channel, failure)
}

/// Tells the caller why the process gives up, and gives the exit code.
pub(super) fn report(channel: &Channel, failure: Failure) -> i32 {
    let code = match failure.kind {
        FailureKind::CommandNotFound => 127,
        FailureKind::CommandNotExecutable => 126,
        FailureKind::Step => 1,
    };
    // Without a caller there is nobody to tell.
    let _ = channel.send(&Message::Failed(failure), None);
    code
}

fn prepare(inherited: &Inherited<'_>) -> Step<Prepared> {
    let Inherited { plan, channel, .. } = inherited;
    sys::reset_signals();
    // The memory is a copy of the caller's: no process of the container may look into it. Nor may
    // then a caller who is not root map ids or set priorities from outside.
    if !inherited.rootless {
        sys::set_dumpable(false).stage(|| "close the memory to the container")?;
    }
    if inherited.waits {
        expect_placed(channel)?;
    }
    let proc = open_proc().stage(|| "open /proc")?;

    if !inherited.joined_already {
        inherited
            .joined
            .enter(&[NamespaceKind::Pid, NamespaceKind::User])?;
    }
    if plan.namespaces.makes(NamespaceKind::User) {
        expect(channel, "the ids to be mapped", |message| {
            matches!(message, Message::Mapped)
        })?;
    }
    if inherited.rootless {
        finish::set_priorities(&plan.process, proc.as_fd(), 0, true)?;
        sys::set_dumpable(false).stage(|| "close the memory to the container")?;
    }
    setsid().stage(|| "make a session")?;
    if !inherited.options.keep_keyring {
        sys::new_session_keyring().stage(|| "make a session keyring")?;
    }
    finish::connect(inherited.io)?;
    finish::set_own_attributes(&plan.process)?;
    if plan.namespaces.makes(NamespaceKind::Network) {
        network::raise_loopback().stage(|| "switch the loopback on")?;
    }
    namespaces::make_late(&plan.namespaces, proc.as_fd())?;

    umask(Mode::empty());
    let root = Root::prepare(plan)?;
    if plan.namespaces.has_user() {
        become_root(&plan.namespaces.uid_mappings)?;
    }
    mounts::make(plan, &root, inherited.sources)?;
    devices::make(plan, &root)?;
    run_early_hooks(inherited)?;
    devices::protect(plan, &root)?;
    devices::mask(plan, &root)?;
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).stage(|| format!("set host name {name}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .stage(|| format!("set domain name {name}"))?;
    }
    for (path, value) in &plan.sysctls {
        let file = format!("sys/{}", path.display());
        write_at(proc.as_fd(), &file, value)
            .stage(|| format!("set sysctl {} to {value:?}", path.display()))?;
    }
    root.make_directory(&plan.process.cwd)
        .stage(|| format!("make the directory {}", plan.process.cwd.display()))?;

    if plan.namespaces.is_private(NamespaceKind::Mount) {
        root.enter(inherited.options.no_pivot)?;
    } else {
        root.change_to()?;
    }
    devices::replace_null(plan, &root)?;
    if let Io::Terminal { size } = inherited.io {
        let terminal = Terminal::open(plan.process.uid, size.or(plan.process.console_size))?;
        terminal.mount_console(&root)?;
        hand_over(&terminal, channel)?;
    }
    mounts::finish_readonly(plan, &root)?;
    if let Some((propagation, recursive)) = plan.root_propagation {
        rootfs::set_root_propagation(propagation, recursive)
            .stage(|| "set the propagation of the root")?;
    }
    if plan.readonly_root {
        rootfs::make_root_readonly().stage(|| "make the root read-only")?;
    }
    finish::set_labels(&plan.process, proc.as_fd())?;
    drop((proc, root));
    finish::let_go_of_the_host(
        inherited.options.preserve_fds,
        &[channel.as_fd(), inherited.listener.as_fd()],
    )?;
    let prepared = finish::become_user(&plan.process, plan.seccomp.clone(), channel)?;
    channel
        .send(&Message::Ready, None)
        .stage(|| "report to the caller")?;
    Ok(prepared)
}

/// Takes the terminal and sends its master to the caller.
pub(super) fn hand_over(terminal: &Terminal, channel: &Channel) -> Step<()> {
    terminal.take()?;
    channel
        .send(&Message::Terminal, Some(terminal.master.as_fd()))
        .stage(|| "hand the terminal to the caller")
}

/// Those hooks that run when the mounts are made and the root is not yet entered: the caller's
/// first, for which it has the network devices moved, then the ones that run in the container's namespaces.
fn run_early_hooks(inherited: &Inherited<'_>) -> Step<()> {
    let hooks = &inherited.plan.hooks;
    if hooks.prestart().is_some()
        || hooks.create_runtime().is_some()
        || !inherited.plan.net_devices.is_empty()
    {
        inherited
            .channel
            .send(&Message::MountsReady, None)
            .stage(|| "report to the caller")?;
        expect(&inherited.channel, "the hooks to run", |message| {
            matches!(message, Message::HooksDone)
        })?;
    }
    hooks::run(
        "createContainer",
        hooks.create_container(),
        &state(inherited),
        Side::Container,
    )
    .stage(|| "run the hooks")
}

/// The state with the process's id as its hooks see it.
fn state(inherited: &Inherited<'_>) -> State {
    let mut state = inherited.state.clone();
    state.set_pid(Some(std::process::id() as i32));
    state
}

/// Waits until the caller has put the process into its cgroup.
pub(super) fn expect_placed(channel: &Channel) -> Step<()> {
    expect(channel, "the place in the cgroup", |message| {
        matches!(message, Message::Placed)
    })
}

fn expect(channel: &Channel, what: &str, is_it: impl Fn(&Message) -> bool) -> Step<()> {
    match channel.receive() {
        Ok(Some((message, _))) if is_it(&message) => Ok(()),
        Ok(Some((message, _))) => Err(format!("got {message:?} instead")),
        Ok(None) => Err("the caller has gone".to_owned()),
        Err(error) => Err(error.to_string()),
    }
    .stage(|| format!("wait for {what}"))
}

/// Becomes root of the user namespace, so that what is made in the root file system belongs to it.
fn become_root(uids: &[IdMapping]) -> Step<()> {
    let mapped = |maps: &[IdMapping]| maps.is_empty() || maps.iter().any(|map| map.inside == 0);
    if !mapped(uids) {
        return Ok(());
    }
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    // Supplementary groups of the caller mean nothing inside.
    let _ = set_thread_groups(&[]);
    set_thread_res_gid(gid, gid, gid)
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .stage(|| "become root of the user namespace")
}

fn wait_for_start(inherited: &Inherited<'_>) -> Step<Channel> {
    // Other containers may be in its pid namespace by now, whose orphans become its children.
    sys::collect_children(true);
    let connection =
        rustix::io::retry_on_intr(|| accept_with(&inherited.listener, SocketFlags::CLOEXEC))
            .stage(|| "wait for start")?;
    sys::collect_children(false);
    let channel = Channel::from(connection);
    match expect(&channel, "start", |message| {
        matches!(message, Message::Start)
    }) {
        Ok(()) => Ok(channel),
        Err(failure) => Err(failure),
    }
}

fn start(inherited: &Inherited<'_>, prepared: Prepared, channel: &Channel) -> Step<Infallible> {
    let mut state = state(inherited);
    state.set_status(oci_spec::runtime::ContainerState::Created);
    hooks::run(
        "startContainer",
        inherited.plan.hooks.start_container(),
        &state,
        Side::Container,
    )
    .stage(|| "run the hooks")?;
    prepared.execute(&inherited.plan.process, channel)
}
