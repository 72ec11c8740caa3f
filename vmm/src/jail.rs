//! Locks the process up before the guest's first instruction, in two steps: [`Cell::enter`]
//! takes the host away while the process waits for its VM, [`Cell::lock`] the rights with
//! which the VM was built. The filters of system calls follow, thread by thread, in
//! [`crate::seccomp`].
//!
//! The pid namespace is made by whoever starts the process, which is its first; the others
//! here, so that a process that was started otherwise cannot change the host's.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, getpid, setgroups, sethostname, setresgid, setresuid};

use crate::{landlock, sys};

/// Most open descriptors: connections (4096), images (1024) and the VM's own.
const MAX_FILES: u64 = 5300;

/// What the VMM takes for the host's name.
const HOSTNAME: &str = "joey";

/// Why the process cannot be locked up.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step of it failed.
    #[error("cannot lock the VMM up: {step}: {source}; joey-vmm must be started as root")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It was not started by the client library.
    #[error(
        "cannot lock the VMM up: it is not the first process of a pid namespace: joey-vmm is \
         started by containerd-shim-joey-v2, not by hand"
    )]
    NotFirst,
    /// The host allows no user namespace.
    #[error(
        "cannot lock the VMM up: make a user namespace: {0}; see sysctl user.max_user_namespaces, \
         and `joeyctl doctor`"
    )]
    NoUserNamespace(io::Error),
}

/// Makes the error of a step.
fn failed<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError::Step {
        step,
        source: source.into(),
    }
}

/// A process out of whose reach the host is, but that is still root's.
#[derive(Debug)]
pub struct Cell {
    /// The host's /proc, in which the user namespace is to be described.
    proc: OwnedFd,
}

impl Cell {
    /// Leaves the host's namespaces and root directory. `network` is a network namespace to
    /// join instead of making one. Call it while there is one thread: what it changes belongs
    /// to threads and is inherited by those made later.
    ///
    /// A cgroup namespace would change what is read in a /proc that is not there.
    ///
    /// These namespaces are made by the host's root and thus owned by the host's user
    /// namespace: rights within the VMM's own are none over them.
    pub fn enter(network: Option<OwnedFd>) -> Result<Self, JailError> {
        if getpid().as_raw() != 1 {
            return Err(JailError::NotFirst);
        }
        let proc = open("/proc", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("open /proc"))?;
        let mut namespaces =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        if network.is_none() {
            namespaces |= CloneFlags::CLONE_NEWNET;
        }
        unshare(namespaces).map_err(failed("make its namespaces"))?;
        if let Some(network) = network {
            setns(network, CloneFlags::CLONE_NEWNET).map_err(failed("join its network"))?;
        }
        // It has a copy of the host's.
        sethostname(HOSTNAME).map_err(failed("set its hostname"))?;
        change_root()?;
        limit_resources()?;
        Ok(Self { proc })
    }

    /// Gives up all rights for good and becomes a user and a group whose ids nobody else on the
    /// host has. Call it while there is one thread, as before.
    pub fn lock(self, uid: u32, gid: u32) -> Result<(), JailError> {
        let proc = self.proc;
        change_user(uid, gid)?;
        enclose_user(proc, uid, gid)?;
        drop_capabilities()?;
        prctl::set_no_new_privs().map_err(failed("forbid new privileges"))?;
        landlock::confine().map_err(failed("confine it with landlock"))?;
        prctl::set_dumpable(false).map_err(failed("forbid tracing"))
    }
}

/// An empty root directory. The old root is detached, not just hidden: this process
/// must not keep file systems busy that the host unmounts.
fn change_root() -> Result<(), JailError> {
    // Nothing mounted here may show up on the host.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(failed("make the mount namespace private"))?;
    let root = sys::jail::mount_empty_root().map_err(failed("mount an empty root"))?;
    sys::jail::become_root(root.as_fd()).map_err(failed("change the root"))
}

/// Bounds what the process takes of the host, while it may raise a limit.
///
/// Four limits stay as they are:
/// * of processes: KVM makes a thread of its own in the first KVM_RUN (since Linux 6.14), and
///   fails that call where the limit is reached. The filters of system calls forbid the
///   process to make any, and the cgroup bounds them;
/// * of a file's size: disks that are attached later are as large as they are;
/// * of address space and data: the image window reserves terabytes, and the guest's memory
///   grows. The cgroup bounds what is used.
fn limit_resources() -> Result<(), JailError> {
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        // A dump would hold the guest's memory.
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_SIGPENDING, 0),
        // containerd's unit may have been given some.
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ] {
        setrlimit(resource, limit, limit).map_err(failed("limit resources"))?;
    }
    Ok(())
}

/// Becomes the user, with the rights that it still needs.
fn change_user(uid: u32, gid: u32) -> Result<(), JailError> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[]).map_err(failed("drop groups"))?;
    sys::jail::keep_capabilities().map_err(failed("keep capabilities for a moment"))?;
    setresgid(group, group, group).map_err(failed("change the group"))?;
    setresuid(user, user, user).map_err(failed("change the user"))?;
    // containerd's session may hold keys.
    sys::jail::forget_keys().map_err(failed("leave the keys behind"))
}

/// Makes a user namespace in which there is this user, this group and nobody else, and in
/// which no further one can be made.
///
/// A process may map the ids that it has itself, so no other process has to help. It is made
/// with the host's CAP_SYS_ADMIN, without which some hosts refuse it.
fn enclose_user(proc: OwnedFd, uid: u32, gid: u32) -> Result<(), JailError> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| JailError::NoUserNamespace(error.into()))?;
    // What /proc has of other processes belongs to the host's root, who is nobody here.
    prctl::set_dumpable(true).map_err(failed("open its ids"))?;
    for (file, text) in [
        ("self/setgroups", "deny".to_owned()),
        ("self/uid_map", format!("{uid} {uid} 1")),
        ("self/gid_map", format!("{gid} {gid} 1")),
        // Each namespace has this for itself and those below it.
        ("sys/user/max_user_namespaces", "0".to_owned()),
    ] {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        openat(&proc, file, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).write_all(text.as_bytes()))
            .map_err(failed("describe its user namespace"))?;
    }
    Ok(())
}

/// Gives up what a new user namespace gives.
fn drop_capabilities() -> Result<(), JailError> {
    for capability in caps::all() {
        // The kernel may know fewer than the library; those cannot be held either.
        let _ = caps::drop(None, caps::CapSet::Bounding, capability);
    }
    for set in [
        caps::CapSet::Ambient,
        caps::CapSet::Effective,
        caps::CapSet::Permitted,
        caps::CapSet::Inheritable,
    ] {
        caps::clear(None, set)
            .map_err(|error| failed::<io::Error>("drop capabilities")(io::Error::other(error)))?;
    }
    Ok(())
}
