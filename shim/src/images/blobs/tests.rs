use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::sync::Barrier;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Self { dir };
        fixture.add_layer("1");
        fixture
    }

    fn store(&self) -> BlobStore {
        BlobStore::new(self.dir.path().join("layers"))
    }

    fn layer(&self, name: &str) -> PathBuf {
        self.dir.path().join("snapshots").join(name).join("fs")
    }

    fn add_layer(&self, name: &str) {
        let layer = self.layer(name);
        std::fs::create_dir_all(layer.join("bin")).unwrap();
        std::fs::write(layer.join("bin/app"), b"\x7fELF").unwrap();
        std::fs::set_permissions(
            layer.join("bin/app"),
            std::fs::Permissions::from_mode(0o4755),
        )
        .unwrap();
        symlink("bin/app", layer.join("app")).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path().join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_layer_becomes_an_image_once() {
    let fixture = Fixture::new();
    let first = fixture.store().get(&fixture.layer("1")).unwrap();
    let again = fixture.store().get(&fixture.layer("1")).unwrap();
    assert_eq!(first.key, again.key);
    assert_eq!(first.size % PAGE, 0);
    let inode = |blob: &Blob| blob.file.metadata().unwrap().ino();
    assert_eq!(inode(&first), inode(&again));
    assert_eq!(
        fixture.files(),
        [
            format!("{}.erofs", first.key),
            format!("{}.json", first.key),
            "lock".to_owned()
        ]
    );
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let fixture = Fixture::new();
    let other = tempfile::tempdir().unwrap();
    let first = fixture.store().get(&fixture.layer("1")).unwrap();
    let second = BlobStore::new(other.path())
        .get(&fixture.layer("1"))
        .unwrap();
    let bytes = |blob: &Blob| {
        let mut bytes = vec![0; blob.size as usize];
        blob.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(bytes(&first) == bytes(&second));
}

#[test]
fn another_directory_is_another_blob() {
    let fixture = Fixture::new();
    fixture.add_layer("2");
    let store = fixture.store();
    let first = store.get(&fixture.layer("1")).unwrap();
    let second = store.get(&fixture.layer("2")).unwrap();
    assert_ne!(first.key, second.key);

    // The same path, made anew.
    std::fs::remove_dir_all(fixture.layer("1")).unwrap();
    fixture.add_layer("1");
    assert_ne!(store.get(&fixture.layer("1")).unwrap().key, first.key);
}

#[test]
fn pods_that_start_together_build_once() {
    let fixture = Fixture::new();
    let barrier = Barrier::new(8);
    let inodes: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let blob = fixture.store().get(&fixture.layer("1")).unwrap();
                    blob.file.metadata().unwrap().ino()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{inodes:?}");
    assert_eq!(fixture.files().len(), 3);
}

#[test]
fn a_corrupt_blob_is_built_anew() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let blob = store.get(&fixture.layer("1")).unwrap();
    let path = store.path(&blob.key);
    let good = std::fs::read(&path).unwrap();

    let damage: [&dyn Fn(&File); 3] = [
        &|file| file.set_len(0).unwrap(),
        &|file| file.set_len(8192).unwrap(),
        // A byte of the superblock other than the magic.
        &|file| file.write_all_at(&[0xff], 1024 + 40).unwrap(),
    ];
    for damage in damage {
        damage(&OpenOptions::new().write(true).open(&path).unwrap());
        assert!(std::fs::read(&path).unwrap() != good);
        store.get(&fixture.layer("1")).unwrap();
        assert!(std::fs::read(&path).unwrap() == good);
    }
    std::fs::write(store.record_path(&blob.key), "{").unwrap();
    store.get(&fixture.layer("1")).unwrap();
}

#[test]
fn a_killed_builders_file_is_replaced() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let key = Identity::of(&fixture.layer("1")).unwrap().key();
    std::fs::create_dir_all(&store.dir).unwrap();
    std::fs::write(store.dir.join(format!("{key}.partial")), "half").unwrap();
    store.get(&fixture.layer("1")).unwrap();
    assert_eq!(fixture.files().len(), 3);
}

#[test]
fn blobs_of_gone_layers_are_removed() {
    let fixture = Fixture::new();
    fixture.add_layer("2");
    fixture.add_layer("3");
    let store = fixture.store();
    let gone = store.get(&fixture.layer("1")).unwrap();
    let kept = store.get(&fixture.layer("2")).unwrap();
    std::fs::remove_dir_all(fixture.layer("1")).unwrap();
    store.get(&fixture.layer("3")).unwrap();
    assert!(!store.path(&gone.key).exists());
    assert!(!store.record_path(&gone.key).exists());
    assert!(store.path(&kept.key).exists());
    // Whoever has it open still reads it.
    superblock::check(&gone.file).unwrap();
}

#[test]
fn a_missing_layer_is_named() {
    let fixture = Fixture::new();
    let error = fixture.store().get(&fixture.layer("none")).unwrap_err();
    assert!(error.to_string().contains("snapshots/none/fs"), "{error}");
}
