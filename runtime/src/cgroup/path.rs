//! Where the cgroup file system is, and where in it a container goes.

use std::path::{Component, Path, PathBuf};

use rustix::fs::statfs;

use super::CgroupError;

const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Where cgroup2 is mounted: `/sys/fs/cgroup` where that is one, else the first in the table of
/// mounts (on hosts that still have version 1 it is often `/sys/fs/cgroup/unified`).
pub(crate) fn mount_point() -> Result<PathBuf, CgroupError> {
    let usual = Path::new("/sys/fs/cgroup");
    if statfs(usual).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC) {
        return Ok(usual.to_owned());
    }
    std::fs::read_to_string("/proc/self/mountinfo")
        .ok()
        .and_then(|table| first_cgroup2(&table))
        .ok_or(CgroupError::NotMounted)
}

/// The mount point of the first cgroup2 in a `mountinfo` table whose root is that of the hierarchy.
fn first_cgroup2(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (right.split(' ').next() == Some("cgroup2") && root == "/").then(|| PathBuf::from(point))
    })
}

/// The cgroup of a container relative to the mount: `linux.cgroupsPath`, by default the id. A path
/// of the form `slice:prefix:name`, which asks for systemd's names, becomes the directories that
/// systemd would use.
pub(crate) fn container_path(path: Option<&Path>, id: &str) -> Result<PathBuf, String> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(PathBuf::from(id));
    };
    let text = path.to_str().ok_or("is not text")?;
    let parts: Vec<&str> = text.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] if !text.contains('/') => systemd_path(slice, prefix, name)?,
        _ => path.to_owned(),
    };
    let mut relative = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            _ => return Err(format!("{text:?} must not contain \"..\"")),
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(format!(
            "{text:?} is the root; a container needs a cgroup of its own"
        ));
    }
    Ok(relative)
}

/// `a-b.slice` lies in `a.slice`; a scope is named after its prefix and name.
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Result<PathBuf, String> {
    let mut path = PathBuf::new();
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let stem = slice
        .strip_suffix(".slice")
        .ok_or_else(|| format!("{slice:?} must end with .slice"))?;
    if stem != "-" {
        let mut outer = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return Err(format!("{slice:?} is not a slice of systemd"));
            }
            if !outer.is_empty() {
                outer.push('-');
            }
            outer.push_str(part);
            path.push(format!("{outer}.slice"));
        }
    }
    if name.ends_with(".slice") {
        path.push(name);
    } else if prefix.is_empty() {
        path.push(format!("{name}.scope"));
    } else {
        path.push(format!("{prefix}-{name}.scope"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_among_others() {
        let table = "\
            24 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            25 1 0:23 /part /mnt rw - cgroup2 cgroup2 rw\n\
            26 1 0:23 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            first_cgroup2(table),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
    }

    #[test]
    fn the_id_is_the_default() {
        assert_eq!(container_path(None, "c1").unwrap(), Path::new("c1"));
        assert_eq!(
            container_path(Some(Path::new("/k/c2")), "c1").unwrap(),
            Path::new("k/c2")
        );
    }

    #[test]
    fn systemd_names_become_its_directories() {
        assert_eq!(
            container_path(Some(Path::new("kube-pods-x.slice:cri:abc")), "c1").unwrap(),
            Path::new("kube.slice/kube-pods.slice/kube-pods-x.slice/cri-abc.scope")
        );
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        assert!(container_path(Some(Path::new("/a/../../b")), "c1").is_err());
        assert!(container_path(Some(Path::new("/")), "c1").is_err());
    }
}
