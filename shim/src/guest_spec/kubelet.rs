//! What the paths of kubelet and containerd tell about a mount's source: which
//! volumes only live as long as the pod, and which files were made for it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Names of the files that containerd makes for a pod.
const SANDBOX_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// A part of an emptyDir volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EmptyDir {
    /// The volume's name in the pod.
    pub name: String,
    /// The whole volume on the host.
    pub path: PathBuf,
    /// Below it, what is mounted (subPath); empty: all.
    pub part: PathBuf,
}

/// The plain parts of an absolute path; `None` when it has others.
fn parts(path: &Path) -> Option<Vec<&str>> {
    path.components()
        .skip(1)
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect()
}

/// Whether it is a file that containerd or kubelet made for this pod: its names and
/// addresses. They are not written again while the pod runs.
pub(super) fn is_sandbox_file(source: &Path) -> bool {
    match parts(source).as_deref() {
        Some([.., "sandboxes", _, name]) => SANDBOX_FILES.contains(name),
        Some([.., "pods", _, "etc-hosts"]) => true,
        _ => false,
    }
}

/// Whether it is the file in which a container leaves its termination message:
/// `pods/UID/containers/NAME/HASH`.
pub(super) fn is_termination_log(source: &Path) -> bool {
    matches!(parts(source).as_deref(), Some([.., "pods", _, "containers", _, hash])
        if hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The emptyDir volume that a source is, or a part of.
///
/// # Errors
/// When it is a part whose place in the volume cannot be told.
pub(super) fn empty_dir(source: &Path) -> io::Result<Option<EmptyDir>> {
    let Some(parts) = parts(source) else {
        return Ok(None);
    };
    match parts.as_slice() {
        [.., "pods", _, "volumes", "kubernetes.io~empty-dir", name] => Ok(Some(EmptyDir {
            name: (*name).to_owned(),
            path: source.to_owned(),
            part: PathBuf::new(),
        })),
        // subPath: kubelet binds the part to a place of its own.
        [.., "pods", _, "volume-subpaths", name, _, _] => {
            let Some(pod) = source.ancestors().nth(4) else {
                return Ok(None);
            };
            let path = pod.join("volumes/kubernetes.io~empty-dir").join(name);
            if !path.is_dir() {
                return Ok(None);
            }
            let table = std::fs::read_to_string("/proc/self/mountinfo")?;
            let part = below(&table, &path, source).ok_or_else(|| {
                io::Error::other(format!("it is not mounted from {}", path.display()))
            })?;
            Ok(Some(EmptyDir {
                name: (*name).to_owned(),
                path,
                part,
            }))
        }
        _ => Ok(None),
    }
}

/// Whether something is mounted below a directory.
pub(super) fn has_mounts_below(source: &Path) -> bool {
    let Ok(source) = source.canonicalize() else {
        return false;
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(entry)
        .any(|mount| mount.point != source && mount.point.starts_with(&source))
}

/// Where below `directory` that is which is mounted on `point`.
fn below(table: &str, directory: &Path, point: &Path) -> Option<PathBuf> {
    let mounts: Vec<_> = table.lines().filter_map(entry).collect();
    let bound = mounts.iter().rfind(|mount| mount.point == point)?;
    // The last of the mounts that are the longest part of the path is the one seen.
    let around = mounts
        .iter()
        .filter(|mount| directory.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())?;
    if around.device != bound.device {
        return None;
    }
    let root = around
        .root
        .join(directory.strip_prefix(&around.point).ok()?);
    Some(bound.root.strip_prefix(root).ok()?.to_owned())
}

/// A line of mountinfo.
struct Entry<'a> {
    device: &'a str,
    root: PathBuf,
    point: PathBuf,
}

fn entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(' ').skip(2);
    Some(Entry {
        device: fields.next()?,
        root: unescape(fields.next()?),
        point: unescape(fields.next()?),
    })
}

/// The kernel writes blanks and backslashes as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_made_for_the_pod_are_known_by_their_path() {
        let sandbox = "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/abc";
        for name in SANDBOX_FILES {
            assert!(is_sandbox_file(&Path::new(sandbox).join(name)));
        }
        assert!(is_sandbox_file(Path::new(
            "/var/lib/kubelet/pods/u/etc-hosts"
        )));
        for other in ["/etc/hosts", "/etc/resolv.conf", "/x/sandboxes/abc/shm"] {
            assert!(!is_sandbox_file(Path::new(other)), "{other}");
        }
        let log = "/var/lib/kubelet/pods/u/containers/web/0a1b2c3d";
        assert!(is_termination_log(Path::new(log)));
        assert!(!is_termination_log(Path::new(
            "/pods/u/containers/web/data"
        )));
    }

    #[test]
    fn an_empty_dir_is_known_by_its_path() {
        let path = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/cache";
        let found = empty_dir(Path::new(path)).unwrap().unwrap();
        assert_eq!(
            (found.name.as_str(), found.part.as_os_str().len()),
            ("cache", 0)
        );
        for other in [
            "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~secret/cache",
            "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/cache/..",
            "/data",
        ] {
            assert_eq!(empty_dir(Path::new(other)).unwrap(), None, "{other}");
        }
    }

    #[test]
    fn a_part_is_found_in_the_mount_table() {
        let table = "\
            20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 20 0:40 / /pods/u/volumes/e/mem rw - tmpfs tmpfs rw\n\
            31 20 8:1 /pods/u/volumes/e/disk/a\\040b/c /pods/u/volume-subpaths/disk/web/0 rw - ext4 /dev/sda1 rw\n\
            32 20 0:40 /x /pods/u/volume-subpaths/mem/web/1 rw - tmpfs tmpfs rw\n\
            33 20 0:41 /x /pods/u/volume-subpaths/mem/web/2 rw - tmpfs tmpfs rw\n";
        let part = |volume: &str, point: &str| {
            below(
                table,
                &Path::new("/pods/u/volumes/e").join(volume),
                &Path::new("/pods/u/volume-subpaths").join(point),
            )
        };
        assert_eq!(part("disk", "disk/web/0"), Some("a b/c".into()));
        assert_eq!(part("mem", "mem/web/1"), Some("x".into()));
        assert_eq!(part("mem", "mem/web/2"), None);
        assert_eq!(part("mem", "mem/web/3"), None);
    }
}
