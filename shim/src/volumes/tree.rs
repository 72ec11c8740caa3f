//! The tree that virtiofsd shares: numbered mounts in a mount namespace of their own.
//! The host's namespace never has any of them, and all go with the namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use runtime::{Attributes, map_mount, set_attributes};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};

use rustix::process::{fchdir, pivot_root};

use super::{ReadOnly, ShareSource};

/// Bounds of the file system that holds the numbered places: the guest cannot write to
/// it, so they are for us.
const PLACES: [(&str, &str); 3] = [("size", "1m"), ("nr_inodes", "64k"), ("mode", "755")];

/// How many files a process may have open at most.
const MOST_FILES: &str = "/proc/sys/fs/nr_open";

/// On the host no file of a volume is run, opened as a device, or a link on the way of a
/// path: all that is the guest's part.
const GUARDED: u64 = libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call failed.
    #[error("{what}")]
    System {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// virtiofsd is not where it should be.
    #[error(
        "virtiofsd has not entered the tree that it is to share; it must be version 1.10 or newer"
    )]
    Outside,
    /// No thread could be had.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> TreeError {
    move |error| TreeError::System {
        what,
        source: error.into(),
    }
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    /// Its mount namespace.
    namespace: OwnedFd,
    /// Its root as virtiofsd has it: read-only.
    root: OwnedFd,
    /// The same, writable, where nobody but us can reach it.
    places: OwnedFd,
}

impl Tree {
    /// Takes the calling thread into a new mount namespace in which `directory` is an
    /// empty tree and /proc shows no more than a process needs of itself. Both are for a
    /// virtiofsd that this thread starts.
    pub(super) fn new_on_this_thread(directory: &Path) -> Result<Self, TreeError> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
        mount_change(
            "/",
            // What the host unmounts goes here too, and nothing goes back.
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .map_err(failed("keep mounts from the host"))?;
        let namespace = open("/proc/thread-self/ns/mnt", OFlags::RDONLY)
            .map_err(failed("open the mount namespace"))?;

        mount_proc().map_err(failed("make a /proc for virtiofsd"))?;

        let places = new_file_system("tmpfs", &PLACES, MountAttrFlags::empty())
            .map_err(failed("make a tree of shares"))?;
        attach(places.as_fd(), CWD, directory).map_err(failed("mount the tree of shares"))?;
        // Writable for us by this descriptor; for virtiofsd it is read-only.
        let root = clone(places.as_fd(), Path::new(""), false)
            .map_err(failed("clone the tree of shares"))?;
        let guarded = Attributes {
            set: GUARDED | libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        };
        set_attributes(root.as_fd(), guarded, false, None)
            .map_err(failed("make the tree of shares read-only"))?;
        attach(root.as_fd(), CWD, directory).map_err(failed("mount the tree of shares"))?;
        Ok(Self {
            namespace,
            root,
            places,
        })
    }

    /// Removes everything but the tree from its namespace, once virtiofsd, whose root
    /// is at the path given, has entered it.
    ///
    /// # Errors
    /// When virtiofsd is elsewhere, or the kernel refuses.
    pub(super) fn seal(&self, daemon_root: &Path) -> Result<(), TreeError> {
        let there = std::fs::metadata(daemon_root).map_err(failed("look at virtiofsd's root"))?;
        let ours = fstat(&self.root).map_err(failed("look at the tree of shares"))?;
        if (there.dev(), there.ino()) != (ours.st_dev, ours.st_ino) {
            return Err(TreeError::Outside);
        }
        self.inside(|| {
            fchdir(&self.root).map_err(failed("enter the tree of shares"))?;
            match pivot_root(".", ".") {
                Ok(()) => {}
                // A host that runs from its initramfs cannot exchange its root:
                // virtiofsd is kept by its chroot then.
                Err(Errno::INVAL) => {
                    tracing::info!("the host's root is its initramfs: it stays below virtiofsd's");
                    return Ok(());
                }
                Err(error) => return Err(failed("make the tree of shares the root")(error)),
            }
            // The old root is now mounted on top of the new one.
            unmount(".", UnmountFlags::DETACH).map_err(failed("let go of the host's root"))
        })
    }

    /// Shows a directory or file of the host under a number.
    ///
    /// # Errors
    /// When it cannot be opened or mounted; nothing is shown then.
    pub(super) fn show(&self, number: u32, share: &ShareSource) -> Result<(), TreeError> {
        // In the host's namespace, where the source is.
        let tree = clone(CWD, &share.source, share.recursive).map_err(failed("open it"))?;
        let guard = |set: u64, recursive: bool| {
            let attributes = Attributes {
                set,
                ..Attributes::default()
            };
            set_attributes(tree.as_fd(), attributes, recursive, None)
                .map_err(failed("set the attributes of its mount"))
        };
        guard(GUARDED, true)?;
        if let Some(ids) = &share.ids {
            map_mount(tree.as_fd(), &ids.uids, &ids.gids, ids.recursive).map_err(failed(
                "show it with the ids of a user namespace, which some file systems cannot",
            ))?;
        }
        match share.read_only {
            ReadOnly::No => {}
            ReadOnly::Top => guard(libc::MOUNT_ATTR_RDONLY, false)?,
            ReadOnly::Recursively => guard(libc::MOUNT_ATTR_RDONLY, true)?,
        }
        let propagation = Attributes {
            propagation: if share.follow {
                libc::MS_SLAVE
            } else {
                libc::MS_PRIVATE
            },
            ..Attributes::default()
        };
        set_attributes(tree.as_fd(), propagation, true, None)
            .map_err(failed("set the propagation of its mount"))?;

        let directory =
            fstat(&tree).map_err(failed("look at it"))?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let name = number.to_string();
        let mode = Mode::from_raw_mode(0o755);
        if directory {
            mkdirat(&self.places, &name, mode)
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&self.places, &name, flags, mode).map(drop)
        }
        .map_err(failed("make a place for it"))?;
        let shown = self.inside(|| {
            attach(tree.as_fd(), self.root.as_fd(), Path::new(&name)).map_err(failed("mount it"))
        });
        if shown.is_err() {
            let _ = self.remove_place(&name);
        }
        shown
    }

    /// Takes a share away. What the guest still has open of it stays until it lets go.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn hide(&self, number: u32) -> Result<(), TreeError> {
        let name = number.to_string();
        self.inside(|| {
            fchdir(&self.root).map_err(failed("enter the tree of shares"))?;
            unmount(&name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(failed("unmount it"))
        })?;
        self.remove_place(&name).map_err(failed("remove its place"))
    }

    fn remove_place(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.places, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => Ok(unlinkat(&self.places, name, AtFlags::empty())?),
            result => Ok(result?),
        }
    }

    /// Does something in the tree's namespace, on a thread that is not used again.
    fn inside<T: Send>(
        &self,
        act: impl FnOnce() -> Result<T, TreeError> + Send,
    ) -> Result<T, TreeError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("volumes".into())
                .spawn_scoped(scope, || {
                    // The root and working directory are shared with the other threads.
                    unshare(CloneFlags::CLONE_FS)
                        .and_then(|()| setns(&self.namespace, CloneFlags::CLONE_NEWNS))
                        .map_err(failed("enter the tree's namespace"))?;
                    act()
                })
                .map_err(TreeError::Thread)?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn open(path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Mounts a /proc that shows what virtiofsd needs: itself, for it reopens files by their
/// descriptors, and the one setting that it does not start without.
fn mount_proc() -> io::Result<()> {
    let guarded = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let most_files = std::fs::read(MOST_FILES)?;
    let processes = new_file_system(
        "proc",
        &[("subset", "pid"), ("hidepid", "ptraceable")],
        guarded,
    )?;
    // A process file system with `subset=pid` has no settings and no place for one.
    let whole = new_file_system("tmpfs", &PLACES, MountAttrFlags::empty())?;
    attach(whole.as_fd(), CWD, Path::new("/proc"))?;
    std::fs::create_dir("/proc/processes")?;
    attach(processes.as_fd(), CWD, Path::new("/proc/processes"))?;
    for link in ["self", "thread-self"] {
        symlink(
            Path::new("processes").join(link),
            Path::new("/proc").join(link),
        )?;
    }
    if let Some(directory) = Path::new(MOST_FILES).parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(MOST_FILES, most_files)?;
    let attributes = Attributes {
        set: u64::from(guarded.bits()),
        ..Attributes::default()
    };
    set_attributes(whole.as_fd(), attributes, false, None)?;
    Ok(())
}

fn new_file_system(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(&context, *name, *value)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// A detached copy of the mount that a path is in, from there on.
fn clone(directory: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(directory, path, flags)?)
}

fn attach(tree: BorrowedFd<'_>, directory: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    Ok(move_mount(
        tree,
        "",
        directory,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use super::super::Ids;
    use super::*;
    use oci_spec::runtime::LinuxIdMapping;

    /// A tree whose namespace is sealed, as virtiofsd has it. Needs root.
    fn sealed(directory: &Path) -> Tree {
        let tree = std::thread::scope(|scope| {
            let made = scope.spawn(|| Tree::new_on_this_thread(directory));
            made.join().unwrap().unwrap()
        });
        // Stands for virtiofsd, which has entered the tree.
        let root = format!("/proc/self/fd/{}", tree.root.as_raw_fd());
        tree.seal(Path::new(&root)).unwrap();
        tree
    }

    fn share(source: PathBuf, read_only: ReadOnly) -> ShareSource {
        ShareSource {
            destination: "/data".into(),
            source,
            recursive: true,
            follow: false,
            read_only,
            ids: None,
        }
    }

    /// A path in the tree's root, as virtiofsd comes by it.
    fn inside(tree: &Tree, path: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{path}", tree.root.as_raw_fd()).into()
    }

    /// A state directory, and one to share with a file in it.
    fn with_a_file() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (state, data) = (dir.path().join("state"), dir.path().join("data"));
        fs::create_dir_all(&state).unwrap();
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("file"), "content").unwrap();
        (dir, state, data)
    }

    fn mounts() -> String {
        fs::read_to_string("/proc/self/mountinfo").unwrap()
    }

    #[test]
    fn shares_come_and_go_and_the_host_sees_none() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped, it needs root");
        }
        let (_dir, state, data) = with_a_file();
        let before = mounts();
        let tree = sealed(&state);
        tree.show(1, &share(data.clone(), ReadOnly::No)).unwrap();
        tree.show(2, &share(data.clone(), ReadOnly::Top)).unwrap();
        tree.show(3, &share(data.join("file"), ReadOnly::No))
            .unwrap();
        assert_eq!(mounts(), before);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);

        assert_eq!(
            fs::read_to_string(inside(&tree, "1/file")).unwrap(),
            "content"
        );
        fs::write(inside(&tree, "1/new"), "x").unwrap();
        assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "x");
        fs::write(inside(&tree, "3"), "written").unwrap();
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "written");
        for refused in ["2/other", "own"] {
            let error = fs::write(inside(&tree, refused), "x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{refused}");
        }
        // A link of the pod leads nowhere on the host.
        std::os::unix::fs::symlink("/etc/passwd", data.join("link")).unwrap();
        let error = fs::read(inside(&tree, "1/link")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));

        for number in 1..=3 {
            tree.hide(number).unwrap();
        }
        assert_eq!(fs::read_dir(inside(&tree, ".")).unwrap().count(), 0);
        assert!(data.join("file").exists());
    }

    #[test]
    fn a_user_namespace_s_ids_are_shown_and_the_host_keeps_its_own() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped, it needs root");
        }
        let (_dir, state, data) = with_a_file();
        let tree = sealed(&state);
        let mapping: LinuxIdMapping =
            serde_json::from_str(r#"{"containerID": 0, "hostID": 1000, "size": 65536}"#).unwrap();
        let mut mapped = share(data.clone(), ReadOnly::No);
        mapped.ids = Some(Ids {
            uids: vec![mapping],
            gids: vec![mapping],
            recursive: true,
        });
        tree.show(1, &mapped).unwrap();
        let owner = |path: &Path| {
            let file = fs::metadata(path).unwrap();
            (file.uid(), file.gid())
        };
        assert_eq!(owner(&inside(&tree, "1/file")), (1000, 1000));
        assert_eq!(owner(&data.join("file")), (0, 0));
        std::os::unix::fs::chown(inside(&tree, "1/file"), Some(1007), Some(1007)).unwrap();
        assert_eq!(owner(&data.join("file")), (7, 7));
    }

    #[test]
    fn its_namespace_holds_nothing_else() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped, it needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let tree = sealed(dir.path());
        let names = tree
            .inside(|| {
                let entries = fs::read_dir("/").map_err(failed("read"))?;
                Ok(entries
                    .filter_map(|entry| Some(entry.ok()?.file_name()))
                    .collect::<Vec<_>>())
            })
            .unwrap();
        assert!(names.is_empty(), "{names:?}");
        // And a virtiofsd that is elsewhere is refused.
        assert!(matches!(tree.seal(Path::new("/")), Err(TreeError::Outside)));
    }

    #[test]
    fn its_proc_shows_itself_and_one_setting() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped, it needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let most = fs::read_to_string(MOST_FILES).unwrap();
        std::thread::scope(|scope| {
            let virtiofsd = scope.spawn(|| {
                Tree::new_on_this_thread(dir.path()).unwrap();
                assert_eq!(fs::read_to_string(MOST_FILES).unwrap(), most);
                assert!(Path::new("/proc/thread-self/fd").is_dir());
                fs::read_to_string("/proc/self/mountinfo").unwrap();
                for missing in ["/proc/meminfo", "/proc/sys/kernel", "/proc/sysrq-trigger"] {
                    assert!(!Path::new(missing).exists(), "{missing}");
                }
                let error = fs::write(MOST_FILES, "x").unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            });
            virtiofsd.join().unwrap();
        });
    }

    #[test]
    fn mounts_of_the_host_follow_only_where_asked() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped, it needs root");
        }
        // In a namespace of our own whose mounts propagate, as the host's do.
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let tmpfs = |path: &Path| {
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount("tmpfs", path, "tmpfs", flags, None).unwrap();
            };
            tmpfs(dir.path());
            mount_change(dir.path(), MountPropagationFlags::SHARED).unwrap();
            let data = dir.path().join("data");
            let state = dir.path().join("state");
            fs::create_dir_all(data.join("sub")).unwrap();
            fs::create_dir(&state).unwrap();
            let tree = sealed(&state);
            let mut following = share(data.clone(), ReadOnly::No);
            tree.show(1, &following).unwrap();
            following.follow = true;
            tree.show(2, &following).unwrap();
            tmpfs(&data.join("sub"));
            fs::write(data.join("sub/late"), "x").unwrap();
            assert!(!inside(&tree, "1/sub/late").exists());
            assert!(inside(&tree, "2/sub/late").exists());
            rustix::mount::unmount(data.join("sub"), UnmountFlags::empty()).unwrap();
            assert!(!inside(&tree, "2/sub/late").exists());
            rustix::mount::unmount(dir.path(), UnmountFlags::DETACH).unwrap();
        })
        .join()
        .unwrap();
    }
}
