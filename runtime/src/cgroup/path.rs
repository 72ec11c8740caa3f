//! Where in the cgroup file system a container goes.

use std::path::{Component, Path, PathBuf};

use super::Version;
use crate::namespaces::is_root_of_the_host;

/// Where a `linux.cgroupsPath` without a leading slash begins: at the root, or where the caller is
/// not root beside the cgroup that the caller is in. That one has the caller's processes, so it
/// cannot hand controllers down; the one above it is what users are given.
pub(crate) fn start_of_relative() -> PathBuf {
    if is_root_of_the_host() || Version::of_host() == Version::V1 {
        return PathBuf::new();
    }
    let table = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    beside_own(&table)
}

fn beside_own(table: &str) -> PathBuf {
    let own = table.lines().find_map(|line| line.strip_prefix("0::/"));
    let above = own.and_then(|own| Path::new(own).parent());
    let inside = |path: &&Path| {
        // Else it is outside of what the caller's cgroup namespace shows.
        path.components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    above.filter(inside).unwrap_or(Path::new("")).to_owned()
}

/// The cgroup of a container relative to the root of a hierarchy: `linux.cgroupsPath`, by default
/// the id, both from `start` on. A path of the form `slice:prefix:name`, which asks for systemd's
/// names, becomes the directories that systemd would use.
pub(crate) fn container_path(
    path: Option<&Path>,
    id: &str,
    start: impl FnOnce() -> PathBuf,
) -> Result<PathBuf, String> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(start().join(id));
    };
    let text = path.to_str().ok_or("is not text")?;
    let parts: Vec<&str> = text.split(':').collect();
    let path = match parts[..] {
        [slice, prefix, name] if !text.contains('/') => systemd_path(slice, prefix, name)?,
        _ if path.is_absolute() => path.to_owned(),
        _ => start().join(path),
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

    fn path(path: &str) -> Result<PathBuf, String> {
        container_path(Some(Path::new(path)), "c1", || "u/a".into())
    }

    #[test]
    fn the_id_is_the_default() {
        let default = container_path(None, "c1", PathBuf::new).unwrap();
        assert_eq!(default, Path::new("c1"));
        assert_eq!(path("/k/c2").unwrap(), Path::new("k/c2"));
    }

    #[test]
    fn relative_paths_begin_at_the_start() {
        let default = container_path(None, "c1", || "u/a".into()).unwrap();
        assert_eq!(default, Path::new("u/a/c1"));
        assert_eq!(path("k/c2").unwrap(), Path::new("u/a/k/c2"));
    }

    #[test]
    fn a_start_is_beside_the_callers_cgroup() {
        for (table, start) in [
            ("0::/u/a/shell\n", "u/a"),
            ("4:memory:/x/y\n0::/u/shell\n", "u"),
            ("0::/init\n", ""),
            ("0::/\n", ""),
            ("0::/../other/shell\n", ""),
            ("4:memory:/x/y\n", ""),
        ] {
            assert_eq!(beside_own(table), Path::new(start), "{table}");
        }
    }

    #[test]
    fn systemd_names_become_its_directories() {
        assert_eq!(
            path("kube-pods-x.slice:cri:abc").unwrap(),
            Path::new("kube.slice/kube-pods.slice/kube-pods-x.slice/cri-abc.scope")
        );
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for lost in ["/a/../../b", "../b", "/"] {
            assert!(path(lost).is_err(), "{lost}");
        }
    }
}
