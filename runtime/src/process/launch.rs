//! The caller's side of making a process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::State;
use rustix::process::{Pid, WaitIdStatus, prlimit};

use super::finish::{limit_stage, set_priorities};
use super::message::{Channel, Failure, Message, Stage, Step};
use super::{Io, Launched, end, init, join, open, reap};
use crate::cgroup::{Cgroup, CgroupError};
use crate::container::{ExecOptions, LaunchOptions};
use crate::error::{CreateError, ExecError};
use crate::hooks;
use crate::mounts::{Shown, Sources};
use crate::namespaces::{
    ChildrenIn, Joined, birth_flags, is_root_of_the_host, is_rootless, open_proc, write_mappings,
};
use crate::network::Devices;
use crate::plan::{NamespaceKind, Plan, ProcessPlan};
use crate::rootfs::Root;
use crate::seccomp::{Filter, Listener};
use crate::sys::{self, NewProcess};

/// What fails when a container's first process cannot be made.
const MAKE_FIRST: &str = "make the container's process (clone3)";

/// What fails when another one cannot be made.
const MAKE_ANOTHER: &str = "make a process in the container (clone3)";

/// A process that does not outlive its set-up unless that succeeds.
#[derive(Debug)]
struct Child {
    pid: u32,
    pidfd: Option<OwnedFd>,
}

impl Child {
    fn new((pid, pidfd): (u32, OwnedFd)) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
        }
    }

    /// Collects it and tells how it ended.
    fn end(&mut self) -> String {
        let Some(pidfd) = self.pidfd.take() else {
            return "it was collected already".to_owned();
        };
        match reap(pidfd.as_fd()) {
            Ok(Some(status)) => describe(&status),
            Ok(None) => "it is still there".to_owned(),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                "somebody else has collected it".to_owned()
            }
            Err(error) => error.to_string(),
        }
    }

    /// Gives the descriptor of its filter to the agent.
    fn hand_over(
        &self,
        listener: Option<&Listener>,
        fd: i32,
        state: &State,
        channel: &Channel,
    ) -> Step<()> {
        let (Some(listener), Some(pidfd)) = (listener, &self.pidfd) else {
            return Err("there is no agent for it").stage(|| "hand over the seccomp filter");
        };
        listener.hand_over(fd, (self.pid, pidfd.as_fd()), state, channel)
    }

    /// Leaves it alone from now on.
    fn release(mut self, terminal: Option<OwnedFd>) -> Option<Launched> {
        Some(Launched {
            pid: self.pid,
            pidfd: self.pidfd.take()?,
            terminal,
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            end(pidfd.as_fd());
        }
    }
}

fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".to_owned(),
    }
}

fn gone() -> io::Error {
    io::Error::from(io::ErrorKind::UnexpectedEof)
}

/// Makes the container's first process, sets everything up around it and returns when it waits for
/// its start on `listener`.
pub(crate) fn create(
    plan: &Plan,
    cgroup: Option<&mut Cgroup>,
    shown: Shown,
    listener: OwnedFd,
    io: Io,
    options: LaunchOptions,
    mut state: State,
) -> Result<Launched, CreateError> {
    let system = |what| move |source| CreateError::System { what, source };
    let joined = Joined::open(&plan.namespaces)?;
    let sources = Sources::open(plan, shown)?;
    let (channel, theirs) = Channel::pair().map_err(system("make a socket"))?;
    // Rights over namespaces of the host end where a user namespace begins: then a helper joins
    // what is to be joined, and the real process is born from it.
    let with_helper = plan.namespaces.has_user() && !plan.namespaces.join.is_empty();
    let birthplace = cgroup.as_deref().and_then(Cgroup::birthplace);
    let inherited = init::Inherited {
        plan,
        joined: &joined,
        sources: &sources,
        channel: theirs,
        listener,
        io: &io,
        options,
        state: state.clone(),
        waits: waits_for_place(cgroup.as_deref(), with_helper),
        rootless: is_rootless(),
        joined_already: with_helper,
    };
    let how = NewProcess {
        namespaces: birth_flags(&plan.namespaces),
        cgroup: birthplace,
        sibling: false,
    };
    let mut child = if with_helper {
        let helper = sys::spawn(NewProcess::default(), || {
            sys::close_inherited(channel.as_fd());
            let theirs = inherited.channel.as_fd().try_clone_to_owned();
            help(
                how,
                theirs,
                MAKE_FIRST,
                || enter_joined(inherited),
                init::run,
            )
        });
        Child::new(helper.map_err(system("make a helper process"))?)
    } else {
        let _inside = joined
            .get(NamespaceKind::Pid)
            .map(ChildrenIn::enter)
            .transpose()
            .map_err(system("join the pid namespace"))?;
        let first = sys::spawn(how, || {
            // Or it would never see the end of a caller that is killed.
            sys::close_inherited(channel.as_fd());
            init::run(inherited)
        });
        Child::new(first.map_err(system(MAKE_FIRST))?)
    };
    // What only the process needs goes now, or the end of its streams would not be seen.
    drop(io);

    if with_helper {
        let system = |what, source| CreateError::System { what, source };
        child = real_process(&channel, child, CreateError::Died, system)?;
    }
    let waits = waits_for_place(cgroup.as_deref(), with_helper);
    let unborn = cgroup
        .as_deref()
        .filter(|cgroup| cgroup.birthplace().is_none());
    put_in(unborn, waits, &child, &channel)?;
    if let Some(cgroup) = cgroup {
        cgroup.inhabited();
    }
    if plan.namespaces.makes(NamespaceKind::User) {
        write_mappings(child.pid, &plan.namespaces)
            .stage(|| "map the ids of the user namespace")?;
        channel
            .send(&Message::Mapped, None)
            .map_err(system("talk to the container's process"))?;
    }
    state.set_pid(Some(child.pid as i32));
    let shares = plan.shares.as_ref().map(|group| group.enter(child.pid));
    let shares = shares
        .transpose()
        .stage(|| "set the shares of caches and memory bandwidth (resctrl)")?;
    let mut devices = None;
    let terminal = follow(plan, &channel, &mut child, &state, &mut devices)?;
    set_limits(plan, child.pid)?;
    if let Some(devices) = devices {
        devices.keep();
    }
    if let Some(shares) = shares {
        shares.keep();
    }
    child
        .release(terminal)
        .ok_or_else(gone)
        .map_err(system("keep the container's process"))
}

/// Whether a process waits for its maker before it does anything: to be put into a cgroup that it
/// was not born in, or, born of a helper, to be known.
fn waits_for_place(cgroup: Option<&Cgroup>, with_helper: bool) -> bool {
    with_helper || cgroup.is_some_and(|cgroup| cgroup.birthplace().is_none())
}

/// Puts a process into the cgroup that it was not born in, and tells it if it waits for that.
fn put_in(
    cgroup: Option<&Cgroup>,
    waits: bool,
    child: &Child,
    channel: &Channel,
) -> Result<(), CgroupError> {
    if let Some(cgroup) = cgroup {
        cgroup.add(child.pid)?;
    }
    if waits {
        // Whether it has ended already is told by what comes from it, or does not.
        let _ = channel.send(&Message::Placed, None);
    }
    Ok(())
}

/// A helper's life: enters what the real process is to be in, makes that as a child of the caller,
/// tells and ends. `enter` gives what the process, which `run` is, inherits; `what` names its making.
fn help<I>(
    how: NewProcess<'_>,
    channel: io::Result<OwnedFd>,
    what: &'static str,
    enter: impl FnOnce() -> Step<I>,
    run: impl FnOnce(I) -> i32,
) -> i32 {
    let Ok(channel) = channel.map(Channel::from) else {
        return 1;
    };
    let make = || {
        let inherited = enter()?;
        let how = NewProcess {
            sibling: true,
            ..how
        };
        let (pid, _) = sys::spawn(how, || run(inherited)).stage(|| what)?;
        channel
            .send(&Message::Forked { pid }, None)
            .stage(|| "report to the caller")
    };
    match make() {
        Ok(()) => 0,
        Err(failure) => init::report(&channel, failure),
    }
}

/// Joins the namespaces that the container's first process is to be in.
fn enter_joined(inherited: init::Inherited<'_>) -> Step<init::Inherited<'_>> {
    sys::set_dumpable(false).stage(|| "close the memory to the container")?;
    inherited.joined.enter(&[])?;
    Ok(inherited)
}

/// Joins the namespaces of a container in whose user namespace alone the caller has rights.
fn enter_container<'a>(
    place: &Place<'_>,
    inherited: join::Inherited<'a>,
) -> Step<join::Inherited<'a>> {
    let proc = open_proc().stage(|| "open /proc")?;
    set_priorities(inherited.process, proc.as_fd(), 0, true)?;
    sys::set_dumpable(false).stage(|| "close the memory to the container")?;
    let pid = if place.pid { libc::CLONE_NEWPID } else { 0 } as u64;
    let user = libc::CLONE_NEWUSER as u64;
    sys::set_namespace(place.first, place.namespaces | pid | user)
        .stage(|| "join the container's namespaces")?;
    Ok(join::Inherited {
        host: Some(proc),
        ..inherited
    })
}

/// Waits for the helper to make the real process, and collects the helper.
fn real_process<E: From<Failure>>(
    channel: &Channel,
    mut helper: Child,
    died: fn(String) -> E,
    system: fn(&'static str, io::Error) -> E,
) -> Result<Child, E> {
    let received = channel
        .receive()
        .map_err(|source| system("talk to the helper process", source))?;
    let pid = match received {
        Some((Message::Forked { pid }, _)) => pid,
        Some((Message::Failed(failure), _)) => return Err(failure.into()),
        Some((message, _)) => return Err(died(format!("it sent {message:?}"))),
        None => return Err(died(helper.end())),
    };
    // It is a child of this process and not collected, so its id cannot be another's.
    let pidfd = open(pid).map_err(|error| system("open the new process", error))?;
    let child = Child::new((pid, pidfd));
    helper.end();
    Ok(child)
}

/// Follows the first process until it is ready, moving network devices and running the caller's
/// hooks on the way. Returns the master of its terminal.
fn follow(
    plan: &Plan,
    channel: &Channel,
    child: &mut Child,
    state: &State,
    devices: &mut Option<Devices>,
) -> Result<Option<OwnedFd>, CreateError> {
    let system = |source| CreateError::System {
        what: "talk to the container's process",
        source,
    };
    let mut terminal = None;
    loop {
        match channel.receive().map_err(system)? {
            Some((Message::MountsReady, _)) => {
                if !plan.net_devices.is_empty() {
                    *devices = Some(Devices::take(&plan.net_devices, child.pid)?);
                }
                hooks::run_before_entry(&plan.hooks, state)?;
                channel.send(&Message::HooksDone, None).map_err(system)?;
            }
            Some((Message::Terminal, fd)) => terminal = fd,
            Some((Message::Listener { fd }, _)) => {
                let listener = plan.seccomp.as_ref().and_then(Filter::listener);
                child.hand_over(listener, fd, state, channel)?;
            }
            Some((Message::Ready, _)) => return Ok(terminal),
            Some((Message::Failed(failure), _)) => return Err(failure.into()),
            Some((message, _)) => {
                return Err(CreateError::Died(format!("it sent {message:?}")));
            }
            None => return Err(CreateError::Died(child.end())),
        }
    }
}

/// Sets the limits and priorities of the first process from outside, where a user namespace takes no
/// rights away, and when it no longer opens anything itself.
fn set_limits(plan: &Plan, pid: u32) -> Result<(), Failure> {
    if !is_rootless() {
        let proc = open_proc().stage(|| "open /proc")?;
        set_priorities(&plan.process, proc.as_fd(), pid, false)?;
    }
    for &(resource, limit) in &plan.process.rlimits {
        prlimit(Pid::from_raw(pid as i32), resource, limit)
            .stage(|| limit_stage(resource, limit))?;
    }
    Ok(())
}

/// Where a process is to be added.
pub(crate) struct Place<'a> {
    /// The container's first process.
    pub first: BorrowedFd<'a>,
    /// Flags of its namespaces, without those of users and of process ids.
    pub namespaces: u64,
    /// Whether it has a pid namespace of its own.
    pub pid: bool,
    /// Whether it has a user namespace of its own.
    pub user: bool,
    /// Its root, when it has no mount namespace of its own.
    pub root: Option<Root>,
    /// Its cgroup, if it has one.
    pub cgroup: Option<&'a Cgroup>,
    /// Its state, for an agent that answers system calls.
    pub state: State,
}

/// A process on its way to its command. Dropping it ends the process.
#[derive(Debug)]
pub struct Launching {
    channel: Channel,
    /// `None` when the process was handed out.
    child: Option<Child>,
    terminal: Option<OwnedFd>,
    executing: bool,
    /// Who answers system calls of the process, and what it is told of the container.
    listener: Option<(Listener, State)>,
}

/// Readable when [`Launching::advance`] has something to do.
impl AsFd for Launching {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Launching {
    /// The process's id, as the caller sees it.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.pid)
    }

    /// Follows the process as far as it has come, without waiting for it. `None`: it is not there
    /// yet. The process is subject to its container's limits and signals, so that may take any
    /// time.
    ///
    /// # Errors
    /// [`ExecError`]; nothing is left behind then.
    pub fn advance(&mut self) -> Result<Option<Launched>, ExecError> {
        let system = |what| move |source| ExecError::System { what, source };
        loop {
            let received = match self.channel.receive_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                other => other.map_err(system("talk to the new process"))?,
            };
            match received {
                Some((Message::Terminal, fd)) => self.terminal = fd,
                Some((Message::Listener { fd }, _)) => {
                    let child = self.child.as_ref().ok_or_else(gone);
                    let child = child.map_err(system("follow the new process"))?;
                    if let Some((listener, state)) = &self.listener {
                        child.hand_over(Some(listener), fd, state, &self.channel)?;
                    }
                }
                Some((Message::Executing, _)) => self.executing = true,
                Some((Message::Failed(failure), _)) => return Err(failure.into()),
                Some((message, _)) => return Err(ExecError::Died(format!("it sent {message:?}"))),
                None => {
                    let mut child = self
                        .child
                        .take()
                        .ok_or_else(gone)
                        .map_err(system("follow the new process"))?;
                    if !self.executing {
                        return Err(ExecError::Died(child.end()));
                    }
                    let launched = child.release(self.terminal.take()).ok_or_else(gone);
                    return launched.map(Some).map_err(system("keep the new process"));
                }
            }
        }
    }

    /// Follows the process until it has become its command.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn finish(mut self) -> Result<Launched, ExecError> {
        loop {
            if let Some(launched) = self.advance()? {
                return Ok(launched);
            }
            self.channel.wait().map_err(|source| ExecError::System {
                what: "wait for the new process",
                source,
            })?;
        }
    }
}

/// Adds a process to a container.
pub(crate) fn exec(
    process: &ProcessPlan,
    filter: Option<Filter>,
    place: &Place<'_>,
    options: ExecOptions,
    other_cgroup: impl FnOnce() -> Option<Cgroup>,
) -> Result<Launching, ExecError> {
    let system = |what| move |source| ExecError::System { what, source };
    // A caller without rights of its own has them in the container's user namespace alone.
    let with_helper = place.user && is_rootless();
    let attempt = |cgroup: Option<&Cgroup>| -> Result<(Channel, Child), ExecError> {
        let (channel, theirs) = Channel::pair().map_err(system("make a socket"))?;
        // What a helper is refused could not be told from its other failures.
        let birthplace = cgroup.and_then(Cgroup::birthplace).filter(|_| !with_helper);
        let unborn = cgroup.filter(|_| birthplace.is_none());
        let waits = unborn.is_some() || with_helper;
        let inherited = join::Inherited {
            process,
            filter: filter.clone(),
            first: place.first,
            namespaces: place.namespaces,
            user: place.user,
            root: place.root.as_ref(),
            waits,
            host: None,
            channel: theirs,
            options: &options,
        };
        let how = NewProcess {
            cgroup: birthplace,
            ..NewProcess::default()
        };
        let child = if with_helper {
            let helper = sys::spawn(NewProcess::default(), || {
                sys::close_inherited(channel.as_fd());
                let theirs = inherited.channel.as_fd().try_clone_to_owned();
                let enter = || enter_container(place, inherited);
                help(how, theirs, MAKE_ANOTHER, enter, join::run)
            });
            let helper = Child::new(helper.map_err(system("make a helper process"))?);
            let system = |what, source| ExecError::System { what, source };
            real_process(&channel, helper, ExecError::Died, system)?
        } else {
            let _inside = place
                .pid
                .then(|| ChildrenIn::enter(place.first))
                .transpose()
                .map_err(system("join the pid namespace"))?;
            let child = sys::spawn(how, || {
                sys::close_inherited(channel.as_fd());
                join::run(inherited)
            });
            Child::new(child.map_err(system(MAKE_ANOTHER))?)
        };
        put_in(unborn, waits, &child, &channel)?;
        Ok((channel, child))
    };
    let refused = |made: &Result<_, ExecError>, kind: io::ErrorKind| match made {
        Err(
            ExecError::System { source, .. } | ExecError::Cgroup(CgroupError::File { source, .. }),
        ) => source.kind() == kind,
        _ => false,
    };
    let mut made = attempt(place.cgroup);
    if refused(&made, io::ErrorKind::ResourceBusy) {
        // A container that manages cgroups itself has moved its processes further down, and a
        // cgroup with children that have controllers takes none: go where the first process is.
        if let Some(cgroup) = other_cgroup() {
            made = attempt(Some(&cgroup));
        }
    }
    let named = options.sub_cgroup.is_some();
    if !named && refused(&made, io::ErrorKind::PermissionDenied) && !is_root_of_the_host() {
        // A user may not move a process here from a part of the tree that is not the user's, such
        // as another login. As in runc it stays there: it ends with the container all the same.
        tracing::warn!("the process is not in the container's cgroup: the caller's is elsewhere");
        made = attempt(None);
    }
    let (channel, child) = made?;
    Ok(Launching {
        channel,
        child: Some(child),
        terminal: None,
        executing: false,
        listener: filter
            .as_ref()
            .and_then(Filter::listener)
            .map(|listener| (listener.clone(), place.state.clone())),
    })
}
