//! The file system that a container sees.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use common::Bundle;
use serde_json::json;

/// The options of a mount point in a `mountinfo` table.
fn options<'a>(table: &'a str, point: &str) -> Vec<&'a str> {
    table
        .lines()
        .rev()
        .find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            (fields.get(4) == Some(&point)).then(|| fields[5].split(',').collect())
        })
        .unwrap_or_else(|| panic!("no mount on {point} in {table}"))
}

#[test]
fn only_the_container_s_own_mounts_are_there() {
    let bundle = Bundle::new("cut -d' ' -f5 /proc/self/mountinfo");
    let text = bundle.run();
    // Not every kernel has all that is hidden or protected.
    let optional = [
        "/proc/acpi",
        "/proc/kcore",
        "/proc/sysrq-trigger",
        "/sys/firmware",
    ];
    let mut points: Vec<_> = text
        .lines()
        .filter(|point| !optional.contains(point))
        .collect();
    points.sort();
    assert_eq!(
        points
            .into_iter()
            .filter(|point| !point.starts_with("/sys/fs/cgroup/"))
            .collect::<Vec<_>>(),
        [
            "/",
            "/dev",
            "/dev/mqueue",
            "/dev/pts",
            "/dev/shm",
            "/proc",
            "/proc/sys",
            "/sys",
            "/sys/fs/cgroup"
        ]
    );
}

#[test]
fn mount_options_are_kept() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    bundle.push(
        "/mounts",
        json!({"destination": "/a/b", "type": "tmpfs", "source": "tmpfs",
               "options": ["ro", "nosuid", "nodev", "noexec", "noatime", "size=1m", "mode=0711"]}),
    );
    let table = bundle.run();
    let found = options(&table, "/a/b");
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(found.contains(&option), "{option} in {found:?}");
    }
    assert!(table.contains("size=1024k,mode=711"), "{table}");
    assert!(options(&table, "/sys").contains(&"ro"));
    assert!(options(&table, "/proc").contains(&"noexec"));
}

#[test]
fn binds_of_files_and_directories() {
    let mut bundle = Bundle::new(
        "cat /etc/hosts /data/file; echo no > /data/file; echo yes > /free/new; \
         cat /proc/self/mountinfo",
    );
    let host = bundle.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "content\n").unwrap();
    std::fs::create_dir(bundle.dir.join("free")).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/etc/hosts", "type": "bind",
        "source": host.join("file"), "options": ["rbind", "rprivate", "ro"]}),
    );
    bundle.push(
        "/mounts",
        json!({"destination": "/data", "source": host,
        "options": ["bind", "ro", "nosuid"]}),
    );
    bundle.push(
        "/mounts",
        json!({"destination": "/free", "type": "bind",
        "source": bundle.dir.join("free"), "options": ["rbind"]}),
    );
    let text = bundle.run();
    assert!(text.starts_with("content\ncontent\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(options(&text, "/data").contains(&"nosuid"));
    assert_eq!(
        std::fs::read_to_string(bundle.dir.join("free/new")).unwrap(),
        "yes\n"
    );
}

/// It leads to a mount of the engine's namespace, not of the container's copy.
#[test]
fn a_source_can_be_a_descriptor_of_the_engine() {
    let mut bundle = Bundle::new("cat /data/file");
    let host = bundle.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "content\n").unwrap();
    let open = std::fs::File::open(&host).unwrap();
    // The engine inherits it.
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let source = format!("/proc/self/fd/{}", open.as_raw_fd());
    bundle.push(
        "/mounts",
        json!({"destination": "/data", "type": "bind", "source": source,
        "options": ["rbind", "rprivate"]}),
    );
    assert_eq!(bundle.run(), "content\n");
}

#[test]
fn recursive_options_reach_the_mounts_below() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let host = bundle.dir.join("host");
    std::fs::create_dir_all(host.join("below")).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/plain", "type": "bind", "source": host,
        "options": ["rbind", "ro"]}),
    );
    // The first bind, with a file system mounted in it, is the source of the second.
    bundle.push(
        "/mounts",
        json!({"destination": "/plain/below", "type": "tmpfs",
        "source": "tmpfs"}),
    );
    bundle.push(
        "/mounts",
        json!({"destination": "/strict", "type": "bind",
        "source": bundle.rootfs().join("plain"), "options": ["rbind", "rro"]}),
    );
    let table = bundle.run();
    assert!(options(&table, "/plain/below").contains(&"rw"));
    assert!(options(&table, "/strict/below").contains(&"ro"));
}

#[test]
fn destinations_never_lead_out_of_the_root() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo; ls /outside");
    let outside = bundle.dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(
        format!("../../../../../..{}", outside.display()),
        bundle.rootfs().join("up"),
    )
    .unwrap();
    symlink("/", bundle.rootfs().join("self")).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/up/new", "type": "tmpfs", "source": "tmpfs"}),
    );
    bundle.push(
        "/mounts",
        json!({"destination": "/self/outside", "type": "tmpfs",
        "source": "tmpfs"}),
    );
    let table = bundle.run();
    options(&table, &format!("{}/new", outside.display()));
    options(&table, "/outside");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn proc_is_not_mounted_over() {
    let mut bundle = Bundle::new("true");
    bundle.push(
        "/mounts",
        json!({"destination": "/proc/self/attr", "type": "tmpfs",
        "source": "tmpfs"}),
    );
    assert!(bundle.fail().0.contains("inside /proc"));

    let mut bundle = Bundle::new("cat /proc/uptime");
    std::fs::write(bundle.dir.join("uptime"), "forged\n").unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/proc/uptime", "type": "bind",
        "source": bundle.dir.join("uptime"), "options": ["bind"]}),
    );
    assert_eq!(bundle.run(), "forged\n");

    let bundle = Bundle::new("true");
    std::fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    symlink("/tmp", bundle.rootfs().join("proc")).unwrap();
    assert!(bundle.fail().0.starts_with("mount proc on /proc: "));
}

#[test]
fn the_image_s_files_are_copied_up_into_a_tmpfs() {
    let mut bundle = Bundle::new("ls -lnR /var | grep -v total; cat /var/sub/file; touch /var/new");
    let var = bundle.rootfs().join("var");
    std::fs::create_dir(var.join("sub")).unwrap();
    std::fs::write(var.join("sub/file"), "deep\n").unwrap();
    std::fs::set_permissions(
        var.join("sub/file"),
        std::fs::Permissions::from_mode(0o4750),
    )
    .unwrap();
    std::os::unix::fs::chown(var.join("sub"), Some(3), Some(4)).unwrap();
    symlink("sub", var.join("link")).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/var", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup"]}),
    );
    let text = bundle.run();
    assert!(text.contains("link -> sub"), "{text}");
    assert!(text.contains("-rwsr-x---"), "{text}");
    assert!(text.contains(" 3        4 "), "{text}");
    assert!(text.ends_with("deep\n"), "{text}");
    assert!(!var.join("new").exists());
}

#[test]
fn the_root_can_be_read_only() {
    let mut bundle = Bundle::new("touch /new; touch /dev/shm/new && echo writable");
    bundle.spec["root"]["readonly"] = json!(true);
    let text = bundle.run();
    assert_eq!(text, "touch: /new: Read-only file system\nwritable\n");
    assert!(!bundle.rootfs().join("new").exists());
}

#[test]
fn a_read_only_dev_is_complete() {
    let mut bundle = Bundle::new("echo x > /dev/null && touch /dev/new");
    bundle.push("/mounts/1/options", json!("ro"));
    let outcomes = bundle.take(json!(["create", "start", "wait", {"delete": {"force": false}}]));
    assert_eq!(
        outcomes[2]["output"],
        "touch: /dev/new: Read-only file system\n"
    );
}

#[test]
fn devices_and_links() {
    let mut bundle = Bundle::new(
        "stat -c '%n %F %t:%T %a %u:%g' /dev/null /dev/tty /dev/own /dev/deep/fifo; \
         for l in fd stdin ptmx; do readlink /dev/$l; done; umask 0; echo x > /dev/null",
    );
    bundle.spec["linux"]["devices"] = json!([
        {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o020604, "uid": 5,
         "gid": 6},
        {"path": "/dev/deep/fifo", "type": "p", "fileMode": 0o640},
        {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 0o600},
    ]);
    assert_eq!(
        bundle.run(),
        "/dev/null character special file 1:3 666 0:0\n\
         /dev/tty character special file 5:0 600 0:0\n\
         /dev/own character special file 1:5 604 5:6\n\
         /dev/deep/fifo fifo 0:0 640 0:0\n\
         /proc/self/fd\n/proc/self/fd/0\npts/ptmx\n"
    );
}

#[test]
fn masked_paths_are_empty_and_read_only_ones_read_only() {
    let mut bundle = Bundle::new(
        "wc -c < /secret/file; ls -A /hidden; touch /hidden/new; cat /secret/file; \
         echo 1 > /proc/sys/kernel/shm_rmid_forced; touch /kept/below/new",
    );
    let root = bundle.rootfs();
    for path in ["secret", "hidden/a", "kept/below"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::write(root.join("secret/file"), "secret").unwrap();
    bundle.push("/linux/maskedPaths", json!("/secret/file"));
    bundle.push("/linux/maskedPaths", json!("/hidden"));
    bundle.push("/linux/readonlyPaths", json!("/kept"));
    let outcomes = bundle.take(json!(["create", "start", "wait", {"delete": {"force": false}}]));
    assert_eq!(
        outcomes[2]["output"],
        "0\ntouch: /hidden/new: Read-only file system\n\
         /bin/sh: can't create /proc/sys/kernel/shm_rmid_forced: Read-only file system\n\
         touch: /kept/below/new: Read-only file system\n"
    );
}

#[test]
fn a_forged_null_device_masks_nothing_of_the_host() {
    // The image has a link where the null device belongs, and /dev is not covered.
    let mut bundle = Bundle::new("true");
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    symlink("/proc/self/exe", bundle.rootfs().join("dev/null")).unwrap();
    assert!(
        bundle
            .fail()
            .0
            .contains("make device /dev/null: something else")
    );
}

#[test]
fn mounts_show_mapped_ids() {
    let mut bundle = Bundle::new("stat -c '%u:%g' /mapped; touch /mapped/new");
    let host = bundle.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    std::os::unix::fs::chown(&host, Some(5000), Some(6000)).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/mapped", "type": "bind", "source": host,
        "options": ["rbind"],
        "uidMappings": [{"containerID": 5000, "hostID": 0, "size": 1}],
        "gidMappings": [{"containerID": 6000, "hostID": 0, "size": 1}]}),
    );
    assert_eq!(bundle.run(), "0:0\n");
    let new = std::fs::metadata(host.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (5000, 6000));
}

#[test]
fn propagation_is_as_asked() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let shared = |table: &str, point: &str| {
        let line = table
            .lines()
            .rev()
            .find(|line| line.split(' ').nth(4) == Some(point));
        line.unwrap_or_else(|| panic!("no {point}"))
            .contains("shared:")
    };
    bundle.push(
        "/mounts",
        json!({"destination": "/tmp", "type": "bind", "source": "/tmp",
        "options": ["rbind", "rshared"]}),
    );
    assert!(shared(&bundle.run(), "/tmp"));
    for (propagation, expected) in [("private", false), ("rshared", true), ("unbindable", false)] {
        bundle.spec["linux"]["rootfsPropagation"] = json!(propagation);
        assert_eq!(shared(&bundle.run(), "/"), expected, "{propagation}");
    }
}

#[test]
fn options_of_a_whole_file_system() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo; stat -c %a /fresh /kept");
    std::fs::create_dir(bundle.rootfs().join("kept")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o1751);
    std::fs::set_permissions(bundle.rootfs().join("kept"), mode).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/fresh", "type": "tmpfs", "source": "tmpfs",
        "options": ["sync", "dirsync", "lazytime", "mand", "silent", "noiversion", "nosymfollow"]}),
    );
    bundle.push(
        "/mounts",
        json!({"destination": "/kept", "type": "tmpfs", "source": "tmpfs",
        "options": ["sync", "async", "loud", "nomand"]}),
    );
    let text = bundle.run();
    let whole = |point: &str| {
        let line = text
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(point));
        let line = line.unwrap_or_else(|| panic!("no {point}"));
        line.rsplit(' ').next().unwrap().to_owned()
    };
    for option in ["sync", "dirsync", "lazytime"] {
        assert!(
            whole("/fresh").split(',').any(|one| one == option),
            "{text}"
        );
    }
    assert!(!whole("/kept").contains("sync"), "{text}");
    assert!(options(&text, "/fresh").contains(&"nosymfollow"));
    assert!(text.ends_with("1777\n1751\n"), "{text}");
}

#[test]
fn only_proc_is_mounted_on_proc() {
    let mut bundle = Bundle::new("true");
    bundle.push(
        "/mounts",
        json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}),
    );
    let error = bundle.fail().0;
    assert!(error.contains("only a proc file system"), "{error}");

    // Where a link of the image leads counts.
    let mut bundle = Bundle::new("true");
    symlink("/proc/sys", bundle.rootfs().join("innocent")).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/innocent", "type": "tmpfs", "source": "tmpfs"}),
    );
    let error = bundle.fail().0;
    assert!(error.contains("inside /proc"), "{error}");

    // Before there is a proc file system too.
    let mut bundle = Bundle::new("true");
    bundle.spec["mounts"].as_array_mut().unwrap().insert(
        0,
        json!({"destination": "/proc/sys", "type": "tmpfs", "source": "tmpfs"}),
    );
    let error = bundle.fail().0;
    assert!(error.contains("inside /proc"), "{error}");

    let mut bundle = Bundle::new("true");
    symlink("/", bundle.rootfs().join("innocent")).unwrap();
    bundle.push(
        "/mounts",
        json!({"destination": "/innocent", "type": "tmpfs", "source": "tmpfs"}),
    );
    let error = bundle.fail().0;
    assert!(error.contains("the root itself"), "{error}");

    let mut bundle = Bundle::new("readlink /proc/self");
    bundle.spec["mounts"][0] =
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
    bundle.run();
}

#[test]
fn a_device_that_is_another_is_an_error() {
    let mut bundle = Bundle::new("stat -c '%F %t:%T' /dev/same");
    let device = |minor: u32| json!({"path": "/dev/same", "type": "c", "major": 1, "minor": minor});
    bundle.spec["linux"]["devices"] = json!([device(5), device(5)]);
    assert_eq!(bundle.run(), "character special file 1:5\n");
    bundle.spec["linux"]["devices"] = json!([device(5), device(3)]);
    let error = bundle.fail().0;
    assert!(
        error.contains("make device /dev/same: something else"),
        "{error}"
    );
    for (device, field) in [
        (
            json!({"path": "/dev/x", "type": "a"}),
            "linux.devices[/dev/x]",
        ),
        (
            json!({"path": "/dev/x", "type": "c", "major": -1}),
            "linux.devices[/dev/x]",
        ),
        (json!({"path": "/dev/x"}), "linux.devices[0].type"),
        (
            json!({"path": "/dev/x", "type": "z"}),
            "linux.devices[0].type",
        ),
    ] {
        bundle.spec["linux"]["devices"] = json!([device]);
        let error = bundle.fail().0;
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn the_cgroup_mount_shows_what_the_namespace_shows() {
    let mut bundle = Bundle::new(
        "own=$(sed -n -e s/^0:://p -e s/^.*:pids://p /proc/self/cgroup | head -n 1); echo $own; \
         cd /sys/fs/cgroup; [ ! -e pids ] || cd pids; cat ./$own/cgroup.procs",
    );
    let text = bundle.run();
    assert!(text.starts_with("/\n1\n"), "{text}");
    if common::cgroup_version() == 1 {
        // There the mounts show the container's own part in any case.
        return;
    }
    bundle.without_namespace("cgroup");
    let text = bundle.run();
    let own = format!("/joey-test/{}\n1\n", bundle.id);
    assert!(text.contains(&own), "{text}");
}

#[test]
fn symbolic_links_may_be_followed_or_not() {
    let mut bundle = Bundle::new("cat /links/to; cat /links/real");
    let host = bundle.dir.join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("real"), "content\n").unwrap();
    symlink("real", host.join("to")).unwrap();
    for (options, expected) in [
        (json!(["rbind", "rnosymfollow"]), "content\n"),
        (
            json!(["bind", "nosymfollow", "symfollow"]),
            "content\ncontent\n",
        ),
    ] {
        bundle.spec["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/links", "source": host, "options": options}));
        let outcomes =
            bundle.take(json!(["create", "start", "wait", {"delete": {"force": false}}]));
        let text = outcomes[2]["output"].as_str().unwrap();
        assert!(text.ends_with(expected), "{text}");
        assert_eq!(
            text.contains("symbolic link"),
            expected == "content\n",
            "{text}"
        );
    }
}
