//! What PID 1 must do before anything else can run.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit, setsid, umask};
use thiserror::Error;

use crate::{logger, sys};

/// Open files of one process: what containers find under containerd on a usual node.
const OPEN_FILES: u64 = 1 << 20;
/// Bytes of an image that are read when fewer are asked for.
const READ_AHEAD: u32 = 32 << 10;
/// Directory of everything that the agent keeps.
pub const BASE: &str = "/run/joey";
/// Where cgroup2 is.
pub const CGROUP: &str = "/sys/fs/cgroup";

/// Why the machine could not be made usable.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub struct BootError {
    what: String,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> BootError {
    let what = what.into();
    move |error| BootError {
        what,
        source: error.into(),
    }
}

/// The least that must be done before the host can be told that the agent is there:
/// a root that containers can leave by pivot_root, and somewhere to complain to.
pub fn begin() -> Result<(), BootError> {
    // pivot_root(2) refuses to leave the initramfs itself, so a mount of it becomes the root.
    fs::create_dir_all("/root").map_err(failed("make /root"))?;
    mount_bind("/", "/root").map_err(failed("bind / to /root"))?;
    chdir("/root").map_err(failed("enter /root"))?;
    mount_move(".", "/").map_err(failed("move /root to /"))?;
    chroot(".").map_err(failed("make /root the root"))?;

    mount_new("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755")?;
    let kmsg = fs::File::options().write(true).open("/dev/kmsg");
    logger::install(kmsg.map_err(failed("open /dev/kmsg"))?);
    Ok(())
}

/// The rest. No request is answered before it is done.
pub fn finish() -> Result<(), BootError> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("proc", "/proc", safe, c"")?;
    mount_new("sysfs", "/sys", safe, c"")?;
    // A container's root in its own cgroup namespace cannot raise its own limits.
    mount_new("cgroup2", CGROUP, safe, c"nsdelegate")?;
    let no_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new(
        "devpts",
        "/dev/pts",
        no_exec,
        c"gid=5,mode=620,ptmxmode=666",
    )?;
    for directory in [BASE, "/tmp"] {
        fs::create_dir_all(directory).map_err(failed(format!("make {directory}")))?;
    }
    // Without it the kernel drops log lines when many come at once. It refuses when the
    // kernel's command line has decided already.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    keep_quiet()?;
    enable_controllers()?;
    set_limits()?;
    umask(Mode::WGRP | Mode::WOTH);
    // The kernel starts PID 1 in no session; terminals want one.
    setsid().map_err(failed("start a session"))?;
    Ok(())
}

fn mount_new(kind: &str, target: &str, flags: MountFlags, options: &CStr) -> Result<(), BootError> {
    fs::create_dir_all(target).map_err(failed(format!("make {target}")))?;
    mount(kind, target, kind, flags, options).map_err(failed(format!("mount {kind} on {target}")))
}

fn write(file: &str, text: &str) -> Result<(), BootError> {
    fs::write(file, text).map_err(failed(format!("write {text:?} to {file}")))
}

/// An idle guest costs the host whatever its kernel wakes up for. By default that is twice a
/// second to look whether memory should be compacted before anybody needs it, and once for
/// counters that are read by nobody.
fn keep_quiet() -> Result<(), BootError> {
    write("/proc/sys/vm/compaction_proactiveness", "0")?;
    write("/proc/sys/vm/stat_interval", "60")
}

/// What is read of an image is the guest's own copy of pages that the host has in its cache. By
/// default that is 128 KiB around each page of a program; the host's own reading ahead of its
/// disk is as before.
pub fn read_little_ahead(window: &str) -> Result<(), BootError> {
    let disk = File::open(window).map_err(failed(format!("open {window}")))?;
    sys::set_read_ahead(disk.as_fd(), READ_AHEAD)
        .map_err(failed(format!("set how much of {window} is read ahead")))
}

/// Lets containers' cgroups have every controller of this kernel. The root cgroup is
/// the one that may hold processes at the same time, so PID 1 stays in it.
fn enable_controllers() -> Result<(), BootError> {
    let file = format!("{CGROUP}/cgroup.controllers");
    let controllers = fs::read_to_string(&file).map_err(failed(format!("read {file}")))?;
    let enable: Vec<String> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    write(
        &format!("{CGROUP}/cgroup.subtree_control"),
        &enable.join(" "),
    )
}

fn set_limits() -> Result<(), BootError> {
    let both = |value| Rlimit {
        current: value,
        maximum: value,
    };
    setrlimit(Resource::Nofile, both(Some(OPEN_FILES))).map_err(failed("allow many open files"))?;
    // The kernel derives this from the memory at boot, which is small and grows later.
    setrlimit(Resource::Nproc, both(None)).map_err(failed("allow many processes"))?;
    Ok(())
}
