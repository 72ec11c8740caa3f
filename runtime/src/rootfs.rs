//! The container's root: finding and making paths in it without ever leaving it, and entering it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, fstatfs, mkdirat,
    openat, openat2, readlinkat, statat, statx,
};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chroot, fchdir, pivot_root};

use crate::namespaces::PROC_MAGIC;
use crate::plan::{NamespaceKind, Plan};
use crate::process::message::{Stage, Step};
use crate::sys::{self, Attributes};

/// The root of a container, not yet or already entered.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

/// How many symbolic links a path may have, as in the kernel.
const MOST_LINKS: usize = 40;

impl Root {
    /// Sets the propagation of all mounts of the calling process's (new) mount namespace and
    /// mounts the container's root over its own directory, so that it can be entered.
    pub(crate) fn prepare(plan: &Plan) -> Step<Self> {
        let propagation = match plan.root_propagation {
            Some((libc::MS_SHARED, _)) => MountPropagationFlags::SHARED,
            // Nothing could be bound from unbindable mounts: that comes when all is mounted.
            Some((libc::MS_PRIVATE | libc::MS_UNBINDABLE, _)) => MountPropagationFlags::PRIVATE,
            // What the host mounts later reaches the container, never the other way round.
            _ => MountPropagationFlags::DOWNSTREAM,
        };
        let own_mounts = plan.namespaces.is_private(NamespaceKind::Mount);
        if own_mounts {
            mount_change("/", propagation | MountPropagationFlags::REC)
                .stage(|| "set the propagation of the root")?;
        }
        let stage = || format!("mount the root file system {}", plan.rootfs.display());
        let place = openat(
            CWD,
            &plan.rootfs,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .stage(stage)?;
        if own_mounts {
            // The kernel refuses to enter a root that is shared or whose parent mount is; and what
            // the host mounts in the root's directory is not the container's.
            make_parent_private(&plan.rootfs).stage(stage)?;
        }
        let tree = clone_tree(CWD, &plan.rootfs, true).stage(stage)?;
        attach(tree.as_fd(), place.as_fd()).stage(stage)?;
        if !own_mounts {
            // What is mounted in it stays in it, and goes with it.
            let private = Attributes {
                propagation: libc::MS_PRIVATE,
                ..Attributes::default()
            };
            sys::set_attributes(tree.as_fd(), private, true, None).stage(stage)?;
        }
        Ok(Self { fd: tree })
    }

    /// The root of another process, as its caller sees it.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/root")))
    }

    /// The root at a path of the host, not yet entered.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: openat(CWD, path, flags, Mode::empty())?,
        })
    }

    /// The root that the calling process is in.
    pub(crate) fn current() -> io::Result<Self> {
        Self::at(Path::new("/"))
    }

    /// The root's directory.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where in the root an open file is. To be asked before the root is entered: it takes the
    /// host's /proc.
    pub(crate) fn path_of(&self, fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
        let path =
            |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (root, path) = (path(self.as_fd())?, path(fd)?);
        match path.strip_prefix(root) {
            Ok(inside) => Ok(Path::new("/").join(inside)),
            Err(_) => Err(io::Error::other("it is outside the root file system")),
        }
    }

    /// Opens (as O_PATH) what `path` leads to inside the root; symbolic links and `..` stay inside.
    pub(crate) fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, OFlags::PATH, ResolveFlags::empty())
    }

    /// Likewise, with flags for the file and for the way to it.
    pub(crate) fn open_with(
        &self,
        path: &Path,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> io::Result<OwnedFd> {
        const ATTEMPTS: usize = 16;
        let mut result = Err(Errno::AGAIN);
        // The kernel gives up with EAGAIN when something is renamed on the way.
        for _ in 0..ATTEMPTS {
            result = openat2(
                &self.fd,
                relative(path),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            );
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        Ok(result?)
    }

    /// Opens the directory `path`, making what is missing of it. A symbolic link that leads to
    /// nothing (`/var/run -> /run` in an image without `/run`) gets its target made.
    pub(crate) fn make_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open_with(
            path,
            OFlags::PATH | OFlags::DIRECTORY,
            ResolveFlags::empty(),
        ) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut left: VecDeque<OsString> = parts(path);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            let next = done.join(&part);
            match self.open_with(
                &next,
                OFlags::PATH | OFlags::DIRECTORY,
                ResolveFlags::empty(),
            ) {
                Ok(_) => {
                    done = next;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let parent = self.open(&done)?;
            match mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => done = next,
                Err(Errno::EXIST) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = readlinkat(&parent, part.as_os_str(), Vec::new())?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        done.clear();
                    }
                    for part in parts(&target).into_iter().rev() {
                        left.push_front(part);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.open_with(
            &done,
            OFlags::PATH | OFlags::DIRECTORY,
            ResolveFlags::empty(),
        )
    }

    /// Opens the directory that `path` lies in, making it if need be, and gives the last name.
    pub(crate) fn make_parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.make_directory(parent)?, name))
    }

    /// As [`Self::make_file`], but a symbolic link at `path` itself is an error, and so is a file of
    /// /proc.
    pub(crate) fn make_plain_file(&self, path: &Path) -> io::Result<OwnedFd> {
        let (parent, name) = self.make_parent(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&parent, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => self.make_file(path)?,
            other => other?,
        };
        let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
        if kind == FileType::Symlink || fstatfs(&file)?.f_type as u64 == PROC_MAGIC {
            return Err(io::Error::other(format!(
                "{} of the image is a link or lies in /proc",
                path.display()
            )));
        }
        Ok(file)
    }

    /// Opens (as O_PATH) what is at `path`, or a new empty file there.
    pub(crate) fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut path = path.to_owned();
        for _ in 0..=MOST_LINKS {
            match self.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
            let (parent, name) = self.make_parent(&path)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match openat(&parent, name, flags, Mode::from_raw_mode(0o755)) {
                Ok(_) => {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    return Ok(openat(&parent, name, flags, Mode::empty())?);
                }
                // A symbolic link that leads to nothing: what it names is made.
                Err(Errno::EXIST) => {
                    let target = readlinkat(&parent, name, Vec::new())?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    path = path.parent().unwrap_or(Path::new("/")).join(target);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// Makes this the root of the calling process alone, which shares the host's mounts.
    pub(crate) fn change_to(&self) -> Step<()> {
        fchdir(&self.fd)
            .and_then(|()| chroot("."))
            .stage(|| "enter the root file system")
    }

    /// Makes this the root of the calling process's mount namespace and lets go of the old one; with
    /// `no_pivot` by covering it.
    pub(crate) fn enter(&self, no_pivot: bool) -> Step<()> {
        let old = openat(
            CWD,
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .stage(|| "open the old root")?;
        fchdir(&self.fd).stage(|| "enter the root file system")?;
        if no_pivot {
            return self.cover(&old);
        }
        match pivot_root(".", ".") {
            Ok(()) => {
                // The old root is now mounted on top of the new one.
                fchdir(&old).stage(|| "return to the old root")?;
                // What goes away here must not go away on the host too.
                mount_change(
                    ".",
                    MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
                )
                .stage(|| "separate the old root")?;
                unmount(".", UnmountFlags::DETACH).stage(|| "let go of the old root")?;
            }
            // The first root of a system, which an initramfs is, has no parent and cannot be
            // exchanged: cover it.
            Err(Errno::INVAL) if is_first_root().unwrap_or(false) => self.cover(&old)?,
            Err(error) => return Err(error).stage(|| "pivot_root"),
        }
        fchdir(&self.fd)
            .and_then(|()| rustix::process::chdir("/"))
            .stage(|| "enter the new root")
    }

    /// Mounts this root over the first root of the system. A path can then lead below it neither
    /// by name nor by `..`, because it covers all of the old root. What was mounted in the old
    /// root is let go, or the container would keep it busy and hold it where its own privileged
    /// processes could find it.
    fn cover(&self, old: &OwnedFd) -> Step<()> {
        let table =
            std::fs::read_to_string("/proc/self/mountinfo").stage(|| "read the table of mounts")?;
        attach(self.fd.as_fd(), old.as_fd()).stage(|| "move the new root over the first one")?;
        fchdir(old).stage(|| "return to the old root")?;
        for point in points_on_first_root(&table) {
            let point = relative(&point);
            // What goes away here must not go away on the host too.
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            // One that lies where the new root came from has gone with it.
            match mount_change(point, private).and_then(|()| unmount(point, UnmountFlags::DETACH)) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => {
                    return Err(error).stage(|| format!("let go of {}", point.display()));
                }
            }
        }
        fchdir(&self.fd)
            .and_then(|()| chroot("."))
            .stage(|| "enter the new root")
    }
}

/// Which mount is on top at a path: an id that is not given again as long as the mount is there.
pub(crate) fn mount_at(path: &Path) -> io::Result<u64> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    Ok(found.stx_mnt_id)
}

/// Takes away what was mounted at a path, with all below it, since `mount_at` said `before`.
pub(crate) fn uncover(path: &Path, before: u64) -> io::Result<()> {
    while mount_at(path)? != before {
        unmount(path, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Attaches a detached or other mount on `place`.
pub(crate) fn attach(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_mount(
        tree,
        "",
        place,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?)
}

/// A detached copy of the mount that `path` is in, from `path` on, with those below it if
/// recursive. An empty path means `directory` itself.
pub(crate) fn clone_tree(
    directory: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(directory, path, flags)?)
}

/// A path as seen from a root's directory.
pub(crate) fn relative(path: &Path) -> &Path {
    match path.strip_prefix("/") {
        Ok(path) if path.as_os_str().is_empty() => Path::new("."),
        Ok(path) => path,
        Err(_) if path.as_os_str().is_empty() => Path::new("."),
        Err(_) => path,
    }
}

/// A path without `.` and `..`, judged by its text alone: what comes before a `..` need not be there.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(cleaned.pop()),
            Component::CurDir => {}
            part => cleaned.push(part),
        }
    }
    cleaned
}

/// The names of a path, with `..` kept.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// Whether `fd` is a directory.
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Makes the mount private that `path` lies in.
fn make_parent_private(path: &Path) -> io::Result<()> {
    let mut at = Some(path);
    while let Some(point) = at {
        match mount_change(point, MountPropagationFlags::PRIVATE) {
            // Not a mount point: the mount is further up.
            Err(Errno::INVAL) => at = point.parent(),
            other => return Ok(other?),
        }
    }
    Ok(())
}

/// Whether the root of this mount namespace has no parent mount.
fn is_first_root() -> io::Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts(&table).any(|mount| mount.point == Path::new("/") && mount.id == mount.parent))
}

/// A line of `mountinfo`.
#[cfg_attr(not(feature = "criu"), expect(dead_code, reason = "criu needs all"))]
pub(crate) struct MountLine<'a> {
    id: u64,
    parent: u64,
    /// What of its file system is mounted, as the kernel escapes it.
    pub root: &'a str,
    /// Where.
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: &'a str,
}

pub(crate) fn mounts(table: &str) -> impl Iterator<Item = MountLine<'_>> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        let root = fields.nth(1)?;
        let point = fields.next()?;
        let (_, source) = line.split_once(" - ")?;
        Some(MountLine {
            id,
            parent,
            root,
            point: unescape(point),
            kind: source.split(' ').next()?,
        })
    })
}

/// Where mounts lie directly on the root mount, outermost first.
fn points_on_first_root(table: &str) -> Vec<PathBuf> {
    let Some(root) = mounts(table).find(|mount| mount.point == Path::new("/")) else {
        return Vec::new();
    };
    mounts(table)
        .filter(|mount| mount.parent == root.id && mount.id != root.id)
        .map(|mount| mount.point)
        .collect()
}

/// A path of `mountinfo`, where blanks and backslashes are octal.
fn unescape(path: &str) -> PathBuf {
    let bytes = path.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| path.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

/// Gives the entered root the propagation that the spec asks for.
pub(crate) fn set_root_propagation(flag: u64, recursive: bool) -> io::Result<()> {
    let attributes = Attributes {
        propagation: flag,
        ..Attributes::default()
    };
    sys::set_attributes(Root::current()?.as_fd(), attributes, recursive, None)
}

/// Makes the entered root read-only; mounts below it stay as they are.
pub(crate) fn make_root_readonly() -> io::Result<()> {
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    sys::set_attributes(Root::current()?.as_fd(), attributes, false, None)
}

/// Whether something, a dangling symbolic link too, is at `name`.
pub(crate) fn exists(directory: BorrowedFd<'_>, name: &OsStr) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> (PathBuf, Root) {
        let path = std::env::temp_dir().join(format!("root-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        let fd = openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (path, Root { fd })
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, cleaned) in [
            ("/a/../b", "/b"),
            ("/../../c", "/c"),
            ("/./d/", "/d"),
            ("/", "/"),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned), "{path}");
        }
    }

    #[test]
    fn a_file_is_made_where_a_link_leads() {
        let (path, root) = scratch("file");
        symlink("/deep/er", path.join("first")).unwrap();
        std::fs::create_dir(path.join("deep")).unwrap();
        symlink("../file", path.join("deep/er")).unwrap();
        root.make_file(Path::new("/first")).unwrap();
        assert!(path.join("file").is_file());
        symlink("loop", path.join("loop")).unwrap();
        assert!(root.make_file(Path::new("/loop")).is_err());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn links_that_lead_out_stay_inside() {
        let (path, root) = scratch("out");
        symlink("/../../../../etc", path.join("link")).unwrap();
        root.make_directory(Path::new("/link/new")).unwrap();
        assert!(path.join("etc/new").is_dir());
        assert!(!Path::new("/etc/new").exists());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn the_target_of_a_dangling_link_is_made() {
        let (path, root) = scratch("dangling");
        std::fs::create_dir(path.join("var")).unwrap();
        symlink("../run", path.join("var/run")).unwrap();
        root.make_file(Path::new("/var/run/a/b")).unwrap();
        assert!(path.join("run/a/b").is_file());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn links_in_a_circle_end() {
        let (path, root) = scratch("circle");
        symlink("b", path.join("a")).unwrap();
        symlink("a", path.join("b")).unwrap();
        assert!(root.make_directory(Path::new("/a/c")).is_err());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn escaped_paths_of_the_mount_table() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/a\\"), Path::new("/a\\"));
    }

    #[test]
    fn mounts_on_the_first_root_are_told_from_those_further_up() {
        let table = "1 1 0:2 / / rw - rootfs rootfs rw\n\
                     20 1 0:5 / /proc rw - proc proc rw\n\
                     21 1 0:6 / /run rw - tmpfs tmpfs rw\n\
                     22 21 0:7 / /run/x rw - tmpfs tmpfs rw\n";
        assert_eq!(
            points_on_first_root(table),
            [PathBuf::from("/proc"), PathBuf::from("/run")]
        );
    }
}
