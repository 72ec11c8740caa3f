//! Where in the cgroup file system a container goes.

use std::path::{Component, Path, PathBuf};

/// The cgroup of a container relative to the root of a hierarchy: `linux.cgroupsPath`, by default the id. A path
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
