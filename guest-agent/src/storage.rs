//! Root file systems: image layers out of the image window, a writable side on
//! scratch, one overlay a container.
//!
//! An offset of the image window must show the same bytes for as long as the VM lives:
//! a file of a layer can stay open, and its pages cached, after its last container.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind,
    move_mount, unmount,
};
use thiserror::Error;

use crate::sys;
use crate::trash;

/// What ranges of the image window are multiples of: EROFS's block and a page.
const ALIGNMENT: u64 = 4096;
/// Options of the scratch file system. It does not outlive the VM, so nothing in it
/// needs to survive a crash.
const SCRATCH_OPTIONS: &std::ffi::CStr = c"barrier=0,noauto_da_alloc";

/// Why a root file system could not be made.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The request's mounts make no root file system.
    #[error("rootfs: {0}")]
    Invalid(String),
    /// Every partition number of the image window is taken.
    #[error(
        "all 255 partitions of the image window are in use: delete a container or merge image layers"
    )]
    Full,
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The step and what it was for.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> StorageError {
    let what = what.into();
    move |error| StorageError::System {
        what,
        source: error.into(),
    }
}

/// The ids of a container's user namespace.
#[derive(Clone, Copy, Debug)]
pub struct IdMappings<'a> {
    /// User ids.
    pub uids: &'a [LinuxIdMapping],
    /// Group ids.
    pub gids: &'a [LinuxIdMapping],
}

/// One layer's place in the image window, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    offset: u64,
    size: u64,
}

/// What a request's `rootfs` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// EROFS layers, topmost first.
    Layers {
        layers: Vec<Range>,
        /// With a writable side.
        writable: bool,
        /// With the ids of the container's user namespace.
        idmap: bool,
    },
    /// A directory of the guest.
    Directory(PathBuf),
}

impl Plan {
    fn parse(mounts: &[Mount]) -> Result<Self, StorageError> {
        let invalid = |text: String| Err(StorageError::Invalid(text));
        if let [only] = mounts
            && only.type_ == "bind"
        {
            return Ok(Self::Directory(PathBuf::from(&only.source)));
        }
        let (writable, layers) = match mounts {
            [layers @ .., last] if last.type_ == "scratch" => {
                // A quota would need the file system's and the kernel's support; a size
                // that is silently ignored would be a limit that is none.
                if let Some(option) = last.options.first() {
                    return invalid(format!(
                        "scratch has no option {option:?} here: leave it out"
                    ));
                }
                (true, layers)
            }
            layers => (false, layers),
        };
        if layers.is_empty() {
            return invalid(
                "there is no layer: give one erofs mount a layer, topmost first".into(),
            );
        }
        let mut ranges = Vec::with_capacity(layers.len());
        for layer in layers {
            if layer.type_ != "erofs" {
                return invalid(format!(
                    "a mount of type {:?} cannot be here: give erofs layers, then at most one scratch",
                    layer.type_
                ));
            }
            let range = Range {
                offset: option(layer, "offset")?,
                size: option(layer, "size")?,
            };
            let end = range.offset.checked_add(range.size);
            let aligned =
                range.offset.is_multiple_of(ALIGNMENT) && range.size.is_multiple_of(ALIGNMENT);
            if range.size == 0 || !aligned || end.is_none_or(|end| end > i64::MAX as u64) {
                return invalid(format!(
                    "{} bytes at {} are no range of the image window: both must be multiples of {ALIGNMENT}",
                    range.size, range.offset
                ));
            }
            ranges.push(range);
        }
        let idmap = |layer: &Mount| layer.options.iter().any(|option| option == "idmap");
        Ok(Self::Layers {
            layers: ranges,
            writable,
            idmap: layers.iter().any(idmap),
        })
    }
}

/// The number behind `name=` in a mount's options.
fn option(mount: &Mount, name: &str) -> Result<u64, StorageError> {
    let value = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).ok_or_else(|| {
        StorageError::Invalid(format!(
            "an {} mount has no option {name}=BYTES in {:?}",
            mount.type_, mount.options
        ))
    })
}

/// A mounted layer and how many containers use it.
struct Layer {
    size: u64,
    partition: u8,
    users: usize,
}

/// Block devices and where they are mounted.
pub struct Storage {
    /// The image window.
    window: PathBuf,
    /// The scratch disk.
    scratch: PathBuf,
    /// Directory of all mounts.
    base: PathBuf,
    scratch_mounted: bool,
    /// By offset in the image window.
    layers: BTreeMap<u64, Layer>,
    /// Layers without users whose partition was busy when the last one went: a file of
    /// it is open somewhere, passed on to another container. By offset.
    retired: BTreeMap<u64, Layer>,
    /// Counts directories on scratch, so that each name is used once.
    uppers: u64,
}

/// A container's root file system. Give it back to [`Storage::unmount`].
#[derive(Debug)]
pub struct RootFs {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Offsets of its layers.
    layers: Vec<u64>,
    /// Its directory on scratch.
    upper: Option<PathBuf>,
}

impl Storage {
    /// Storage on the block devices `window` and `scratch`, mounted below `base`.
    pub fn new(window: PathBuf, scratch: PathBuf, base: PathBuf) -> Self {
        Self {
            window,
            scratch,
            base,
            scratch_mounted: false,
            layers: BTreeMap::new(),
            retired: BTreeMap::new(),
            uppers: 0,
        }
    }

    /// Mounts what a request's `rootfs` asks for on `target`, a directory that it makes.
    /// With `ids` its files belong to a user namespace that has them. After an error
    /// nothing of it is left.
    pub fn mount(
        &mut self,
        mounts: &[Mount],
        target: &Path,
        ids: Option<IdMappings<'_>>,
    ) -> Result<RootFs, StorageError> {
        let plan = Plan::parse(mounts)?;
        fs::create_dir_all(target).map_err(system(format!("make {}", target.display())))?;
        let mut root = RootFs {
            path: target.into(),
            layers: Vec::new(),
            upper: None,
        };
        match self.mount_plan(&plan, &mut root, ids) {
            Ok(()) => Ok(root),
            Err(error) => {
                self.release(root);
                Err(error)
            }
        }
    }

    fn mount_plan(
        &mut self,
        plan: &Plan,
        root: &mut RootFs,
        ids: Option<IdMappings<'_>>,
    ) -> Result<(), StorageError> {
        let (layers, writable, idmap) = match plan {
            Plan::Directory(source) => {
                let what = format!("bind {} to {}", source.display(), root.path.display());
                return mount_bind(source, &root.path).map_err(system(what));
            }
            Plan::Layers {
                layers,
                writable,
                idmap,
            } => (layers, *writable, *idmap),
        };
        let mut lower = Vec::with_capacity(layers.len());
        for range in layers {
            lower.push(self.acquire(*range)?);
            root.layers.push(range.offset);
        }
        // The overlay keeps copies of its own of these.
        let mapped = match ids.filter(|_| idmap) {
            Some(ids) => Some(MappedLayers::new(&root.path, &lower, ids)?),
            None => None,
        };
        if let Some(mapped) = &mapped {
            lower.clone_from(&mapped.0);
        }
        if writable {
            self.ensure_scratch()?;
            self.uppers += 1;
            let upper = self.scratch_base().join(self.uppers.to_string());
            root.upper = Some(upper.clone());
            make_upper(&upper, &lower[0]).map_err(system(format!("make {}", upper.display())))?;
            overlay(&lower, Some(&upper), &root.path)
        } else if let [only] = lower.as_slice() {
            // An overlay without a writable side wants two layers.
            let what = format!("bind {} to {}", only.display(), root.path.display());
            mount_bind(only, &root.path).map_err(system(what))
        } else {
            overlay(&lower, None, &root.path)
        }
    }

    /// Unmounts a root file system and whatever only it used. Its writable side is
    /// removed later, in the background.
    pub fn unmount(&mut self, root: RootFs) {
        if let Err(error) = unmount_any(&root.path) {
            log::warn!("cannot unmount {}: {error}", root.path.display());
        }
        self.release(root);
    }

    fn release(&mut self, root: RootFs) {
        // Not recursive: were something still mounted there, its files would go.
        if let Err(error) = fs::remove_dir(&root.path) {
            log::warn!("cannot remove {}: {error}", root.path.display());
        }
        for offset in root.layers {
            self.release_layer(offset);
        }
        if let Some(upper) = root.upper {
            trash::remove(upper);
        }
    }

    /// Mounts the scratch disk if it is not mounted yet.
    pub fn ensure_scratch(&mut self) -> Result<(), StorageError> {
        if self.scratch_mounted {
            return Ok(());
        }
        let target = self.scratch_base();
        let what = || format!("mount {} on {}", self.scratch.display(), target.display());
        fs::create_dir_all(&target).map_err(system(what()))?;
        mount(
            &self.scratch,
            &target,
            "ext4",
            MountFlags::empty(),
            SCRATCH_OPTIONS,
        )
        .map_err(system(what()))?;
        self.scratch_mounted = true;
        Ok(())
    }

    fn scratch_base(&self) -> PathBuf {
        self.base.join("scratch")
    }

    /// Where the pod's directory volumes are, on scratch.
    pub fn volumes_base(&self) -> PathBuf {
        self.scratch_base().join("volumes")
    }

    fn layer_path(&self, offset: u64) -> PathBuf {
        self.base.join("layers").join(offset.to_string())
    }

    /// Mounts a layer, or counts one more user of it.
    fn acquire(&mut self, range: Range) -> Result<PathBuf, StorageError> {
        let path = self.layer_path(range.offset);
        if let Some(layer) = self.layers.get_mut(&range.offset) {
            if layer.size != range.size {
                return Err(StorageError::Invalid(format!(
                    "the layer at {} has {} bytes, not {}",
                    range.offset, layer.size, range.size
                )));
            }
            layer.users += 1;
            return Ok(path);
        }
        let layer = Layer {
            size: range.size,
            partition: self.partition(range)?,
            users: 1,
        };
        if let Err(error) = self.mount_layer(layer.partition, &path) {
            self.retire(range.offset, layer);
            return Err(error);
        }
        self.layers.insert(range.offset, layer);
        Ok(path)
    }

    /// The partition over a range: a new one, or what is left of the last one there.
    fn partition(&mut self, range: Range) -> Result<u8, StorageError> {
        if self
            .retired
            .get(&range.offset)
            .is_some_and(|layer| layer.size == range.size)
            && let Some(layer) = self.retired.remove(&range.offset)
        {
            return Ok(layer.partition);
        }
        let number = self.free_partition()?;
        let (start, length) = (range.offset as i64, range.size as i64);
        let what = || format!("map {length} bytes at {start} of {}", self.window.display());
        let window = File::open(&self.window).map_err(system(what()))?;
        sys::add_partition(&window, number, start, length).map_err(system(what()))?;
        Ok(number)
    }

    fn mount_layer(&self, partition: u8, path: &Path) -> Result<(), StorageError> {
        let device = partition_path(&self.window, partition);
        let what = || {
            format!(
                "mount erofs from {} on {}",
                device.display(),
                path.display()
            )
        };
        fs::create_dir_all(path).map_err(system(what()))?;
        mount(&device, path, "erofs", MountFlags::RDONLY, None).map_err(system(what()))
    }

    /// Counts one user of a layer less; unmounts it after the last.
    fn release_layer(&mut self, offset: u64) {
        let Entry::Occupied(mut entry) = self.layers.entry(offset) else {
            return;
        };
        entry.get_mut().users -= 1;
        if entry.get().users > 0 {
            return;
        }
        let layer = entry.remove();
        let path = self.layer_path(offset);
        if let Err(error) = unmount_any(&path).and_then(|()| fs::remove_dir(&path)) {
            log::warn!("cannot unmount {}: {error}", path.display());
        }
        self.retire(offset, layer);
    }

    /// Removes a layer's partition, now or when it is not busy any more.
    fn retire(&mut self, offset: u64, layer: Layer) {
        self.retired.insert(offset, layer);
        let Ok(window) = File::open(&self.window) else {
            return;
        };
        self.retired.retain(|offset, layer| {
            let deleted = sys::delete_partition(&window, layer.partition);
            if let Err(error) = &deleted {
                log::warn!("the layer at {offset} of the image window stays for now: {error}");
            }
            deleted.is_err()
        });
    }

    fn free_partition(&self) -> Result<u8, StorageError> {
        let layers = self.layers.values().chain(self.retired.values());
        (1..=u8::MAX)
            .find(|number| !layers.clone().any(|layer| layer.partition == *number))
            .ok_or(StorageError::Full)
    }
}

/// The device node of a partition: the kernel puts a `p` between two digits.
fn partition_path(disk: &Path, number: u8) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    if name
        .as_encoded_bytes()
        .last()
        .is_some_and(u8::is_ascii_digit)
    {
        name.push("p");
    }
    name.push(number.to_string());
    name.into()
}

/// Layers with the ids of a user namespace, each on a directory beside the root file
/// system, for as long as this lives.
struct MappedLayers(Vec<PathBuf>);

impl MappedLayers {
    fn new(root: &Path, layers: &[PathBuf], ids: IdMappings<'_>) -> Result<Self, StorageError> {
        let mut mapped = Self(Vec::with_capacity(layers.len()));
        for (number, layer) in layers.iter().enumerate() {
            let what = || format!("map the ids of {}", layer.display());
            let tree = runtime::mapped_mount(layer, ids.uids, ids.gids).map_err(system(what()))?;
            let mut path = root.as_os_str().to_owned();
            path.push(format!("-layer-{number}"));
            let path = PathBuf::from(path);
            fs::create_dir(&path).map_err(system(what()))?;
            mapped.0.push(path);
            let path = &mapped.0[number];
            move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(system(what()))?;
        }
        Ok(mapped)
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        for path in &self.0 {
            // It is not mounted where a failure has ended the making.
            let _ = unmount_any(path);
            if let Err(error) = fs::remove_dir(path) {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Makes the upper and work directories. The root of an overlay takes its mode and
/// owner from the upper directory, so they are copied from the top layer.
fn make_upper(base: &Path, top: &Path) -> io::Result<()> {
    let upper = base.join("upper");
    fs::create_dir_all(&upper)?;
    fs::create_dir(base.join("work"))?;
    let root = fs::metadata(top)?;
    std::os::unix::fs::chown(&upper, Some(root.uid()), Some(root.gid()))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(root.mode() & 0o7777))
}

/// Mounts an overlay. The new mount API takes one call a layer, where mount(2) takes
/// all options in one page.
fn overlay(lower: &[PathBuf], upper: Option<&Path>, target: &Path) -> Result<(), StorageError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(system("open overlay"))?;
    let mounted = (|| {
        fsconfig_set_string(&context, "source", "overlay")?;
        for layer in lower {
            fsconfig_set_string(&context, "lowerdir+", layer)?;
        }
        if let Some(upper) = upper {
            fsconfig_set_string(&context, "upperdir", upper.join("upper"))?;
            fsconfig_set_string(&context, "workdir", upper.join("work"))?;
            // fsync in a container need not reach a disk that dies with the VM.
            fsconfig_set_flag(&context, "volatile")?;
        }
        fsconfig_create(&context)?;
        let flags = if upper.is_some() {
            MountAttrFlags::empty()
        } else {
            MountAttrFlags::MOUNT_ATTR_RDONLY
        };
        let overlay = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
        move_mount(
            overlay,
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })();
    mounted.map_err(|error| {
        // The context says what was wrong where the error number cannot.
        let mut message = [0; 256];
        let length = rustix::io::read(&context, &mut message[..]).unwrap_or(0);
        let message = String::from_utf8_lossy(&message[..length]);
        system(format!(
            "mount overlay on {} ({})",
            target.display(),
            message.trim()
        ))(error)
    })
}

/// Unmounts what is mounted last on `path`, out of sight at least.
fn unmount_any(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) => Ok(unmount(
            path,
            UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        )?),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(type_: &str, options: &[&str]) -> Mount {
        Mount {
            type_: type_.into(),
            options: options.iter().map(|option| (*option).into()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn layers_and_scratch() {
        let layer = mount("erofs", &["offset=1048576", "size=4096"]);
        let layers = vec![Range {
            offset: 1 << 20,
            size: 4096,
        }];
        let read_only = Plan::parse(std::slice::from_ref(&layer)).unwrap();
        assert_eq!(
            read_only,
            Plan::Layers {
                layers: layers.clone(),
                writable: false,
                idmap: false,
            }
        );
        let writable = Plan::parse(&[layer, mount("scratch", &[])]).unwrap();
        assert_eq!(
            writable,
            Plan::Layers {
                layers,
                writable: true,
                idmap: false,
            }
        );
    }

    #[test]
    fn what_is_no_root_file_system_is_refused() {
        let good = mount("erofs", &["offset=0", "size=4096"]);
        for mounts in [
            vec![],
            vec![mount("scratch", &[])],
            vec![mount("overlay", &[])],
            vec![mount("scratch", &[]), good.clone()],
            vec![good.clone(), mount("scratch", &[]), mount("scratch", &[])],
            vec![mount("erofs", &["offset=0"])],
            vec![mount("erofs", &["offset=-4096", "size=4096"])],
            vec![mount("erofs", &["offset=0", "size=0"])],
            vec![mount("erofs", &["offset=512", "size=4096"])],
            vec![mount(
                "erofs",
                &["offset=18446744073709547520", "size=4096"],
            )],
            vec![mount("erofs", &["offset=9223372036854771712", "size=4096"])],
            vec![good, mount("scratch", &["size=1"])],
        ] {
            assert!(
                matches!(Plan::parse(&mounts), Err(StorageError::Invalid(_))),
                "{mounts:?}"
            );
        }
    }

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        assert_eq!(
            partition_path(Path::new("/dev/vda"), 3),
            Path::new("/dev/vda3")
        );
        assert_eq!(
            partition_path(Path::new("/dev/loop0"), 12),
            Path::new("/dev/loop0p12")
        );
    }
}
