//! Mounts whose source is outside the container. criu neither saves nor makes these: it leaves them
//! out by a name, and is told by that name what to bind in their place.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{Result, system};
use crate::cgroup::{Cgroup, Version};
use crate::devices::default_paths;
use crate::mounts::Shown;
use crate::plan::{MountKind, Plan};
use crate::rootfs::{MountLine, Root, mounts};

/// What files are masked with; the name that runc gives it.
const NULL: &str = "/dev/null";

/// Of a container that runs, whose first process is `pid`: where such mounts are, and their names,
/// which are destinations of the plan.
pub(super) fn outside(plan: &Plan, pid: u32) -> Result<Vec<(PathBuf, PathBuf)>> {
    let file = format!("/proc/{pid}/mountinfo");
    let table = std::fs::read_to_string(&file).map_err(system(format!("read {file}")))?;
    let root = Root::of_process(pid).map_err(system("open the container's root"))?;
    // The plan's paths, and what their links lead to.
    let places: Vec<(PathBuf, &Path)> = bound(plan)
        .map(|(destination, _)| destination)
        .chain(devices(plan))
        .filter_map(|path| Some((resolve(&root, path)?, path)))
        .collect();
    Ok(mounts(&table)
        .filter_map(|mount| {
            let name = name(plan, &places, &mount)?;
            Some((mount.point, name))
        })
        .collect())
}

fn name(plan: &Plan, places: &[(PathBuf, &Path)], mount: &MountLine<'_>) -> Option<PathBuf> {
    if mount.kind == "cgroup" {
        return Some(mount.point.clone());
    }
    if let Some((_, path)) = places.iter().find(|(place, _)| *place == mount.point) {
        return Some(path.to_path_buf());
    }
    let masks = mount.root == "/null" && plan.masked_paths.contains(&mount.point);
    masks.then(|| NULL.into())
}

fn resolve(root: &Root, path: &Path) -> Option<PathBuf> {
    root.open(path).and_then(|fd| root.path_of(fd.as_fd())).ok()
}

/// What to bind for each name in a container that is restored into `cgroup`.
pub(super) fn sources(plan: &Plan, cgroup: &Cgroup, shown: &Shown) -> Vec<(PathBuf, PathBuf)> {
    let mut sources: Vec<(PathBuf, PathBuf)> = bound(plan)
        .map(|(destination, source)| (destination.to_owned(), source.to_owned()))
        .collect();
    if let (Version::V1, Shown::Separate(directories)) = (cgroup.version(), shown) {
        let places = plan
            .mounts
            .iter()
            .filter(|mount| matches!(mount.kind, MountKind::Cgroup));
        for place in places {
            sources.extend(
                directories
                    .iter()
                    .map(|(names, path)| (place.destination.join(names.join(",")), path.clone())),
            );
        }
    }
    sources.push((NULL.into(), NULL.into()));
    sources.extend(devices(plan).map(|path| (path.to_owned(), path.to_owned())));
    sources
}

fn bound(plan: &Plan) -> impl Iterator<Item = (&Path, &Path)> {
    plan.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { source, .. } => Some((mount.destination.as_path(), source.as_path())),
        _ => None,
    })
}

/// In a user namespace these are the host's.
fn devices<'a>(plan: &'a Plan) -> impl Iterator<Item = &'a Path> {
    let lent = plan.namespaces.has_user();
    let listed = plan.devices.iter().map(|device| device.path.as_path());
    let default = default_paths().map(|path| -> &'a Path { path });
    default.chain(listed).filter(move |_| lent)
}

/// Makes in the root file system what is to be mounted on, as at a container's creation. What is
/// below another mount comes with that: from its source, or from the images.
pub(super) fn make_places(plan: &Plan) -> Result<()> {
    let root = Root::at(&plan.rootfs).map_err(system("open the root file system"))?;
    let is_below_another = |destination: &Path| {
        plan.mounts.iter().any(|mount| {
            !matches!(mount.kind, MountKind::Remount)
                && destination != mount.destination
                && destination.starts_with(&mount.destination)
        })
    };
    for mount in &plan.mounts {
        let place = &mount.destination;
        if is_below_another(place) {
            continue;
        }
        let made = match &mount.kind {
            MountKind::Bind { source, .. } if !is_directory(source)? => root.make_file(place),
            MountKind::Bind { .. } | MountKind::FileSystem { .. } | MountKind::Cgroup => {
                root.make_directory(place)
            }
            MountKind::Remount => continue,
        };
        made.map_err(system(format!(
            "make {} in the root file system",
            place.display()
        )))?;
    }
    Ok(())
}

fn is_directory(path: &Path) -> Result<bool> {
    std::fs::metadata(path)
        .map(|metadata| metadata.is_dir())
        .map_err(system(format!("look at {}", path.display())))
}
