//! Device nodes and the links of /dev, and paths to hide or protect.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, major, makedev,
    minor, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::plan::{DevicePlan, MountKind, Plan};
use crate::process::message::{Stage, Step};
use crate::rootfs::{Root, attach, clone_tree, exists, is_directory};
use crate::sys::{self, Attributes};

/// What every container has: name, major and minor number.
const DEFAULT: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links to where a process finds its own descriptors.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Where these are.
#[cfg(feature = "criu")]
pub(crate) fn default_paths() -> impl Iterator<Item = &'static Path> {
    DEFAULT.iter().map(|(path, ..)| Path::new(*path))
}

/// Makes the devices and links, before the root is entered. Expects an empty umask.
pub(crate) fn make(plan: &Plan, root: &Root) -> Step<()> {
    // With a /dev of the host, what is in it is the host's and stays as it is.
    if binds(plan, "/dev") {
        return Ok(());
    }
    for &(path, major, minor) in DEFAULT {
        let path = Path::new(path);
        if plan.devices.iter().any(|device| device.path == path) {
            continue;
        }
        let device = DevicePlan {
            path: path.to_owned(),
            kind: libc::S_IFCHR,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        make_device(root, &device)?;
    }
    for device in &plan.devices {
        make_device(root, device)?;
    }
    for (path, target) in LINKS {
        make_link(root, Path::new(path), target)?;
    }
    if Path::new("/proc/kcore").exists() {
        make_link(root, Path::new("/dev/core"), "/proc/kcore")?;
    }
    if !binds(plan, "/dev/ptmx") {
        replace_ptmx(root).stage(|| "link /dev/ptmx to pts/ptmx")?;
    }
    Ok(())
}

/// Whether something of the host is bound there.
fn binds(plan: &Plan, path: &str) -> bool {
    plan.mounts.iter().any(|mount| {
        matches!(mount.kind, MountKind::Bind { .. }) && mount.destination == Path::new(path)
    })
}

fn make_device(root: &Root, device: &DevicePlan) -> Step<()> {
    let stage = || format!("make device {}", device.path.display());
    let (parent, name) = root.make_parent(&device.path).stage(stage)?;
    let number = makedev(device.major, device.minor);
    let made = mknodat(
        &parent,
        name,
        FileType::from_raw_mode(device.kind),
        Mode::from_raw_mode(device.mode),
        number,
    );
    match made {
        Ok(()) => {}
        // Part of the image, or mounted there.
        Err(Errno::EXIST) => {
            let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).stage(stage)?;
            let same = stat.st_mode & libc::S_IFMT == device.kind
                && (device.kind == libc::S_IFIFO || stat.st_rdev == number);
            return if same {
                Ok(())
            } else {
                Err("something else is there already").stage(stage)
            };
        }
        // A user namespace makes no devices; it is lent the host's.
        Err(Errno::PERM) => return lend_device(root, device).stage(stage),
        Err(error) => return Err(error).stage(stage),
    }
    chownat(
        &parent,
        name,
        Some(Uid::from_raw(device.uid)),
        Some(Gid::from_raw(device.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .stage(stage)
}

/// Binds the host's node of a device to its place. The host's /dev is still there.
fn lend_device(root: &Root, device: &DevicePlan) -> io::Result<()> {
    let tree = clone_tree(CWD, &device.path, false)?;
    let stat = fstat(&tree)?;
    if stat.st_mode & libc::S_IFMT != device.kind
        || (major(stat.st_rdev), minor(stat.st_rdev)) != (device.major, device.minor)
    {
        return Err(io::Error::other(
            "the container's user namespace cannot make it, and the host has another one there",
        ));
    }
    attach(tree.as_fd(), root.make_file(&device.path)?.as_fd())
}

fn make_link(root: &Root, path: &Path, target: &str) -> Step<()> {
    let stage = || format!("link {} to {target}", path.display());
    let (parent, name) = root.make_parent(path).stage(stage)?;
    match symlinkat(target, &parent, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).stage(stage),
    }
}

/// A terminal of the container's own comes from its own devpts.
fn replace_ptmx(root: &Root) -> io::Result<()> {
    let (parent, name) = root.make_parent(Path::new("/dev/ptmx"))?;
    if exists(parent.as_fd(), name) {
        unlinkat(&parent, name, AtFlags::empty())?;
    }
    Ok(symlinkat("pts/ptmx", &parent, name)?)
}

/// The host's /dev/null, to be laid over files: nothing in the image can pass for it.
fn open_null() -> io::Result<OwnedFd> {
    let null = openat(
        CWD,
        "/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if is_null(null.as_fd())? {
        Ok(null)
    } else {
        Err(io::Error::other(
            "/dev/null of the host is not the null device",
        ))
    }
}

/// Exchanges standard streams that are the host's /dev/null for the container's, when the container
/// has a /dev of its own: whoever holds the host's can change its permissions for everybody.
pub(crate) fn replace_null(plan: &Plan, root: &Root) -> Step<()> {
    if binds(plan, "/dev") {
        return Ok(());
    }
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    let replace = || {
        let mut own = None;
        for (number, stream) in streams.iter().enumerate() {
            if !is_null(stream.as_fd())? {
                continue;
            }
            let null = match own.take() {
                Some(null) => null,
                None => {
                    root.open_with(Path::new("/dev/null"), OFlags::RDWR, ResolveFlags::empty())?
                }
            };
            if !is_null(null.as_fd())? {
                return Err(io::Error::other("it is not the null device"));
            }
            match number {
                0 => rustix::stdio::dup2_stdin(&null)?,
                1 => rustix::stdio::dup2_stdout(&null)?,
                _ => rustix::stdio::dup2_stderr(&null)?,
            }
            own = Some(null);
        }
        Ok(())
    };
    replace().stage(|| "connect the standard streams to the container's /dev/null")
}

fn is_null(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = fstat(fd)?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(1, 3))
}

/// Hides paths: a file behind /dev/null, a directory behind an empty one.
pub(crate) fn mask(plan: &Plan, root: &Root) -> Step<()> {
    if plan.masked_paths.is_empty() {
        return Ok(());
    }
    let null = open_null().stage(|| "open /dev/null")?;
    let mut empty: Option<OwnedFd> = None;
    for path in &plan.masked_paths {
        let stage = || format!("mask {}", path.display());
        let Some(place) = open_present(root, path).stage(stage)? else {
            continue;
        };
        let cover = match &empty {
            _ if !is_directory(place.as_fd()).stage(stage)? => {
                clone_tree(null.as_fd(), Path::new(""), false).stage(stage)?
            }
            // One file system for all: each further mask is another mount of it.
            Some(empty) => clone_tree(empty.as_fd(), Path::new(""), false).stage(stage)?,
            None => {
                let made = empty_directory().stage(stage)?;
                attach(made.as_fd(), place.as_fd()).stage(stage)?;
                empty = Some(made);
                continue;
            }
        };
        attach(cover.as_fd(), place.as_fd()).stage(stage)?;
    }
    Ok(())
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "755")?;
    rustix::mount::fsconfig_set_string(&context, "nr_inodes", "1")?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?)
}

/// Makes paths read-only, with all that is mounted below.
pub(crate) fn protect(plan: &Plan, root: &Root) -> Step<()> {
    for path in &plan.readonly_paths {
        let stage = || format!("make {} read-only", path.display());
        let Some(place) = open_present(root, path).stage(stage)? else {
            continue;
        };
        let tree = clone_tree(place.as_fd(), Path::new(""), true).stage(stage)?;
        let attributes = Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        };
        sys::set_attributes(tree.as_fd(), attributes, true, None).stage(stage)?;
        attach(tree.as_fd(), place.as_fd()).stage(stage)?;
    }
    Ok(())
}

/// What is at a path; `None` when there is nothing, which is as good as hidden.
fn open_present(root: &Root, path: &Path) -> io::Result<Option<OwnedFd>> {
    match root.open(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
