//! What a container on the host's kernel leaves whose shim was killed.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::{room, root, rootfs};
use crate::error::chain;
use crate::guest_spec;
use crate::host::cgroup::{self, Cgroup};

/// Where a pod's first bundle keeps the way to the others: links with their containers' ids.
const MEMBERS: &str = "members+";
/// Beside them, where their cgroups are: containerd may remove a bundle before it calls for the rest.
const CGROUPS: &str = "cgroups+";

/// Keeps the way from a pod's first bundle to one that comes later, and to its cgroup. containerd 2
/// has nothing removed for those when their shim dies, but for the first.
///
/// # Errors
/// When nothing can be written there.
pub(super) fn add_member(home: &Path, id: &str, bundle: &Path, spec: &Spec) -> io::Result<()> {
    if home == bundle {
        return Ok(());
    }
    let keep = |kind: &str, target: &Path| {
        let directory = room(home).join(kind);
        fs::create_dir_all(&directory)?;
        symlink(target, directory.join(id))
    };
    if let Some(cgroup) = cgroup_of(spec) {
        keep(CGROUPS, &cgroup)?;
    }
    keep(MEMBERS, bundle)
}

/// Forgets a bundle.
pub(super) fn remove_member(home: &Path, id: &str) {
    // The first bundle is none of them, and is gone before the last at times.
    for kind in [MEMBERS, CGROUPS] {
        let _ = fs::remove_file(room(home).join(kind).join(id));
    }
}

/// Removes what there is of a bundle's container: its processes, its cgroup, its root file
/// system, its state; of a pod's first bundle, also what there is of the others'. Returns its
/// pid and what could not be removed; the rest is removed all the same. `None`: it is none of
/// this kind, or was removed already.
pub fn of_bundle(bundle: &Path, id: &str) -> Option<(u32, Vec<String>)> {
    let room = room(bundle);
    if !room.exists() {
        return None;
    }
    let mut errors = Vec::new();
    for member in fs::read_dir(room.join(MEMBERS))
        .into_iter()
        .flatten()
        .flatten()
    {
        if let (Ok(bundle), Some(id)) = (fs::read_link(member.path()), member.file_name().to_str())
        {
            match of_bundle(&bundle, id) {
                Some((_, left)) => errors.extend(left),
                None => {
                    let cgroup = fs::read_link(room.join(CGROUPS).join(id));
                    errors.extend(cgroup.ok().and_then(end_cgroup));
                }
            }
        }
    }
    let mut pid = 0;
    match runtime::Container::load(&room, id) {
        Ok(mut container) => {
            pid = container.pid();
            errors.extend(container.delete(true).err().map(|error| chain(&error)));
        }
        // The shim was killed before it had written the state, or after it had removed it;
        // then the spec tells where processes may be.
        Err(_) => {
            let spec = fs::read(bundle.join("config.json")).ok();
            let spec = spec.and_then(|spec| guest_spec::parse(&spec).ok());
            let cgroup = spec.and_then(|spec| cgroup_of(&spec));
            errors.extend(cgroup.and_then(end_cgroup));
        }
    }
    let rootfs = rootfs::remove(&root(bundle));
    errors.extend(rootfs.err().map(|error| chain(&error)));
    rootfs::clear(&room);
    let removed = fs::remove_dir_all(&room);
    errors.extend(removed.err().map(|error| chain(&error)));
    Some((pid, errors))
}

/// Where the cgroup is that a spec names.
fn cgroup_of(spec: &Spec) -> Option<PathBuf> {
    let path: &PathBuf = spec.linux().as_ref()?.cgroups_path().as_ref()?;
    cgroup::place(path).ok()
}

/// Ends what runs in a cgroup and removes it, if it is there. Returns why that failed.
fn end_cgroup(place: PathBuf) -> Option<String> {
    if !place.exists() {
        return None;
    }
    let cgroup = Cgroup::existing(place);
    let ended = cgroup.kill().and_then(|()| cgroup.remove());
    ended.err().map(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_of_another_kind_is_left_alone() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir(root(bundle.path())).unwrap();
        assert_eq!(of_bundle(bundle.path(), "c"), None);
        assert!(root(bundle.path()).exists());
    }

    #[test]
    fn a_pods_first_bundle_leads_to_the_others() {
        let bundles = tempfile::tempdir().unwrap();
        let path = |name: &str| bundles.path().join(name);
        for name in ["first", "second", "third"] {
            fs::create_dir_all(room(&path(name))).unwrap();
            add_member(&path("first"), name, &path(name), &Spec::default()).unwrap();
        }
        remove_member(&path("first"), "third");
        remove_member(&path("first"), "first");
        assert_eq!(of_bundle(&path("first"), "first"), Some((0, vec![])));
        assert!(!room(&path("second")).exists());
        assert!(room(&path("third")).exists());
    }

    #[test]
    fn what_was_begun_is_removed_without_a_state() {
        let bundle = tempfile::tempdir().unwrap();
        fs::create_dir_all(room(bundle.path()).join("c")).unwrap();
        fs::write(bundle.path().join("config.json"), "{}").unwrap();
        assert_eq!(of_bundle(bundle.path(), "c"), Some((0, vec![])));
        assert!(!room(bundle.path()).exists());
    }
}
