//! What containerd's mounts for a container say: which layers, and whether the
//! container may write.

use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;

/// A root filesystem made of read-only layer directories of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Layer directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Whether a writable layer goes on top.
    pub writable: bool,
    /// Whether the layers are to be shown with the ids of the container's user namespace.
    /// containerds and kernels that cannot ask for that make layers that have them.
    pub idmap: bool,
}

/// Mounts that do not become a root filesystem in the guest.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// Nothing to mount.
    #[error("the container has no root filesystem mounts; create it from an image")]
    None,
    /// Several mounts, or a type that is not understood.
    #[error(
        "the snapshotter gave a root filesystem of type {0}; \
         use the overlayfs snapshotter (containerd's default)"
    )]
    Type(String),
    /// An overlay without layers, or a directory given for writing.
    #[error("root filesystem mount {0}: {1}")]
    Mount(String, String),
    /// The writable layer has content, which the guest would not see.
    #[error(
        "the container's writable layer {} is not empty: something wrote to it on the host; \
         create the container anew", .0.display()
    )]
    Written(PathBuf),
    /// The writable layer cannot be looked at.
    #[error("cannot read the container's writable layer {}", .0.display())]
    Upper(PathBuf, #[source] std::io::Error),
}

impl Rootfs {
    /// Reads containerd's mounts.
    ///
    /// # Errors
    /// When they are not those of the overlayfs snapshotter, or the writable
    /// layer is not empty.
    pub fn from_mounts(mounts: &[Mount]) -> Result<Self, RootfsError> {
        let [mount] = mounts else {
            return Err(match mounts {
                [] => RootfsError::None,
                many => RootfsError::Type(
                    many.iter()
                        .map(|mount| mount.type_.as_str())
                        .collect::<Vec<_>>()
                        .join(" + "),
                ),
            });
        };
        match mount.type_.as_str() {
            "overlay" => overlay(mount),
            // One layer, looked at only: an overlay of one is a bind mount.
            "bind" if mount.options.iter().any(|option| option == "ro") => Ok(Self {
                layers: vec![PathBuf::from(&mount.source)],
                writable: false,
                idmap: idmap(mount),
            }),
            "bind" => Err(RootfsError::Mount(
                mount.source.clone(),
                "a writable directory of the host cannot be a VM's root; \
                 use the overlayfs snapshotter (containerd's default)"
                    .into(),
            )),
            other => Err(RootfsError::Type(other.to_owned())),
        }
    }
}

fn overlay(mount: &Mount) -> Result<Rootfs, RootfsError> {
    let refuse = |why: &str| RootfsError::Mount("overlay".into(), why.into());
    let mut layers = Vec::new();
    let mut upper = None;
    for option in &mount.options {
        if let Some(list) = option.strip_prefix("lowerdir=") {
            layers = split_escaped(list);
        } else if let Some(dir) = option.strip_prefix("upperdir=") {
            upper = Some(PathBuf::from(dir));
        } else if option == "userxattr" {
            return Err(refuse(
                "layers marked by user.overlay attributes are not supported; run containerd as root",
            ));
        }
    }
    if layers.is_empty() {
        return Err(refuse("it has no lowerdir"));
    }
    if let Some(relative) = layers.iter().find(|layer| !layer.is_absolute()) {
        let path = relative.display();
        return Err(refuse(&format!("its layer {path} is not an absolute path")));
    }
    if let Some(upper) = &upper {
        check_empty(upper)?;
    }
    Ok(Rootfs {
        layers,
        writable: upper.is_some(),
        idmap: idmap(mount),
    })
}

/// Whether the snapshotter leaves the ids to whoever mounts (containerd's `remap-ids`).
fn idmap(mount: &Mount) -> bool {
    mount
        .options
        .iter()
        .any(|option| option.starts_with("uidmap="))
}

fn check_empty(upper: &Path) -> Result<(), RootfsError> {
    let mut entries =
        std::fs::read_dir(upper).map_err(|error| RootfsError::Upper(upper.into(), error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(RootfsError::Written(upper.into())),
    }
}

/// Splits at colons that no backslash escapes, as the kernel's overlayfs does.
fn split_escaped(list: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut path = String::new();
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => path.extend(chars.next()),
            ':' => paths.push(PathBuf::from(std::mem::take(&mut path))),
            c => path.push(c),
        }
    }
    if !path.is_empty() {
        paths.push(PathBuf::from(path));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn an_overlay_is_its_lower_directories() {
        let upper = tempfile::tempdir().unwrap();
        let upperdir = format!("upperdir={}", upper.path().display());
        let mounts = [mount(
            "overlay",
            "overlay",
            &[
                "index=off",
                "workdir=/s/9/work",
                &upperdir,
                "lowerdir=/s/2/fs:/s/1/fs",
            ],
        )];
        let rootfs = Rootfs::from_mounts(&mounts).unwrap();
        assert_eq!(rootfs.layers, [Path::new("/s/2/fs"), Path::new("/s/1/fs")]);
        assert!(rootfs.writable);

        std::fs::write(upper.path().join("file"), "").unwrap();
        let error = Rootfs::from_mounts(&mounts).unwrap_err();
        assert!(matches!(error, RootfsError::Written(_)), "{error}");
    }

    #[test]
    fn views_are_read_only() {
        let rootfs = Rootfs::from_mounts(&[mount("bind", "/s/1/fs", &["ro", "rbind"])]).unwrap();
        assert_eq!(rootfs.layers, [Path::new("/s/1/fs")]);
        assert!(!rootfs.writable);
        let rootfs =
            Rootfs::from_mounts(&[mount("overlay", "overlay", &["lowerdir=/a:/b"])]).unwrap();
        assert!(!rootfs.writable && !rootfs.idmap);
    }

    #[test]
    fn ids_are_mapped_where_the_snapshotter_has_not_done_it() {
        let ids = ["uidmap=0:65536:65536", "gidmap=0:65536:65536"];
        for (kind, own) in [("overlay", "lowerdir=/a:/b"), ("bind", "ro")] {
            let options = [&ids[..], &[own]].concat();
            let rootfs = Rootfs::from_mounts(&[mount(kind, "/a", &options)]).unwrap();
            assert!(rootfs.idmap);
        }
    }

    #[test]
    fn colons_in_paths_are_escaped() {
        assert_eq!(
            split_escaped(r"/a\:b:/c\\d"),
            [Path::new("/a:b"), Path::new(r"/c\d")]
        );
    }

    #[test]
    fn other_mounts_are_refused_by_name() {
        for (mounts, part) in [
            (vec![], "no root filesystem"),
            (vec![mount("btrfs", "/dev/sda", &[])], "btrfs"),
            (
                vec![mount("erofs", "/a", &[]), mount("overlay", "o", &[])],
                "erofs + overlay",
            ),
            (vec![mount("bind", "/s/1/fs", &["rw", "rbind"])], "/s/1/fs"),
            (vec![mount("overlay", "o", &["upperdir=/u"])], "lowerdir"),
            (vec![mount("overlay", "o", &["lowerdir=a:/b"])], "absolute"),
            (
                vec![mount("overlay", "o", &["userxattr", "lowerdir=/a"])],
                "user.overlay",
            ),
        ] {
            let error = Rootfs::from_mounts(&mounts).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
