//! Volumes of containers, and files that go back.

mod common;
#[path = "common/machine.rs"]
#[allow(dead_code)]
mod machine;

use std::fs;
use std::path::Path;

use common::isolated;
use guest_agent::storage::Storage;
use guest_agent::volumes::{VolumeError, Volumes};
use machine::{Machine, Recipe, context, with_machine};
use protocol::guest::{
    CreateOptions, Directory, Disk, DropSharesRequest, File, NextEventRequest, Volume, volume,
};
use serde_json::json;

fn directory(name: &str, path: &str) -> Volume {
    Volume {
        kind: Some(volume::Kind::Directory(Directory {
            name: name.into(),
            path: path.into(),
            mode: 0o1770,
            uid: 0,
            gid: 7,
            memory: true,
            size_bytes: 1 << 20,
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A container with one volume on /tmp that runs `script` to its end.
async fn run_with(
    machine: &Machine,
    id: &str,
    volume: Volume,
    script: &str,
) -> Result<u32, String> {
    let mut new = Recipe::new(id, script);
    new.spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/tmp", "type": "bind", "source": "joey-volume:0", "options": ["rbind"],
    }));
    new.volumes = vec![volume];
    machine.create(new).await.map_err(|(_, text)| text)?;
    machine.start(id, "").await.map_err(|(_, text)| text)?;
    Ok(machine.wait(id, "").await)
}

#[test]
fn a_directory_is_the_pods() {
    isolated("a_directory_is_the_pods", || {
        with_machine(async |machine| {
            let run = async |id, volume, script| run_with(machine, id, volume, script).await;
            let script = "[ $(stat -c %a:%g /tmp) = 1770:7 ] && mkdir /tmp/sub && echo x > /tmp/sub/file && ln -s / /tmp/link";
            assert_eq!(run("one", directory("cache", ""), script).await, Ok(0));
            // The limit counts, and what failed is not there.
            let script = "! head -c 2000000 /dev/zero > /tmp/big && rm /tmp/big";
            assert_eq!(run("two", directory("cache", ""), script).await, Ok(0));
            let script = "[ $(cat /tmp/file) = x ] && echo y > /tmp/other";
            assert_eq!(run("three", directory("cache", "sub"), script).await, Ok(0));
            let script = "[ $(cat /tmp/sub/other) = y ] && [ -d /tmp/new/deep ]";
            assert_eq!(
                run("four", directory("cache", "new/deep"), "true").await,
                Ok(0)
            );
            assert_eq!(run("five", directory("cache", ""), script).await, Ok(0));
            // Another volume is another directory.
            let script = "[ -z \"$(ls -A /tmp)\" ]";
            assert_eq!(run("six", directory("other", ""), script).await, Ok(0));

            for (id, part) in [
                ("a", "link"),
                ("b", "../x"),
                ("c", "sub//x"),
                ("d", "link/etc"),
            ] {
                let error = run(id, directory("cache", part), "true").await.unwrap_err();
                assert!(error.contains(part), "{part}: {error}");
            }
            let error = run("e", directory("../x", ""), "true").await.unwrap_err();
            assert!(error.contains("../x"), "{error}");
        });
    });
}

#[test]
fn what_a_container_leaves_in_a_file_goes_back() {
    isolated("what_a_container_leaves_in_a_file_goes_back", || {
        with_machine(async |machine| {
            let file = |give_back| File {
                data: b"before".into(),
                mode: 0o644,
                give_back,
                ..Default::default()
            };
            let script =
                "echo after > /tmp/b; echo kept > /tmp/a; head -c 70000 /dev/zero > /tmp/c; exit 3";
            let mut new = Recipe::new("one", script);
            let mounts = new.spec["mounts"].as_array_mut().unwrap();
            for (index, name) in ["a", "b", "c"].iter().enumerate() {
                mounts.push(json!({
                    "destination": format!("/tmp/{name}"), "type": "bind",
                    "source": format!("joey-file:{index}"), "options": ["rbind"],
                }));
            }
            new.files = vec![file(false), file(true), file(true)];
            machine.create(new).await.unwrap();
            machine.start("one", "").await.unwrap();
            let request = NextEventRequest::default();
            let event = machine.guest.next_event(context(), &request).await.unwrap();
            let exit = event.exit();
            assert_eq!(exit.status, 3);
            let files: Vec<_> = exit
                .files
                .iter()
                .map(|file| (file.index, file.data.len()))
                .collect();
            assert_eq!(files, [(1, 6), (2, 64 << 10)]);
            assert_eq!(exit.files[0].data, b"after\n");
        });
    });
}

/// The kernel's view of a disk on a platform device, played with files.
fn platform(directory: &Path, device: &str) {
    let driver = directory.join("drivers/virtio-mmio");
    fs::create_dir_all(&driver).unwrap();
    let disk = directory
        .join("devices")
        .join(device)
        .join("virtio6/block/vdc");
    fs::create_dir_all(&disk).unwrap();
    fs::write(disk.join("dev"), "254:32\n").unwrap();
}

#[test]
fn disks_are_bound_and_released() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path();
    platform(base, "virtio-mmio.6");
    let mut volumes = Volumes::new(base.into(), base);
    let mut storage = Storage::new("/none".into(), "/none".into(), base.into());
    let disk = |device: &str| Disk {
        device: device.into(),
        path: "/dev/data".into(),
        ..Default::default()
    };
    let options = |disks: &[&str]| CreateOptions {
        disks: disks.iter().map(|device| disk(device)).collect(),
        ..Default::default()
    };
    let said = |verb: &str| {
        fs::read_to_string(base.join("drivers/virtio-mmio").join(verb)).unwrap_or_default()
    };
    let prepared = volumes
        .prepare(&options(&["virtio-mmio.6"]), &mut storage)
        .unwrap();
    assert_eq!(
        (prepared.nodes[0].major, prepared.nodes[0].minor),
        (254, 32)
    );
    assert_eq!(said("bind"), "virtio-mmio.6");
    let again = volumes.prepare(&options(&["virtio-mmio.6"]), &mut storage);
    assert!(matches!(again, Err(VolumeError::Invalid(_))));
    assert_eq!(said("unbind"), "");
    volumes.release(&prepared.nodes);
    assert_eq!(said("unbind"), "virtio-mmio.6");

    // One that does not come takes those before it along.
    fs::remove_file(base.join("drivers/virtio-mmio/unbind")).unwrap();
    platform(base, "virtio-mmio.7");
    fs::remove_dir_all(base.join("devices/virtio-mmio.7/virtio6")).unwrap();
    let error = volumes
        .prepare(&options(&["virtio-mmio.6", "virtio-mmio.7"]), &mut storage)
        .unwrap_err();
    assert!(error.to_string().contains("virtio-mmio.7"), "{error}");
    assert_eq!(said("unbind"), "virtio-mmio.6");
    volumes
        .prepare(&options(&["virtio-mmio.6"]), &mut storage)
        .unwrap();
    for name in ["../x", "", "a/b"] {
        let refused = volumes.prepare(&options(&[name]), &mut storage);
        assert!(matches!(refused, Err(VolumeError::Invalid(_))), "{name}");
    }
}

#[test]
fn a_share_needs_its_device() {
    isolated("a_share_needs_its_device", || {
        with_machine(async |machine| {
            let share = Volume {
                kind: Some(volume::Kind::Share(1)),
                ..Default::default()
            };
            let error = run_with(machine, "one", share, "true").await.unwrap_err();
            assert!(error.contains("share"), "{error}");
            // Shares that were never there are forgotten all the same.
            let request = DropSharesRequest {
                shares: vec![1],
                ..Default::default()
            };
            machine
                .guest
                .drop_shares(context(), &request)
                .await
                .unwrap();
        });
    });
}
