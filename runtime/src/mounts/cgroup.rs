//! The cgroup file system in a container.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, symlinkat};

use super::{new_file_system, place_tree, set_all_attributes};
use crate::cgroup::{Cgroup, Directory, Hierarchies, Version};
use crate::plan::{MountPlan, NamespaceKind, Plan};
use crate::process::message::{Stage, Step};
use crate::rootfs::{Root, clone_tree};
use crate::sys::Attributes;

/// What the host has of it. From within a cgroup namespace it cannot be told.
#[derive(Debug)]
pub(crate) enum Shown {
    /// Version 2.
    Unified {
        /// Where the host has mounted it.
        mount: PathBuf,
        /// The container's directory in it.
        own: PathBuf,
    },
    /// Version 1: the container's directory in each hierarchy, with the controllers' names.
    Separate(Vec<(Vec<String>, PathBuf)>),
}

impl Shown {
    /// For a container in `cgroup`.
    pub(crate) fn new(hierarchies: &Hierarchies, cgroup: &Cgroup) -> Self {
        let path = |directory: &Directory| directory.path().to_owned();
        let directories = cgroup.directories();
        match cgroup.version() {
            Version::V2 => Self::Unified {
                mount: hierarchies.list[0].point.clone(),
                own: path(&directories[0]),
            },
            Version::V1 => Self::Separate(
                directories
                    .iter()
                    .filter(|directory| !directory.controllers().is_empty())
                    .map(|directory| {
                        let names = directory.controllers().iter();
                        let names = names.map(|name| name.trim_start_matches("name=").to_owned());
                        (names.collect(), path(directory))
                    })
                    .collect(),
            ),
        }
    }
}

impl Shown {
    /// For a container that stays in its caller's cgroup.
    pub(crate) fn of_caller(hierarchies: &Hierarchies) -> Self {
        match hierarchies.version {
            Version::V1 => Self::Separate(Vec::new()),
            Version::V2 => {
                let mount = hierarchies.list[0].point.clone();
                let table = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                let path = table.lines().find_map(|line| line.strip_prefix("0::/"));
                Self::Unified {
                    own: mount.join(path.unwrap_or_default()),
                    mount,
                }
            }
        }
    }
}

/// Mounts it.
pub(super) fn mount(plan: &Plan, root: &Root, mount: &MountPlan, shown: &Shown) -> Step<()> {
    match shown {
        Shown::Unified { mount: host, own } => unified(plan, root, mount, host, own),
        Shown::Separate(directories) => separate(root, mount, directories),
    }
}

fn unified(plan: &Plan, root: &Root, mount: &MountPlan, host: &Path, own: &Path) -> Step<()> {
    let stage = || format!("mount cgroup2 on {}", mount.destination.display());
    let place = root.make_directory(&mount.destination).stage(stage)?;
    let tree = if plan.namespaces.is_private(NamespaceKind::Cgroup) {
        match new_file_system("cgroup2", "cgroup", &[], mount.attributes.set) {
            Err(error) if error.refused && plan.namespaces.has_user() => {
                clone_tree(CWD, own, true).stage(stage)?
            }
            other => other.stage(stage)?,
        }
    } else {
        // A new mount from the first cgroup namespace would reset the options of the host's.
        clone_tree(CWD, host, true).stage(stage)?
    };
    place_tree(root, mount, tree.as_fd(), place.as_fd()).stage(stage)
}

/// A directory of the container's own directories, each by the names of its controllers: all of
/// them, as hosts name them, and one by one.
fn separate(root: &Root, mount: &MountPlan, directories: &[(Vec<String>, PathBuf)]) -> Step<()> {
    let stage = || format!("mount cgroup on {}", mount.destination.display());
    let place = root.make_directory(&mount.destination).stage(stage)?;
    let mode = ("mode".to_owned(), Some("755".to_owned()));
    let tree = new_file_system("tmpfs", "tmpfs", &[mode], 0).stage(stage)?;
    // Its attributes come last: things must still be made in it.
    let open = MountPlan {
        attributes: Attributes::default(),
        recursive: Attributes::default(),
        ..mount.clone()
    };
    place_tree(root, &open, tree.as_fd(), place.as_fd()).stage(stage)?;
    for (names, path) in directories {
        let name = names.join(",");
        let stage = || format!("mount cgroup {name} on {}", mount.destination.display());
        let place = root
            .make_directory(&mount.destination.join(&name))
            .stage(stage)?;
        let own = clone_tree(CWD, path, false).stage(stage)?;
        place_tree(root, mount, own.as_fd(), place.as_fd()).stage(stage)?;
        for link in names.iter().filter(|link| **link != name) {
            symlinkat(&name, &tree, link.as_str()).stage(stage)?;
        }
    }
    set_all_attributes(mount, tree.as_fd()).stage(stage)
}
