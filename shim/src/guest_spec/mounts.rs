//! The mounts of a spec: file systems of the kernel stay, what is bound from the
//! host becomes something that the guest has.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use oci_spec::runtime::Mount;
use protocol::guest::File;
use protocol::ids;

use super::SpecError;

/// Largest file that is copied into the guest.
const MAX_FILE: u64 = 1 << 20;

/// All copied files of a container together: they travel in one message, whose
/// size ttrpc bounds at 4 MiB.
const MAX_FILES: u64 = 3 << 20;

/// File systems that need nothing of the host.
const KERNEL: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// The guest's mounts for the host's, and the files that they name.
pub(super) fn edit(host: &[Mount]) -> Result<(Vec<Mount>, Vec<File>), SpecError> {
    let mut mounts = Vec::with_capacity(host.len());
    let mut files = Vec::new();
    let mut room = MAX_FILES;
    for mount in host {
        let options = mount.options().as_deref().unwrap_or_default();
        let is = |wanted: &[&str]| {
            options
                .iter()
                .any(|option| wanted.contains(&option.as_str()))
        };
        let mapped = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if is(&["idmap", "ridmap"]) || mapped(mount.uid_mappings()) || mapped(mount.gid_mappings())
        {
            return Err(SpecError::UserNamespace);
        }

        let kind = mount.typ().as_deref().unwrap_or("none");
        let bind = kind == "bind" || is(&["bind", "rbind"]);
        let mut guest = Mount::default();
        guest
            .set_destination(mount.destination().clone())
            .set_typ(mount.typ().clone())
            .set_source(mount.source().clone())
            .set_options(mount.options().clone());
        if bind {
            let source = mount
                .source()
                .as_deref()
                .ok_or_else(|| refuse(mount, "a bind mount needs a source".into()))?;
            let inside = bind_source(mount, source, &mut files, &mut room)?;
            guest.set_source(Some(inside.into()));
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
    Ok((mounts, files))
}

fn bind_source(
    mount: &Mount,
    source: &Path,
    files: &mut Vec<File>,
    room: &mut u64,
) -> Result<String, SpecError> {
    // containerd makes a tmpfs on the host for the pod's shared memory; the
    // agent makes the one that counts.
    if mount.destination() == Path::new("/dev/shm") && source.ends_with("shm") {
        return Ok(ids::SHM_PATH.to_owned());
    }
    let failed = |error: std::io::Error| refuse(mount, format!("cannot be read: {error}"));
    let kind = std::fs::metadata(source).map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(refuse(
            mount,
            "directory volumes are not supported by this version; \
             use files of up to 1 MiB (subPath) or a shared-kernel runtime handler"
                .into(),
        ));
    }
    if !kind.is_file() {
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
    // Not blocking, in case that the file has become a FIFO since.
    let mut file = std::fs::OpenOptions::new()
        .read(true)
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
        return Err(refuse(
            mount,
            format!(
                "the file has {} bytes; files of up to {MAX_FILE} bytes can be given to the VM",
                metadata.len()
            ),
        ));
    }
    *room = room.checked_sub(size).ok_or_else(|| {
        refuse(
            mount,
            format!("the container's files are more than {MAX_FILES} bytes together"),
        )
    })?;
    files.push(File {
        data,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        ..Default::default()
    });
    Ok(format!("{}{}", ids::FILE_SOURCE, files.len() - 1))
}

fn refuse(mount: &Mount, reason: String) -> SpecError {
    let path = |path: &Path| path.display().to_string();
    SpecError::Mount {
        destination: path(mount.destination()),
        source_path: mount.source().as_deref().map_or("none".to_owned(), path),
        reason,
    }
}
