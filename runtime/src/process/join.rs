//! A process that is added to a container.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::setsid;

use super::Io;
use super::finish;
use super::init::{expect_placed, hand_over, report};
use super::message::{Channel, Stage, Step};
use crate::container::ExecOptions;
use crate::namespaces::open_proc;
use crate::plan::ProcessPlan;
use crate::rootfs::Root;
use crate::seccomp::Filter;
use crate::sys;
use crate::tty::Terminal;

/// What the process inherits. It has been born into the container's pid namespace, and mostly into
/// its cgroup.
pub(super) struct Inherited<'a> {
    pub process: &'a ProcessPlan,
    pub filter: Option<Filter>,
    /// The container's first process.
    pub first: BorrowedFd<'a>,
    /// Flags of the namespaces to join, without that of users.
    pub namespaces: u64,
    /// Whether the container has a user namespace to join.
    pub user: bool,
    /// Whether the process waits until it is in its cgroup and known to the caller.
    pub waits: bool,
    /// The host's /proc, when a helper has joined the namespaces and set the priorities.
    pub host: Option<OwnedFd>,
    /// The container's root, when it has no mount namespace that would bring it.
    pub root: Option<&'a Root>,
    pub channel: Channel,
    pub options: &'a ExecOptions,
}

/// The life of the process. Returns the exit code for a failure, which has been reported.
pub(super) fn run(mut inherited: Inherited<'_>) -> i32 {
    match join(&mut inherited) {
        Err(failure) => report(&inherited.channel, failure),
    }
}

fn join(inherited: &mut Inherited<'_>) -> Step<Infallible> {
    let process = inherited.process;
    sys::reset_signals();
    // The memory is a copy of the caller's: no process of the container may look into it.
    sys::set_dumpable(false).stage(|| "close the memory to the container")?;
    if inherited.waits {
        expect_placed(&inherited.channel)?;
    }
    let joined = inherited.host.is_some();
    let proc = match inherited.host.take() {
        Some(proc) => proc,
        None => open_proc().stage(|| "open /proc")?,
    };
    setsid().stage(|| "make a session")?;
    let options = inherited.options;
    if !options.keep_keyring {
        sys::new_session_keyring().stage(|| "make a session keyring")?;
    }
    finish::connect(&options.io)?;
    finish::set_own_attributes(process)?;
    if !joined {
        finish::set_priorities(process, proc.as_fd(), 0, false)?;
    }
    finish::set_labels(process, proc.as_fd())?;
    // From here on nothing is opened by a path of the host, and nothing of the host stays open.
    drop(proc);
    let user = if inherited.user && !joined {
        // A namespace's root may not raise limits.
        finish::set_limits(&process.rlimits)?;
        libc::CLONE_NEWUSER as u64
    } else {
        0
    };
    // All at once, and by the process itself: the kernel looks the namespaces up in it, so that no
    // file of the container is trusted to name them.
    let types = inherited.namespaces | user;
    if types != 0 && !joined {
        sys::set_namespace(inherited.first, types).stage(|| "join the container's namespaces")?;
    }
    if let Some(root) = inherited.root {
        root.change_to()?;
    }
    if let Io::Terminal { size } = options.io {
        let terminal = Terminal::open(process.uid, size.or(process.console_size))?;
        hand_over(&terminal, &inherited.channel)?;
    }
    if joined || !inherited.user {
        finish::set_limits(&process.rlimits)?;
    }
    finish::let_go_of_the_host(options.preserve_fds, &[inherited.channel.as_fd()])?;
    let prepared = finish::become_user(process, inherited.filter.clone(), &inherited.channel)?;
    prepared.execute(process, &inherited.channel)
}
