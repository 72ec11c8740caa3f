//! Root file systems out of real block devices: loop devices stand for the image
//! window and scratch.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{isolated, run};
use containerd_shim_protos::api::Mount;
use guest_agent::storage::{IdMappings, Storage, StorageError};
use oci_spec::runtime::LinuxIdMapping;

/// A loop device that goes with its owner.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Self {
        Self(
            run("losetup", &["--find", "--show", file.to_str().unwrap()])
                .trim()
                .into(),
        )
    }

    fn partitions(&self) -> usize {
        let name = self.0.rsplit('/').next().unwrap();
        let entries = fs::read_dir(format!("/sys/block/{name}")).unwrap();
        let is_partition =
            |entry: &fs::DirEntry| entry.file_name().to_str().unwrap().starts_with(name);
        entries.flatten().filter(is_partition).count()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // What a failed test has left would be there for the next owner.
        let _ = std::process::Command::new("partx")
            .args(["--delete", &self.0])
            .output();
        run("losetup", &["--detach", &self.0]);
    }
}

/// Image window, scratch and somewhere to mount them.
struct Disks {
    base: PathBuf,
    window: Loop,
    layers: Vec<Mount>,
    storage: Storage,
    _scratch: Loop,
}

/// Two layers: `bottom` has files a and b, `top` has b and c, and a root of its own mode.
fn disks(directory: &Path) -> Disks {
    let window = directory.join("window");
    fs::File::create(&window)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let mut layers = Vec::new();
    for (index, (name, files)) in [("top", ["b", "c"]), ("bottom", ["a", "b"])]
        .into_iter()
        .enumerate()
    {
        let layer = directory.join(name);
        fs::create_dir(&layer).unwrap();
        for file in files {
            fs::write(layer.join(file), name).unwrap();
        }
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o751)).unwrap();
        let image = directory.join(format!("{name}.erofs"));
        run(
            "mkfs.erofs",
            &[image.to_str().unwrap(), layer.to_str().unwrap()],
        );
        let size = fs::metadata(&image).unwrap().len();
        let offset = (index as u64 + 1) << 20;
        let file = fs::File::options().write(true).open(&window).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &fs::read(&image).unwrap(), offset)
            .unwrap();
        layers.push(Mount {
            type_: "erofs".into(),
            options: vec![format!("offset={offset}"), format!("size={size}")],
            ..Default::default()
        });
    }
    let scratch = directory.join("scratch");
    fs::File::create(&scratch)
        .unwrap()
        .set_len(32 << 20)
        .unwrap();
    run("mkfs.ext4", &["-q", scratch.to_str().unwrap()]);
    let (window, scratch) = (Loop::new(&window), Loop::new(&scratch));
    let base = directory.join("base");
    Disks {
        storage: Storage::new(
            window.0.clone().into(),
            scratch.0.clone().into(),
            base.clone(),
        ),
        base,
        window,
        layers,
        _scratch: scratch,
    }
}

fn scratch() -> Mount {
    Mount {
        type_: "scratch".into(),
        ..Default::default()
    }
}

/// What is mounted below a directory, a line each: the place and the file system's type.
fn mounts(base: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        Path::new(place)
            .starts_with(base)
            .then(|| format!("{place} {kind}\n"))
    });
    lines.collect()
}

/// Runs `body` where background tasks have somewhere to run, to their end.
fn with_runtime(body: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        body();
        let metrics = tokio::runtime::Handle::current().metrics();
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn containers_share_layers_and_write_apart() {
    isolated("containers_share_layers_and_write_apart", || {
        let directory = tempfile::tempdir().unwrap();
        let mut disks = disks(directory.path());
        with_runtime(|| {
            let (first, second) = (disks.base.join("first"), disks.base.join("second"));
            let writable = [disks.layers.clone(), vec![scratch()]].concat();
            let first = disks.storage.mount(&writable, &first, None).unwrap();
            let second = disks.storage.mount(&writable, &second, None).unwrap();
            assert_eq!(disks.window.partitions(), 2);

            let read = |name: &str| fs::read_to_string(first.path.join(name)).unwrap();
            assert_eq!([read("a"), read("b"), read("c")], ["bottom", "top", "top"]);
            assert_eq!(fs::metadata(&first.path).unwrap().mode() & 0o7777, 0o751);
            fs::write(first.path.join("a"), "changed").unwrap();
            fs::remove_file(first.path.join("c")).unwrap();
            assert_eq!(fs::read_to_string(second.path.join("a")).unwrap(), "bottom");
            assert!(second.path.join("c").exists());

            let first_path = first.path.clone();
            disks.storage.unmount(first);
            assert!(!first_path.exists());
            assert_eq!(disks.window.partitions(), 2);
            assert_eq!(fs::read_to_string(second.path.join("b")).unwrap(), "top");
            disks.storage.unmount(second);
            assert_eq!(disks.window.partitions(), 0);
        });
        assert!(
            !mounts(&disks.base).contains("erofs") && !mounts(&disks.base).contains("overlay"),
            "{}",
            mounts(&disks.base)
        );
        let scratch = disks.base.join("scratch");
        let entries = fs::read_dir(&scratch).unwrap().flatten();
        let left: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["lost+found"]);
        run("umount", &[scratch.to_str().unwrap()]);
    });
}

#[test]
fn a_user_namespace_owns_its_root() {
    isolated("a_user_namespace_owns_its_root", || {
        let directory = tempfile::tempdir().unwrap();
        let mut disks = disks(directory.path());
        let maps: Vec<LinuxIdMapping> =
            serde_json::from_str(r#"[{"containerID": 0, "hostID": 1000, "size": 65536}]"#).unwrap();
        let ids = IdMappings {
            uids: &maps,
            gids: &maps,
        };
        with_runtime(|| {
            let writable = [disks.layers.clone(), vec![scratch()]].concat();
            let mut mapped = writable.clone();
            for layer in &mut mapped[..2] {
                layer.options.push("idmap".into());
            }
            for layers in [&mapped[..], &mapped[..2], &mapped[..1]] {
                let target = disks.base.join("root");
                let root = disks.storage.mount(layers, &target, Some(ids)).unwrap();
                for path in [root.path.clone(), root.path.join("c")] {
                    let file = fs::metadata(&path).unwrap();
                    assert_eq!((file.uid(), file.gid()), (1000, 1000), "{}", path.display());
                }
                assert_eq!(
                    mounts(&disks.base).matches("-layer-").count(),
                    0,
                    "{}",
                    mounts(&disks.base)
                );
                disks.storage.unmount(root);
            }
            // Others see the layers as they are, and so do those whose layers have the ids.
            for (layers, ids) in [(&mapped, None), (&writable, Some(ids))] {
                let target = disks.base.join("root");
                let root = disks.storage.mount(layers, &target, ids).unwrap();
                assert_eq!(fs::metadata(root.path.join("c")).unwrap().uid(), 0);
                disks.storage.unmount(root);
            }
        });
        run("umount", &[disks.base.join("scratch").to_str().unwrap()]);
    });
}

#[test]
fn without_scratch_a_root_is_read_only_and_scratch_is_not_touched() {
    isolated(
        "without_scratch_a_root_is_read_only_and_scratch_is_not_touched",
        || {
            let directory = tempfile::tempdir().unwrap();
            let mut disks = disks(directory.path());
            for layers in [&disks.layers[..], &disks.layers[..1]] {
                let root = disks
                    .storage
                    .mount(layers, &disks.base.join("root"), None)
                    .unwrap();
                assert_eq!(fs::read_to_string(root.path.join("b")).unwrap(), "top");
                let refused = fs::write(root.path.join("new"), "").unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
                disks.storage.unmount(root);
                assert_eq!(disks.window.partitions(), 0);
            }
            assert!(!mounts(&disks.base).contains("ext4") || !disks.base.join("scratch").exists());
        },
    );
}

#[test]
fn a_root_that_cannot_be_made_leaves_nothing() {
    isolated("a_root_that_cannot_be_made_leaves_nothing", || {
        let directory = tempfile::tempdir().unwrap();
        let mut disks = disks(directory.path());
        let empty = Mount {
            type_: "erofs".into(),
            options: vec![format!("offset={}", 32 << 20), "size=4096".into()],
            ..Default::default()
        };
        let target = disks.base.join("root");
        let mounts_of_layers = [disks.layers.clone(), vec![empty]].concat();
        let error = disks
            .storage
            .mount(&mounts_of_layers, &target, None)
            .unwrap_err();
        assert!(error.to_string().starts_with("mount erofs from"), "{error}");
        assert_eq!(disks.window.partitions(), 0);
        assert!(!target.exists());
        assert!(
            !mounts(&disks.base).contains("erofs"),
            "{}",
            mounts(&disks.base)
        );

        let mut other_size = disks.layers[0].clone();
        other_size.options[1] = "size=1048576".into();
        let first = disks.storage.mount(&disks.layers, &target, None).unwrap();
        let clash = disks
            .storage
            .mount(&[other_size], &disks.base.join("other"), None)
            .unwrap_err();
        assert!(matches!(clash, StorageError::Invalid(_)), "{clash}");
        disks.storage.unmount(first);
        assert_eq!(disks.window.partitions(), 0);
    });
}

#[test]
fn a_busy_layer_s_partition_goes_later() {
    isolated("a_busy_layer_s_partition_goes_later", || {
        let directory = tempfile::tempdir().unwrap();
        let mut disks = disks(directory.path());
        let target = disks.base.join("root");
        let root = disks
            .storage
            .mount(&disks.layers[..1], &target, None)
            .unwrap();
        let open = fs::File::open(target.join("b")).unwrap();
        disks.storage.unmount(root);
        assert!(!target.exists());
        assert_eq!(disks.window.partitions(), 1);
        // The same layer again, while its old partition is busy.
        let root = disks
            .storage
            .mount(&disks.layers[..1], &target, None)
            .unwrap();
        assert_eq!(fs::read_to_string(target.join("c")).unwrap(), "top");
        assert_eq!(disks.window.partitions(), 1);
        drop(open);
        disks.storage.unmount(root);
        assert_eq!(disks.window.partitions(), 0);
    });
}

#[test]
fn a_directory_can_be_a_root() {
    isolated("a_directory_can_be_a_root", || {
        let directory = tempfile::tempdir().unwrap();
        let mut disks = disks(directory.path());
        let bind = Mount {
            type_: "bind".into(),
            source: directory.path().join("top").to_str().unwrap().into(),
            ..Default::default()
        };
        let root = disks
            .storage
            .mount(&[bind], &disks.base.join("root"), None)
            .unwrap();
        assert_eq!(fs::read_to_string(root.path.join("c")).unwrap(), "top");
        disks.storage.unmount(root);
        assert!(directory.path().join("top/c").exists());
    });
}
