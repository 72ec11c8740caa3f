//! Locks the process up before the guest's first instruction: an empty read-only
//! root, a user of its own, no capabilities, bounded resources. The filters of
//! system calls follow, thread by thread, in [`crate::seccomp`].

use std::io;
use std::os::fd::AsFd;

use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::sys;

/// Most open descriptors: connections (4096), images (1024) and the VM's own.
const MAX_FILES: u64 = 5300;

/// Which step of locking up failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock the VMM up: {step}: {source}; joey-vmm must be started as root")]
pub struct JailError {
    /// What was tried.
    step: &'static str,
    /// The kernel's answer.
    source: io::Error,
}

/// Makes the error of a step.
fn failed<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError {
        step,
        source: source.into(),
    }
}

/// Enters the jail for good. Call it while there is one thread: root directory and
/// identity belong to threads and are inherited by those made later.
///
/// The number of threads is not limited here: KVM makes one of its own in the first
/// KVM_RUN (since Linux 6.14), and fails that call where the limit is reached. The
/// filters of system calls forbid the process to make any.
pub fn enter(uid: u32, gid: u32) -> Result<(), JailError> {
    change_root()?;
    // Before the user changes: the limit of files may have to rise.
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, MAX_FILES),
        // A dump would hold the guest's memory.
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, limit, limit).map_err(failed("limit resources"))?;
    }
    drop_privileges(uid, gid)
}

/// An empty root directory. The old root is detached, not just hidden: this process
/// must not keep file systems busy that the host unmounts.
fn change_root() -> Result<(), JailError> {
    sys::unshare_mounts().map_err(failed("make a mount namespace"))?;
    // Nothing mounted here may show up on the host.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(failed("make the mount namespace private"))?;
    let root = sys::mount_empty_root().map_err(failed("mount an empty root"))?;
    sys::become_root(root.as_fd()).map_err(failed("change the root"))
}

/// Becomes the user for good.
fn drop_privileges(uid: u32, gid: u32) -> Result<(), JailError> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    for capability in caps::all() {
        // The kernel may know fewer than the library; those cannot be held either.
        let _ = caps::drop(None, caps::CapSet::Bounding, capability);
    }
    setgroups(&[]).map_err(failed("drop groups"))?;
    setresgid(group, group, group).map_err(failed("change the group"))?;
    setresuid(user, user, user).map_err(failed("change the user"))?;
    for set in [
        caps::CapSet::Ambient,
        caps::CapSet::Effective,
        caps::CapSet::Permitted,
        caps::CapSet::Inheritable,
    ] {
        caps::clear(None, set)
            .map_err(|error| failed::<io::Error>("drop capabilities")(io::Error::other(error)))?;
    }
    prctl::set_no_new_privs().map_err(failed("forbid new privileges"))?;
    prctl::set_dumpable(false).map_err(failed("forbid tracing"))
}
