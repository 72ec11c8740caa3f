//! The pod's cgroup (version 2), in which its VMM runs.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that a pod's cgroup is wanted to have.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// How long killed processes may take to leave.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// A cgroup of one sandbox.
#[derive(Clone, Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

/// Why a cgroup is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has no unified hierarchy.
    #[error(
        "{ROOT} is not a cgroup v2 hierarchy; boot the host with systemd.unified_cgroup_hierarchy=1"
    )]
    NotUnified,
    /// The spec's path leads out of the hierarchy.
    #[error("the OCI spec's cgroupsPath {0} is neither a path nor slice:prefix:name")]
    Path(String),
    /// It cannot be made, read or removed.
    #[error("cgroup {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

impl Cgroup {
    /// Makes the cgroup that the OCI spec's `cgroupsPath` names: a path
    /// (cgroupfs driver) or `slice:prefix:name` (systemd driver).
    ///
    /// # Errors
    /// When the host has no cgroup v2, or the path is wrong or cannot be made.
    pub fn create(cgroups_path: &Path) -> Result<Self, CgroupError> {
        let root = Path::new(ROOT);
        if !root.join("cgroup.controllers").exists() {
            return Err(CgroupError::NotUnified);
        }
        let dir = place(cgroups_path)?;
        fs::create_dir_all(&dir).map_err(|error| CgroupError::Io(dir.clone(), error))?;
        // Each controller by itself: one that is missing must not keep the
        // others off. What cannot be had here the pod goes without.
        let mut parent = root.to_owned();
        for part in dir.strip_prefix(root).unwrap_or(&dir) {
            for controller in CONTROLLERS {
                let _ = fs::write(
                    parent.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                );
            }
            parent.push(part);
        }
        Ok(Self { dir })
    }

    /// A cgroup that exists, or did.
    pub fn existing(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills every process in it and below.
    ///
    /// # Errors
    /// Unless it is gone already.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match fs::write(self.dir.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CgroupError::Io(self.dir.clone(), error))
            }
            _ => Ok(()),
        }
    }

    /// Removes it, waiting for killed processes to leave. Blocks.
    ///
    /// # Errors
    /// When processes stay in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let mut pause = Duration::from_micros(200);
        loop {
            match fs::remove_dir(&self.dir) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(error) => return Err(CgroupError::Io(self.dir.clone(), error)),
            }
        }
    }
}

/// The directory of the cgroup that the OCI spec's `cgroupsPath` names.
///
/// # Errors
/// When the path is wrong.
pub fn place(cgroups_path: &Path) -> Result<PathBuf, CgroupError> {
    let relative = relative_path(cgroups_path)
        .ok_or_else(|| CgroupError::Path(cgroups_path.display().to_string()))?;
    Ok(Path::new(ROOT).join(relative))
}

/// The directory below the root for a `cgroupsPath`.
fn relative_path(cgroups_path: &Path) -> Option<PathBuf> {
    let text = cgroups_path.to_str()?;
    if let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] {
        return systemd_path(slice, prefix, name);
    }
    let mut path = PathBuf::new();
    for part in cgroups_path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

/// systemd nests `a-b.slice` in `a.slice`; the pod is a scope in its slice.
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Option<PathBuf> {
    let plain = |part: &str| !part.is_empty() && !part.contains('/') && part != "." && part != "..";
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let stem = slice.strip_suffix(".slice")?;
    if !plain(stem) || !plain(name) || prefix.contains('/') {
        return None;
    }
    let mut path = PathBuf::new();
    // "-.slice" is the root.
    if stem != "-" {
        let mut nested = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return None;
            }
            if !nested.is_empty() {
                nested.push('-');
            }
            nested.push_str(part);
            path.push(format!("{nested}.slice"));
        }
    }
    path.push(if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    });
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<String> {
        relative_path(Path::new(text)).map(|path| path.display().to_string())
    }

    #[test]
    fn cgroupfs_paths_stay_below_the_root() {
        assert_eq!(path("/k8s.io/abc").as_deref(), Some("k8s.io/abc"));
        assert_eq!(
            path("kubepods/pod1/abc").as_deref(),
            Some("kubepods/pod1/abc")
        );
        for wrong in ["/../etc", "a/../../b", "/", ""] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn systemd_slices_nest() {
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:abc").as_deref(),
            Some(
                "kubepods.slice/kubepods-burstable.slice/\
                 kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
            )
        );
        assert_eq!(
            path(":cri:abc").as_deref(),
            Some("system.slice/cri-abc.scope")
        );
        assert_eq!(path("-.slice::abc").as_deref(), Some("abc.scope"));
        for wrong in [
            "pod1:cri:abc",
            "a--b.slice:cri:abc",
            "a.slice:cri:../x",
            "../a.slice:c:d",
        ] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_needs_no_removal() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::existing(dir.path().join("none"));
        cgroup.kill().unwrap();
        cgroup.remove().unwrap();
    }
}
