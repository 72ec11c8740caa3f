//! The mounts of a spec: file systems of the kernel stay, what is bound from the
//! host becomes something that the guest has.

use std::io::{Read, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};
use oci_spec::runtime::Mount;
use protocol::guest::{Directory, File};
use protocol::ids;

use super::kubelet::{self, EmptyDir};
use super::{SpecError, Wanted};
use crate::pod::Etc;
use crate::volumes::{DiskSource, EmptyDirSource, Ids, ReadOnly, ShareSource, VolumeSource};

/// Largest file that is copied into the guest.
const MAX_FILE: u64 = 1 << 20;

/// All copied files of a container together: they travel in one message, whose
/// size ttrpc bounds at 4 MiB.
const MAX_FILES: u64 = 3 << 20;

/// File systems that need nothing of the host.
const KERNEL: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// The guest's mounts for the host's; what they need goes to `wanted`.
pub(super) fn edit(host: &[Mount], wanted: &mut Wanted) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = Vec::with_capacity(host.len());
    let mut room = MAX_FILES;
    for mount in host {
        let kind = mount.typ().as_deref().unwrap_or("none");
        let bind = kind == "bind" || has(mount, &["bind", "rbind"]);
        let mut guest = Mount::default();
        guest
            .set_destination(mount.destination().clone())
            .set_typ(mount.typ().clone())
            .set_source(mount.source().clone())
            .set_options(mount.options().clone())
            .set_uid_mappings(mount.uid_mappings().clone())
            .set_gid_mappings(mount.gid_mappings().clone());
        if bind {
            let source = mount
                .source()
                .as_deref()
                .ok_or_else(|| refuse(mount, "a bind mount needs a source".into()))?;
            let Some(inside) = bind_source(mount, source, wanted, &mut room)? else {
                continue;
            };
            guest.set_source(Some(inside.into()));
            if keeps_submounts_writable(mount, source) {
                // The guest finds the mounts below when it looks for them, and gives
                // them the flags of the one above. The host refuses writes all the same.
                let options = mount.options().iter().flatten();
                let rest = options.filter(|option| *option != "ro").cloned().collect();
                guest.set_options(Some(rest));
            }
        } else if !KERNEL.contains(&kind) {
            return Err(refuse(
                mount,
                format!(
                    "file system type `{kind}` is not supported in the VM; supported are {}",
                    KERNEL.join(", ")
                ),
            ));
        }
        mounts.push(guest);
    }
    Ok(mounts)
}

/// Adds what containerd mounts in a pod's containers unless it left the sandbox to
/// us: files of /etc, and the pod's shared memory in place of one of the
/// container's own.
/// `shm` is where that is, `source` says where a file is.
pub(crate) fn add_pods(
    mounts: &mut Vec<Mount>,
    etc: &Etc,
    shm: &str,
    mut source: impl FnMut(&str, &[u8]) -> String,
) {
    const SHM: &str = "/dev/shm";
    mounts.retain(|mount| {
        mount.destination() != Path::new(SHM) || mount.typ().as_deref() != Some("tmpfs")
    });
    let bind = |destination: &str, source: String| {
        let mut mount = Mount::default();
        let options = ["rbind", "rprivate", "rw"].map(str::to_owned);
        mount
            .set_destination(destination.into())
            .set_typ(Some("bind".into()))
            .set_source(Some(source.into()))
            .set_options(Some(options.into()));
        mount
    };
    let is_free = |mounts: &[Mount], path: &str| {
        !mounts
            .iter()
            .any(|mount| mount.destination() == Path::new(path))
    };
    for (path, data) in etc.files() {
        if is_free(mounts, path) {
            mounts.push(bind(path, source(path, data)));
        }
    }
    if is_free(mounts, SHM) {
        mounts.push(bind(SHM, shm.to_owned()));
    }
}

fn has(mount: &Mount, wanted: &[&str]) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options
        .iter()
        .any(|option| wanted.contains(&option.as_str()))
}

/// What the guest mounts for a source of the host; `None`: no mount, a device node.
fn bind_source(
    mount: &Mount,
    source: &Path,
    wanted: &mut Wanted,
    room: &mut u64,
) -> Result<Option<String>, SpecError> {
    // containerd makes a tmpfs on the host for the pod's shared memory; the
    // agent makes the one that counts.
    if mount.destination() == Path::new("/dev/shm") && source.ends_with("shm") {
        return Ok(Some(ids::SHM_PATH.to_owned()));
    }
    let failed = |error: std::io::Error| refuse(mount, format!("cannot be read: {error}"));
    let metadata = std::fs::metadata(source).map_err(failed)?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        wanted.disks.push(DiskSource {
            path: mount.destination().clone(),
            number: metadata.rdev(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            access: if read_only(mount) == ReadOnly::No {
                "rw".into()
            } else {
                "r".into()
            },
        });
        return Ok(None);
    }
    if !kind.is_dir() && !kind.is_file() {
        let kind = if kind.is_socket() {
            "socket"
        } else if kind.is_fifo() {
            "FIFO"
        } else {
            "device"
        };
        return Err(refuse(
            mount,
            format!("a {kind} of the host cannot be shared with the VM"),
        ));
    }
    if has(mount, &["shared", "rshared"]) {
        return Err(refuse(
            mount,
            "mounts made in the VM cannot appear on the host; \
             use mount propagation HostToContainer or None instead of Bidirectional"
                .into(),
        ));
    }
    if kind.is_file() && metadata.len() <= MAX_FILE {
        let give_back = kubelet::is_termination_log(source) && read_only(mount) == ReadOnly::No;
        if give_back || kubelet::is_sandbox_file(source) {
            return copy(mount, source, give_back, wanted, room).map(Some);
        }
    }
    let share = ShareSource {
        source: source.to_owned(),
        destination: mount.destination().clone(),
        recursive: last(mount, "rbind", "bind"),
        follow: has(mount, &["slave", "rslave"]),
        read_only: read_only(mount),
        ids: ids(mount),
    };
    let volume = match kubelet::empty_dir(source).map_err(failed)? {
        Some(empty) => VolumeSource::EmptyDir(Box::new(empty_dir(mount, empty, share)?)),
        None => VolumeSource::Share(share),
    };
    wanted.volumes.push(volume);
    Ok(Some(format!(
        "{}{}",
        ids::VOLUME_SOURCE,
        wanted.volumes.len() - 1
    )))
}

/// Whether of two options the first is the last one given.
fn last(mount: &Mount, yes: &str, no: &str) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options
        .iter()
        .rfind(|option| [yes, no].contains(&option.as_str()))
        .is_some_and(|option| option == yes)
}

fn ids(mount: &Mount) -> Option<Ids> {
    let list = |list: &Option<Vec<_>>| list.clone().unwrap_or_default();
    let ids = Ids {
        uids: list(mount.uid_mappings()),
        gids: list(mount.gid_mappings()),
        recursive: has(mount, &["ridmap"]),
    };
    (!ids.uids.is_empty() && !ids.gids.is_empty()).then_some(ids)
}

fn read_only(mount: &Mount) -> ReadOnly {
    if last(mount, "rro", "rrw") {
        ReadOnly::Recursively
    } else if last(mount, "ro", "rw") {
        ReadOnly::Top
    } else {
        ReadOnly::No
    }
}

/// Whether it is read-only but for mounts below it, which there are or may be.
fn keeps_submounts_writable(mount: &Mount, source: &Path) -> bool {
    read_only(mount) == ReadOnly::Top
        && last(mount, "rbind", "bind")
        && (has(mount, &["slave", "rslave"]) || kubelet::has_mounts_below(source))
}

/// What an emptyDir is in the guest, should it be made there.
fn empty_dir(
    mount: &Mount,
    empty: EmptyDir,
    share: ShareSource,
) -> Result<EmptyDirSource, SpecError> {
    let failed = |error: std::io::Error| refuse(mount, format!("cannot be read: {error}"));
    let metadata = std::fs::metadata(&empty.path).map_err(failed)?;
    let system = statfs(&empty.path).map_err(|error| failed(error.into()))?;
    if system.filesystem_type() == HUGETLBFS_MAGIC {
        return Err(refuse(
            mount,
            "an emptyDir of huge pages cannot be had in the VM; use medium Memory".into(),
        ));
    }
    let memory = system.filesystem_type() == TMPFS_MAGIC
        // A kubelet directory that is all in memory does not make its volumes so.
        && metadata.dev() != parent_device(&empty.path).map_err(failed)?;
    let size = if memory {
        system
            .blocks()
            .saturating_mul(u64::try_from(system.block_size()).unwrap_or_default())
    } else {
        0
    };
    let part = empty
        .part
        .to_str()
        .ok_or_else(|| refuse(mount, "its path in the volume is not UTF-8".into()))?;
    Ok(EmptyDirSource {
        host: empty.path.clone(),
        directory: Directory {
            name: empty.name.clone(),
            path: part.to_owned(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            memory,
            size_bytes: size,
            ..Default::default()
        },
        share,
    })
}

fn parent_device(path: &Path) -> std::io::Result<u64> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(std::fs::metadata(parent)?.dev())
}

/// Has a small file travel with the spec.
fn copy(
    mount: &Mount,
    source: &Path,
    give_back: bool,
    wanted: &mut Wanted,
    room: &mut u64,
) -> Result<String, SpecError> {
    let failed = |error: std::io::Error| refuse(mount, format!("cannot be read: {error}"));
    // Not blocking, in case that the file has become a FIFO since.
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(give_back)
        .custom_flags(libc::O_NONBLOCK)
        .open(source)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refuse(mount, "changed while it was read; try again".into()));
    }
    let mut data = Vec::new();
    Read::by_ref(&mut file)
        .take(MAX_FILE + 1)
        .read_to_end(&mut data)
        .map_err(failed)?;
    let size = data.len() as u64;
    if size > MAX_FILE {
        return Err(refuse(mount, "grew while it was read; try again".into()));
    }
    *room = room.checked_sub(size).ok_or_else(|| {
        refuse(
            mount,
            format!("the container's files are more than {MAX_FILES} bytes together"),
        )
    })?;
    wanted.files.push(File {
        data,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        give_back,
        ..Default::default()
    });
    let index = wanted.files.len() - 1;
    if give_back {
        file.rewind().map_err(failed)?;
        wanted
            .given_back
            .insert(u32::try_from(index).unwrap_or(u32::MAX), file);
    }
    Ok(format!("{}{index}", ids::FILE_SOURCE))
}

fn refuse(mount: &Mount, reason: String) -> SpecError {
    let path = |path: &Path| path.display().to_string();
    SpecError::Mount {
        destination: path(mount.destination()),
        source_path: mount.source().as_deref().map_or("none".to_owned(), path),
        reason,
    }
}
