//! A container's root file system on the host: containerd's mounts, carried out.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_remount, move_mount, unmount,
};

/// Most bytes that the kernel reads of a mount's data: a page, with its last zero.
const MAX_DATA: usize = 4095;

/// How the names of directories in a bundle's room begin on which something is mounted; no
/// container's id has its last character.
pub(super) const MOUNTED: &str = "mounted+";

/// Why a root file system is not there.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A mount cannot be carried out.
    #[error("cannot mount the {kind} root file system on {}", target.display())]
    Mount {
        /// Its type.
        kind: String,
        /// Where.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Its place leads out of the bundle.
    #[error("the root file system's mount on {0:?} leads out of the bundle")]
    Target(String),
    /// A mapping of ids that is none.
    #[error("{0:?} is no mapping of ids; it has the form CONTAINER:HOST:LENGTH")]
    Mapping(String),
    /// It cannot be unmounted.
    #[error("cannot unmount {}", .0.display())]
    Unmount(PathBuf, #[source] io::Error),
}

/// Carries out containerd's mounts in `target`. `room` is a directory for what exists for a
/// moment.
///
/// # Errors
/// Names the mount; nothing is mounted then.
pub fn make(mounts: &[Mount], target: &Path, room: &Path) -> Result<(), RootfsError> {
    let made = mounts.iter().try_for_each(|one| {
        let target = inside(target, &one.target)?;
        mount_one(one, &target, room).map_err(|source| RootfsError::Mount {
            kind: one.type_.clone(),
            target,
            source,
        })
    });
    if made.is_err() {
        // The error is what counts.
        let _ = remove(target);
    }
    made
}

/// Unmounts everything there is on `target`; nothing is as good. The container's processes
/// have ended, so nobody is waited for.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(target: &Path) -> Result<(), RootfsError> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or it is not there at all.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(RootfsError::Unmount(target.to_owned(), error.into())),
        }
    }
}

/// Unmounts what is mounted in a bundle's room.
pub fn clear(room: &Path) {
    let entries = fs::read_dir(room).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_mounted(&entry.file_name())) {
        // What stays mounted is told when the room cannot be removed.
        let _ = remove(&entry.path());
    }
}

fn is_mounted(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(MOUNTED))
}

/// A mount's place, which containerd gives relative to the root file system.
fn inside(root: &Path, target: &str) -> Result<PathBuf, RootfsError> {
    let mut path = root.to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            _ => return Err(RootfsError::Target(target.to_owned())),
        }
    }
    Ok(path)
}

fn mount_one(one: &Mount, target: &Path, room: &Path) -> io::Result<()> {
    let options = Options::of(&one.options)?;
    fs::create_dir_all(target)?;
    if one.type_ == "bind" || options.bind {
        return bind(one, target, &options);
    }
    let mut lowers = Lowers::default();
    let mut data = options.data.clone();
    if one.type_ == "overlay" && !options.uids.is_empty() {
        lowers.map(&mut data, &options, room)?;
    }
    let (directory, data) = shorten(data)?;
    let data = CString::new(data)?;
    let go = || {
        let data = data.as_c_str();
        mount(&one.source, target, &one.type_, options.flags, data)
    };
    match directory {
        None => go()?,
        Some(directory) => within(&directory, || Ok(go()?))?,
    }
    Ok(())
}

fn bind(one: &Mount, target: &Path, options: &Options) -> io::Result<()> {
    if options.uids.is_empty() {
        if options.recursive {
            mount_bind_recursive(&one.source, target)?;
        } else {
            mount_bind(&one.source, target)?;
        }
    } else {
        let tree = runtime::mapped_mount(Path::new(&one.source), &options.uids, &options.gids)?;
        attach(tree.as_fd(), target)?;
    }
    if !options.flags.is_empty() {
        mount_remount(target, MountFlags::BIND | options.flags, "").inspect_err(|_| {
            let _ = unmount(target, UnmountFlags::DETACH);
        })?;
    }
    Ok(())
}

fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// What a mount's options say.
struct Options {
    flags: MountFlags,
    bind: bool,
    recursive: bool,
    /// For the file system, in the form of mount(2).
    data: Vec<String>,
    /// The ids that it is to be shown with, by those that it has.
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Options {
    fn of(list: &[String]) -> io::Result<Self> {
        let mut options = Self {
            flags: MountFlags::empty(),
            bind: false,
            recursive: false,
            data: Vec::new(),
            uids: Vec::new(),
            gids: Vec::new(),
        };
        for option in list {
            match option.as_str() {
                "" | "rw" | "defaults" | "suid" | "dev" | "exec" => {}
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "ro" => options.flags |= MountFlags::RDONLY,
                "nosuid" => options.flags |= MountFlags::NOSUID,
                "nodev" => options.flags |= MountFlags::NODEV,
                "noexec" => options.flags |= MountFlags::NOEXEC,
                "noatime" => options.flags |= MountFlags::NOATIME,
                "nodiratime" => options.flags |= MountFlags::NODIRATIME,
                "relatime" => options.flags |= MountFlags::RELATIME,
                "strictatime" => options.flags |= MountFlags::STRICTATIME,
                "sync" => options.flags |= MountFlags::SYNCHRONOUS,
                "dirsync" => options.flags |= MountFlags::DIRSYNC,
                other => match other.split_once('=') {
                    Some(("uidmap", map)) => options.uids = mappings(map)?,
                    Some(("gidmap", map)) => options.gids = mappings(map)?,
                    _ => options.data.push(other.to_owned()),
                },
            }
        }
        Ok(options)
    }
}

/// Ids in containerd's form: `CONTAINER:HOST:LENGTH`, several with commas.
fn mappings(text: &str) -> io::Result<Vec<LinuxIdMapping>> {
    let mapping = |text: &str| {
        let numbers: Option<Vec<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
        let Some([container, host, length]) = numbers.as_deref() else {
            return None;
        };
        LinuxIdMappingBuilder::default()
            .container_id(*container)
            .host_id(*host)
            .size(*length)
            .build()
            .ok()
    };
    let wrong = || io::Error::other(RootfsError::Mapping(text.to_owned()));
    text.split(',')
        .map(|part| mapping(part).ok_or_else(wrong))
        .collect()
}

/// Layers with other ids, mounted for the moment in which the overlay takes them.
#[derive(Default)]
struct Lowers(Vec<PathBuf>);

impl Lowers {
    fn map(&mut self, data: &mut [String], options: &Options, room: &Path) -> io::Result<()> {
        for option in data {
            let Some(list) = option.strip_prefix("lowerdir=") else {
                continue;
            };
            let mut mapped = Vec::new();
            for lower in list.split(':') {
                let tree = runtime::mapped_mount(Path::new(lower), &options.uids, &options.gids)?;
                let place = room.join(format!("{MOUNTED}{}", self.0.len()));
                fs::create_dir_all(&place)?;
                self.0.push(place.clone());
                attach(tree.as_fd(), &place)?;
                // The overlay's own copy must not follow when this one is unmounted.
                mount_change(&place, MountPropagationFlags::PRIVATE)?;
                mapped.push(place.display().to_string());
            }
            *option = format!("lowerdir={}", mapped.join(":"));
        }
        Ok(())
    }
}

impl Drop for Lowers {
    fn drop(&mut self) {
        for place in &self.0 {
            // Those that are left go with the room.
            let _ = unmount(place, UnmountFlags::DETACH);
            let _ = fs::remove_dir(place);
        }
    }
}

/// A mount's data as the kernel takes it. Where a page does not hold it, the layers' common
/// directory is taken away, in which the caller has to be then.
fn shorten(mut data: Vec<String>) -> io::Result<(Option<PathBuf>, String)> {
    let text = data.join(",");
    if text.len() <= MAX_DATA {
        return Ok((None, text));
    }
    let mut directory = None;
    for option in &mut data {
        let Some(list) = option.strip_prefix("lowerdir=") else {
            continue;
        };
        let layers: Vec<&str> = list.split(':').collect();
        let common = common_directory(&layers);
        directory = Some(PathBuf::from(common));
        let relative = layers.iter().map(|layer| &layer[common.len()..]);
        *option = format!("lowerdir={}", relative.collect::<Vec<_>>().join(":"));
    }
    let text = data.join(",");
    if text.len() > MAX_DATA {
        return Err(io::Error::other(format!(
            "its options have {} bytes, and the kernel takes {MAX_DATA}: the image has too many \
             layers",
            text.len()
        )));
    }
    Ok((directory, text))
}

/// The directory that all paths have in common, with its last slash.
fn common_directory<'a>(paths: &[&'a str]) -> &'a str {
    let Some((first, rest)) = paths.split_first() else {
        return "";
    };
    let same = rest.iter().fold(first.len(), |length, path| {
        let pairs = first.bytes().zip(path.bytes()).take(length);
        pairs.take_while(|(a, b)| a == b).count()
    });
    let end = first[..same].rfind('/').map_or(0, |slash| slash + 1);
    &first[..end]
}

/// Does something in a directory. The process has one thread, so nobody else is led astray.
fn within<T>(directory: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = std::env::current_dir()?;
    std::env::set_current_dir(directory)?;
    let done = act();
    std::env::set_current_dir(home)?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_lose_what_they_have_in_common_only_when_there_are_too_many() {
        let layer = |n: usize| format!("/var/lib/snapshots/{n}/fs");
        let few = vec![format!("lowerdir={}:{}", layer(1), layer(2))];
        assert_eq!(shorten(few.clone()).unwrap(), (None, few[0].clone()));
        let many: Vec<String> = (0..200).map(layer).collect();
        let data = vec!["index=off".into(), format!("lowerdir={}", many.join(":"))];
        let (directory, text) = shorten(data).unwrap();
        assert_eq!(directory.unwrap(), Path::new("/var/lib/snapshots/"));
        assert!(text.starts_with("index=off,lowerdir=0/fs:1/fs:"), "{text}");
        assert!(text.ends_with(":199/fs"));
        let endless = vec![format!("upperdir=/{}", "x".repeat(MAX_DATA))];
        assert!(shorten(endless).is_err());
    }

    #[test]
    fn ids_and_flags_are_told_from_the_file_systems_own_options() {
        let list = ["ro", "lowerdir=/a", "uidmap=0:1000:5,5:9:1", "nosuid"].map(str::to_owned);
        let options = Options::of(&list).unwrap();
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(options.data, ["lowerdir=/a"]);
        assert_eq!(options.uids.len(), 2);
        assert_eq!(options.uids[0].host_id(), 1000);
        for wrong in ["uidmap=", "uidmap=1:2", "uidmap=a:b:c", "uidmap=1:2:3:4"] {
            assert!(Options::of(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places_stay_in_the_bundle() {
        let root = Path::new("/b/rootfs");
        assert_eq!(inside(root, "").unwrap(), root);
        assert_eq!(inside(root, "/etc").unwrap(), root.join("etc"));
        assert!(inside(root, "../x").is_err());
    }

    #[test]
    fn nothing_mounted_is_removed_already() {
        let directory = tempfile::tempdir().unwrap();
        remove(directory.path()).unwrap();
        remove(&directory.path().join("none")).unwrap();
    }
}
