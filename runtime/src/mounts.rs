//! Making the mounts of a container.

mod cgroup;

pub(crate) use cgroup::Shown;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxIdMapping;
use rustix::event::pause;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};

use crate::copy::copy_contents;
use crate::namespaces::{PROC_MAGIC, is_rootless, write_mappings};
use crate::plan::{
    IdMappings, MountKind, MountPlan, NamespaceKind, NamespacePlan, Plan, has_selinux, id_mappings,
};
use crate::process::message::{Stage, Step};
use crate::process::reap;
use crate::rootfs::{Root, attach, clone_tree, is_directory};
use crate::sys::{self, Attributes, NewProcess};

/// Files of /proc that may be mounted over, mostly with values that fit the container. Anything
/// else there could make the engine, or a program in the container, believe a forged /proc.
const OVER_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// What the caller's side has found for the mounts.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Sources of bind mounts: in a user namespace of its own, the container's process can neither
    /// reach every path of the host nor map ids. Message queues of the caller's IPC namespace too.
    trees: Vec<Option<OwnedFd>>,
    /// The cgroup file system.
    cgroup: Shown,
}

impl Sources {
    /// Opens, in the caller's mount namespace, what the container's process cannot.
    pub(crate) fn open(plan: &Plan, cgroup: Shown) -> Step<Self> {
        // Who is not root has no rights here either.
        let foreign = plan.namespaces.has_user() && !is_rootless();
        let open = |mount: &MountPlan| {
            let (source, recursive) = match &mount.kind {
                MountKind::Bind { source, recursive } => (source, recursive),
                // Only the owner of an IPC namespace may show its queues.
                MountKind::FileSystem {
                    kind,
                    source,
                    options,
                    ..
                } if kind == "mqueue"
                    && foreign
                    && !plan.namespaces.is_private(NamespaceKind::Ipc) =>
                {
                    return new_file_system(kind, source, options, mount.attributes.set)
                        .map(Some)
                        .stage(|| format!("mount mqueue for {}", mount.destination.display()));
                }
                _ => return Ok(None),
            };
            // In a mount namespace of its own the container's process cannot copy a mount
            // that a descriptor of ours is in.
            let ours = source.starts_with("/proc/self/fd");
            if !foreign && !ours && mount.id_mapping.is_none() {
                return Ok(None);
            }
            let stage = || bind_stage(source, &mount.destination);
            let tree = clone_tree(CWD, source, *recursive).stage(stage)?;
            if plan.root_propagation.is_none() {
                // As the container's own copies of the host's mounts are.
                let attributes = Attributes {
                    propagation: libc::MS_SLAVE,
                    ..Attributes::default()
                };
                sys::set_attributes(tree.as_fd(), attributes, true, None).stage(stage)?;
            }
            if let Some(mapping) = &mount.id_mapping {
                map_ids(tree.as_fd(), mapping)
                    .stage(|| format!("map the ids of {}", source.display()))?;
            }
            Ok(Some(tree))
        };
        Ok(Self {
            trees: plan.mounts.iter().map(open).collect::<Step<_>>()?,
            cgroup,
        })
    }
}

/// Makes all mounts of a plan in `root`, in their order.
pub(crate) fn make(plan: &Plan, root: &Root, sources: &Sources) -> Step<()> {
    for (index, mount) in plan.mounts.iter().enumerate() {
        let source = sources.trees.get(index).and_then(Option::as_ref);
        match &mount.kind {
            MountKind::Bind {
                source: path,
                recursive,
            } => bind(root, mount, path, *recursive, source)?,
            MountKind::FileSystem { .. } => file_system(plan, root, mount, source)?,
            MountKind::Cgroup => cgroup::mount(plan, root, mount, &sources.cgroup)?,
            MountKind::Remount => {
                let stage = || format!("change the mount on {}", mount.destination.display());
                let place = root.open(&mount.destination).stage(stage)?;
                finish(mount, place.as_fd()).stage(stage)?;
            }
        }
    }
    Ok(())
}

/// Makes those mounts read-only for which that had to wait.
pub(crate) fn finish_readonly(plan: &Plan, root: &Root) -> Step<()> {
    for mount in plan.mounts.iter().filter(|mount| mount.readonly_at_end) {
        let stage = || format!("make {} read-only", mount.destination.display());
        let place = root.open(&mount.destination).stage(stage)?;
        sys::set_attributes(place.as_fd(), readonly(), false, None).stage(stage)?;
    }
    Ok(())
}

fn readonly() -> Attributes {
    Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    }
}

fn bind_stage(source: &Path, destination: &Path) -> String {
    format!("bind {} to {}", source.display(), destination.display())
}

fn bind(
    root: &Root,
    mount: &MountPlan,
    source: &Path,
    recursive: bool,
    opened: Option<&OwnedFd>,
) -> Step<()> {
    let stage = || bind_stage(source, &mount.destination);
    let own;
    let tree = match opened {
        Some(tree) => tree,
        None => {
            own = clone_tree(CWD, source, recursive).stage(stage)?;
            &own
        }
    };
    let place = if is_directory(tree.as_fd()).stage(stage)? {
        root.make_directory(&mount.destination)
    } else {
        root.make_file(&mount.destination)
    };
    place_tree(root, mount, tree.as_fd(), place.stage(stage)?.as_fd()).stage(stage)
}

/// Mounts a tree at a place and gives it what the spec asks for.
fn place_tree(
    root: &Root,
    mount: &MountPlan,
    tree: BorrowedFd<'_>,
    place: BorrowedFd<'_>,
) -> io::Result<()> {
    check_place(root, mount, tree, place)?;
    // Attributes first: there is no moment in which the mount is more open than asked for.
    set_all_attributes(mount, tree)?;
    attach(tree, place)?;
    set_propagation(mount, tree)
}

fn finish(mount: &MountPlan, tree: BorrowedFd<'_>) -> io::Result<()> {
    set_all_attributes(mount, tree)?;
    set_propagation(mount, tree)
}

fn set_all_attributes(mount: &MountPlan, tree: BorrowedFd<'_>) -> io::Result<()> {
    for (attributes, recursive) in [(mount.attributes, false), (mount.recursive, true)] {
        if attributes != Attributes::default() {
            sys::set_attributes(tree, attributes, recursive, None)?;
        }
    }
    Ok(())
}

fn set_propagation(mount: &MountPlan, tree: BorrowedFd<'_>) -> io::Result<()> {
    for &(propagation, recursive) in &mount.propagation {
        let attributes = Attributes {
            propagation,
            ..Attributes::default()
        };
        sys::set_attributes(tree, attributes, recursive, None)?;
    }
    Ok(())
}

/// Refuses to mount over the root, anything but proc on /proc, and over the insides of /proc,
/// wherever the destination's links lead.
fn check_place(
    root: &Root,
    mount: &MountPlan,
    tree: BorrowedFd<'_>,
    place: BorrowedFd<'_>,
) -> io::Result<()> {
    let is_proc = |fd| Ok::<_, Errno>(fstatfs(fd)?.f_type as u64 == PROC_MAGIC);
    let path = root.path_of(place)?;
    let proc = Path::new("/proc");
    let over = |path: &Path| OVER_PROC.iter().any(|other| Path::new(other) == path);
    let problem = if path == Path::new("/") {
        "the destination is the root itself; use root.path"
    } else if path == proc && !is_proc(tree)? {
        "only a proc file system can be mounted on /proc"
    } else if path != proc
        && (path.starts_with(proc) || is_proc(place)?)
        && !over(&path)
        && !over(&mount.destination)
    {
        "the destination is inside /proc and must not be mounted over"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

fn file_system(plan: &Plan, root: &Root, mount: &MountPlan, opened: Option<&OwnedFd>) -> Step<()> {
    let MountKind::FileSystem {
        kind,
        source,
        options,
        copy_up,
    } = &mount.kind
    else {
        return Ok(());
    };
    let destination = &mount.destination;
    let stage = || format!("mount {kind} on {}", destination.display());
    let mut options = options.clone();
    if kind == "tmpfs" && !options.iter().any(|(name, _)| name == "mode") {
        // A directory of the image keeps its permissions; what is made here is for all.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Ok(image) = root.open_with(destination, flags, ResolveFlags::empty()) {
            let mode = fstat(&image).stage(stage)?.st_mode & 0o7777;
            options.push(("mode".to_owned(), Some(format!("{mode:o}"))));
        }
    }
    let mut place = root.make_directory(destination).stage(stage)?;
    if let Some(label) = &plan.mount_label
        && matches!(kind.as_str(), "tmpfs" | "devpts" | "mqueue")
        && has_selinux()
    {
        options.push(("context".to_owned(), Some(label.clone())));
    }
    let fatal = matches!(kind.as_str(), "proc" | "sysfs");
    if fatal {
        // A link here would put them elsewhere, and leave what must be hidden in them unhidden.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        place = root
            .open_with(destination, flags, ResolveFlags::NO_SYMLINKS)
            .stage(stage)?;
    }
    if let Some(tree) = opened {
        return place_tree(root, mount, tree.as_fd(), place.as_fd()).stage(stage);
    }
    let made = new_file_system(kind, source, &options, mount.attributes.set);
    let tree = match made {
        // The kernel shows these only to the user namespace that owns what they show; the
        // host's, which it has mounted, may be shown again.
        Err(error) if fatal && error.refused && plan.namespaces.has_user() => clone_tree(
            CWD,
            Path::new(if kind == "proc" { "/proc" } else { "/sys" }),
            true,
        )
        .stage(stage)?,
        other => other.stage(stage)?,
    };
    if *copy_up {
        copy_up_into(root, destination, tree.as_fd())
            .stage(|| format!("copy {} into a new {kind}", destination.display()))?;
    }
    place_tree(root, mount, tree.as_fd(), place.as_fd()).stage(stage)
}

fn copy_up_into(root: &Root, from: &Path, to: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let from = root.open_with(from, flags, ResolveFlags::empty())?;
    let to = openat(to, ".", flags | OFlags::CLOEXEC, Mode::empty())?;
    copy_contents(from.as_fd(), to.as_fd())
}

/// Why a file system could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct NewError {
    /// The error, with what the kernel says about it.
    text: String,
    /// Whether the kernel refuses it to this user namespace.
    refused: bool,
}

/// A new instance of a file system, not yet attached. `attributes` are `MOUNT_ATTR_*`.
fn new_file_system(
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
    attributes: u64,
) -> Result<OwnedFd, NewError> {
    let plain = |error: Errno| NewError {
        text: match error {
            Errno::NODEV => format!("this kernel has no file system {kind}"),
            other => io::Error::from(other).to_string(),
        },
        refused: matches!(error, Errno::PERM | Errno::BUSY),
    };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain)?;
    // The kernel explains itself in messages to be read from the context.
    let explain = |error: Errno, what: &str| {
        let plain = plain(error);
        let mut text = match what {
            "" => plain.text,
            what => format!("{what}: {}", plain.text),
        };
        for line in messages(&context) {
            text.push_str("; ");
            text.push_str(&line);
        }
        NewError { text, ..plain }
    };
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source)
            .map_err(|error| explain(error, "source"))?;
    }
    // A file system on a device is read-only as a whole, so that the device is not written at all.
    if attributes & libc::MOUNT_ATTR_RDONLY != 0 && is_block_device(source) {
        fsconfig_set_flag(&context, "ro").map_err(|error| explain(error, "ro"))?;
    }
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, name.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, name.as_str()),
        }
        .map_err(|error| explain(error, &format!("option {name}")))?;
    }
    fsconfig_create(&context).map_err(|error| explain(error, ""))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes as u32),
    )
    .map_err(|error| explain(error, ""))
}

/// The error messages that wait in a file system context, without their marks.
fn messages(context: &OwnedFd) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0u8; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        if length == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&buffer[..length]);
        let line = line.trim();
        lines.push(line.strip_prefix("e ").unwrap_or(line).to_owned());
    }
    lines
}

fn is_block_device(path: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.starts_with('/')
        && std::fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device())
}

/// A detached copy of the mount on `path` that shows its files with other ids: those of a spec's
/// `linux.uidMappings` and `linux.gidMappings`, from inside to outside.
///
/// # Errors
/// What the kernel says, for file systems that cannot do this among others.
pub fn mapped_mount(
    path: &Path,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> io::Result<OwnedFd> {
    let tree = clone_tree(CWD, path, false)?;
    map_mount(tree.as_fd(), uids, gids, false)?;
    Ok(tree)
}

/// Makes a detached mount show its files with other ids, as [`mapped_mount`] does; with
/// `recursive` those below it too.
///
/// # Errors
/// What the kernel says, for file systems that cannot do this among others.
pub fn map_mount(
    tree: BorrowedFd<'_>,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
    recursive: bool,
) -> io::Result<()> {
    let mappings = |list: &[LinuxIdMapping]| id_mappings(&Some(list.to_vec()));
    let mapping = IdMappings {
        uids: mappings(uids),
        gids: mappings(gids),
        recursive,
    };
    map_ids(tree, &mapping)
}

/// Shows the ids of the files of a detached tree through a mapping. The kernel takes a mapping in
/// the shape of a user namespace, which a process has to be in while it is made.
fn map_ids(tree: BorrowedFd<'_>, mapping: &IdMappings) -> io::Result<()> {
    let how = NewProcess {
        namespaces: libc::CLONE_NEWUSER as u64,
        ..NewProcess::default()
    };
    let (pid, holder) = sys::spawn(how, || {
        // Killed below, or with the caller.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        loop {
            pause();
        }
    })?;
    let plan = NamespacePlan {
        uid_mappings: mapping.uids.clone(),
        gid_mappings: mapping.gids.clone(),
        ..NamespacePlan::default()
    };
    let result = write_mappings(pid, &plan).and_then(|()| {
        let user = std::fs::File::open(format!("/proc/{pid}/ns/user"))?;
        let attributes = Attributes {
            set: libc::MOUNT_ATTR_IDMAP,
            ..Attributes::default()
        };
        sys::set_attributes(tree, attributes, mapping.recursive, Some(user.as_fd()))
    });
    pidfd_send_signal(&holder, Signal::KILL)?;
    reap(holder.as_fd())?;
    result
}
