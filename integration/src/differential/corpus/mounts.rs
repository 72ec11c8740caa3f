//! Mounts: options, propagation, kinds of source and destination, and what leads out.

use serde_json::{Value, json};

use crate::differential::case::{Case, Step, case};

/// A directory and a file to bind.
const VOLUME: &str = "mkdir {dir}/volume; echo kept > {dir}/volume/file; chmod 777 {dir}/volume";
/// Two mounts one below the other.
const NESTED: &str = "mkdir -p {dir}/volume; mount -t tmpfs outer {dir}/volume; \
    mkdir {dir}/volume/inner; mount -t tmpfs inner {dir}/volume/inner";
const UNNEST: &str = "umount -R {dir}/volume";
const SHARED: &str =
    "mkdir -p {dir}/volume; mount -t tmpfs outer {dir}/volume; mount --make-shared {dir}/volume";
const PRIVATE: &str =
    "mkdir -p {dir}/volume; mount -t tmpfs outer {dir}/volume; mount --make-private {dir}/volume";

fn bind(source: &str, options: &[&str]) -> Value {
    json!({"destination": "/volume", "type": "bind", "source": source, "options": options})
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

pub fn cases() -> Vec<Case> {
    [
        options(),
        propagation(),
        recursive(),
        destinations(),
        sources(),
        root(),
        own(),
        mapped(),
    ]
    .concat()
}

fn options() -> Vec<Case> {
    let volume = |name| case(name).host(VOLUME, "");
    vec![
        volume("mounts/bind").mount(bind("{dir}/volume", &["rbind"])),
        volume("mounts/bind-readonly").mount(bind("{dir}/volume", &["bind", "ro"])),
        volume("mounts/bind-flags")
            .mount(bind("{dir}/volume", &["rbind", "nosuid", "nodev", "noexec", "noatime", "nodiratime"])),
        volume("mounts/bind-relatime").mount(bind("{dir}/volume", &["rbind", "relatime", "suid", "dev", "exec"])),
        volume("mounts/bind-strictatime").mount(bind("{dir}/volume", &["rbind", "strictatime"])),
        volume("mounts/bind-nosymfollow").mount(bind("{dir}/volume", &["rbind", "nosymfollow"])),
        volume("mounts/bind-without-bind-option").mount(bind("{dir}/volume", &["ro"])),
        volume("mounts/bind-by-option-alone")
            .mount(json!({"destination": "/volume", "source": "{dir}/volume", "options": ["rbind"]})),
        volume("mounts/bind-with-type-none")
            .mount(json!({"destination": "/volume", "type": "none", "source": "{dir}/volume", "options": ["bind"]})),
        volume("mounts/bind-with-data").mount(bind("{dir}/volume", &["rbind", "size=1k"])).says(&["size=1k", "bind", "option"]),
        volume("mounts/last-option-wins").mount(bind("{dir}/volume", &["rbind", "ro", "rw", "nosuid", "suid"])),
        volume("mounts/bind-sync").mount(bind("{dir}/volume", &["rbind", "sync", "dirsync"])),
        volume("mounts/bind-relative-source").mount(bind("../volume", &["rbind"])).says(&["volume"]),
        case("mounts/tmpfs-options").mount(tmpfs("/volume", &["size=128k", "nr_inodes=10", "mode=1777", "uid=5", "gid=6", "noexec"])),
        case("mounts/tmpfs-bare").mount(json!({"destination": "/volume", "type": "tmpfs"})),
        case("mounts/tmpfs-readonly").mount(tmpfs("/volume", &["ro", "size=128k"])),
        case("mounts/tmpfs-unknown-option").mount(tmpfs("/volume", &["colour=blue"])).says(&["/volume"]),
        case("mounts/tmpfs-bad-size").mount(tmpfs("/volume", &["size=much"])).says(&["/volume"]),
        case("mounts/tmpfs-copyup")
            .host("mkdir {rootfs}/volume; echo kept > {rootfs}/volume/file; chmod 751 {rootfs}/volume; chown 7:8 {rootfs}/volume", "")
            .mount(tmpfs("/volume", &["tmpcopyup", "size=1m"]))
            .script("cat /volume/file; stat -c '%a %u:%g' /volume; grep ' /volume ' /proc/self/mountinfo | cut -d' ' -f6 2>/dev/null; true"),
        case("mounts/tmpfs-keeps-mode")
            .host("mkdir {rootfs}/volume; chmod 751 {rootfs}/volume; chown 7:8 {rootfs}/volume", "")
            .mount(tmpfs("/volume", &["nosuid"])),
        case("mounts/copyup-of-a-bind").host(VOLUME, "").mount(bind("{dir}/volume", &["rbind", "tmpcopyup"])).says(&["tmpcopyup", "copy", "option"]),
        case("mounts/unknown-type").mount(json!({"destination": "/volume", "type": "nofs", "source": "x"})).says(&["/volume", "nofs"]),
        case("mounts/ramfs").mount(json!({"destination": "/volume", "type": "ramfs", "source": "ramfs"})),
        case("mounts/overlay")
            .host("mkdir {dir}/lower {dir}/upper {dir}/work; echo low > {dir}/lower/file", "")
            .mount(json!({"destination": "/volume", "type": "overlay", "source": "overlay",
                "options": ["lowerdir={dir}/lower", "upperdir={dir}/upper", "workdir={dir}/work"]}))
            .script("cat /volume/file; echo up > /volume/other && ls /volume"),
        case("mounts/defaults").mount(tmpfs("/volume", &["defaults"])),
        case("mounts/lazytime-and-more").mount(tmpfs("/volume", &["lazytime", "iversion", "silent"])),
    ]
}

fn propagation() -> Vec<Case> {
    let shared = |name| case(name).host(SHARED, UNNEST);
    let private = |name| case(name).host(PRIVATE, UNNEST);
    vec![
        shared("mounts/propagation-default").mount(bind("{dir}/volume", &["rbind"])),
        shared("mounts/propagation-private").mount(bind("{dir}/volume", &["rbind", "private"])),
        shared("mounts/propagation-slave").mount(bind("{dir}/volume", &["rbind", "rslave"])),
        shared("mounts/propagation-shared").linux(json!({"rootfsPropagation": "shared"}))
            .mount(bind("{dir}/volume", &["rbind", "rshared"])),
        shared("mounts/propagation-unbindable").mount(bind("{dir}/volume", &["rbind", "unbindable"])),
        private("mounts/propagation-slave-of-private").mount(bind("{dir}/volume", &["rbind", "rslave"])),
        private("mounts/propagation-shared-of-private").mount(bind("{dir}/volume", &["rbind", "rshared"])),
        case("mounts/propagation-of-tmpfs").mount(tmpfs("/volume", &["rshared"])),
        case("mounts/propagation-two").mount(tmpfs("/volume", &["shared", "slave"])),
        shared("mounts/propagation-reaches-in")
            .linux(json!({"rootfsPropagation": "rslave"}))
            .mount(bind("{dir}/volume", &["rbind", "rslave"]))
            .script("touch /go; until test -d /volume/inner; do sleep 0.1; done; until grep -q ' /volume/inner ' /proc/self/mountinfo; do sleep 0.1; done; echo seen")
            .steps(vec![
                Step::Create(vec![]),
                Step::Call(vec!["start", "{id}"]),
                Step::Until("test -e {rootfs}/go"),
                Step::Shell("mkdir {dir}/volume/inner && mount -t tmpfs inner {dir}/volume/inner"),
                Step::Wait,
                Step::Shell("umount {dir}/volume/inner"),
                Step::Call(vec!["delete", "{id}"]),
            ]),
        case("mounts/root-private").linux(json!({"rootfsPropagation": "private"})),
        case("mounts/root-slave").linux(json!({"rootfsPropagation": "rslave"})),
        case("mounts/root-shared").linux(json!({"rootfsPropagation": "shared"})),
        case("mounts/root-unbindable").linux(json!({"rootfsPropagation": "unbindable"})),
        case("mounts/root-propagation-unknown").linux(json!({"rootfsPropagation": "wide"})).says(&["rootfspropagation", "propagation", "wide"]),
        case("mounts/root-propagation-empty").linux(json!({"rootfsPropagation": ""})),
    ]
}

fn recursive() -> Vec<Case> {
    let nested = |name| case(name).host(NESTED, UNNEST);
    vec![
        nested("mounts/recursive-bind-readonly").mount(bind("{dir}/volume", &["rbind", "ro"])),
        nested("mounts/plain-bind").mount(bind("{dir}/volume", &["bind"])),
        nested("mounts/rro").mount(bind("{dir}/volume", &["rbind", "rro"])),
        nested("mounts/rro-and-others").mount(bind(
            "{dir}/volume",
            &["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime"],
        )),
        nested("mounts/rrw-after-ro").mount(bind("{dir}/volume", &["rbind", "ro", "rrw"])),
        nested("mounts/rstrictatime").mount(bind("{dir}/volume", &["rbind", "rstrictatime"])),
        nested("mounts/rnosymfollow").mount(bind("{dir}/volume", &["rbind", "rnosymfollow"])),
        nested("mounts/rro-of-a-plain-bind").mount(bind("{dir}/volume", &["bind", "rro"])),
        nested("mounts/rro-shared").mount(bind("{dir}/volume", &["rbind", "rro", "rprivate"])),
        case("mounts/rro-of-tmpfs").mount(tmpfs("/volume", &["rro"])),
    ]
}

fn destinations() -> Vec<Case> {
    vec![
        case("mounts/destination-relative").mount(tmpfs("volume", &[])),
        case("mounts/destination-with-dots").mount(tmpfs("/a/../../volume", &[])),
        case("mounts/destination-empty").mount(tmpfs("", &[])).says(&["destination"]),
        case("mounts/destination-missing")
            .mount(json!({"type": "tmpfs", "source": "tmpfs"}))
            .says(&["destination"]),
        case("mounts/destination-is-made").mount(tmpfs("/a/b/c", &[])),
        case("mounts/destination-root").mount(tmpfs("/", &["mode=755"])).says(&["/", "destination"]),
        case("mounts/destination-twice").mount(tmpfs("/volume", &["size=64k"])).mount(tmpfs("/volume", &["size=128k"])),
        case("mounts/destination-file-for-a-directory").mount(tmpfs("/etc/passwd", &[])).says(&["/etc/passwd"]),
        case("mounts/destination-directory-for-a-file").host(VOLUME, "")
            .mount(json!({"destination": "/etc", "type": "bind", "source": "{dir}/volume/file", "options": ["bind"]}))
            .says(&["/etc"]),
        case("mounts/destination-link").host("mkdir {rootfs}/real; ln -s /real {rootfs}/volume", "").mount(tmpfs("/volume", &[])),
        case("mounts/destination-link-outside")
            .host("mkdir {dir}/outside; ln -s {dir}/outside {rootfs}/volume", "")
            .mount(tmpfs("/volume", &[])),
        case("mounts/destination-link-up")
            .host("mkdir {dir}/outside; ln -s ../../../../outside {rootfs}/volume", "")
            .mount(tmpfs("/volume", &[])),
        case("mounts/destination-below-link-outside")
            .host("mkdir {dir}/outside; ln -s {dir}/outside {rootfs}/volume", "")
            .mount(tmpfs("/volume/made", &[]))
            .script("ls -d /volume/made; grep -c made /proc/self/mountinfo"),
        case("mounts/destination-dangling-link")
            .host("ln -s /made/later {rootfs}/volume", "")
            .mount(tmpfs("/volume", &[])),
        case("mounts/destination-link-cycle")
            .host("ln -s volume {rootfs}/volume", "")
            .mount(tmpfs("/volume", &[]))
            .says(&["volume"]),
        case("mounts/file-at-link")
            .host("mkdir {dir}/volume; echo bound > {dir}/volume/file; ln -s /etc/target {rootfs}/link", "")
            .mount(json!({"destination": "/link", "type": "bind", "source": "{dir}/volume/file", "options": ["bind"]}))
            .script("cat /etc/target; readlink /link"),
        case("mounts/over-proc").mount(tmpfs("/proc", &[])).says(&["/proc"]),
        case("mounts/inside-proc").host(VOLUME, "")
            .mount(json!({"destination": "/proc/uptime", "type": "bind", "source": "{dir}/volume/file", "options": ["bind"]})),
        case("mounts/inside-proc-forbidden").host(VOLUME, "")
            .mount(json!({"destination": "/proc/self/attr", "type": "bind", "source": "{dir}/volume", "options": ["bind"]}))
            .says(&["/proc"]),
        case("mounts/proc-at-link")
            .host("rmdir {rootfs}/proc; mkdir {rootfs}/other; ln -s /other {rootfs}/proc", "")
            .says(&["/proc"]),
        case("mounts/sys-at-link")
            .host("rmdir {rootfs}/sys; mkdir {rootfs}/other; ln -s /other {rootfs}/sys", "")
            .says(&["/sys"]),
        case("mounts/dev-at-link")
            .host("rmdir {rootfs}/dev; mkdir {rootfs}/other; ln -s /other {rootfs}/dev", ""),
        case("mounts/proc-elsewhere").mount(json!({"destination": "/volume", "type": "proc", "source": "proc", "options": ["ro"]})),
        case("mounts/sys-over-a-bind").host(VOLUME, "")
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "bind", "source": "{dir}/volume", "options": ["bind"]})),
    ]
}

fn sources() -> Vec<Case> {
    vec![
        case("mounts/file").host(VOLUME, "")
            .mount(bind("{dir}/volume/file", &["bind", "ro"])),
        case("mounts/file-over-file").host(VOLUME, "")
            .mount(json!({"destination": "/etc/passwd", "type": "bind", "source": "{dir}/volume/file", "options": ["bind", "ro"]}))
            .script("cat /etc/passwd; echo x 2>&1 >/etc/passwd"),
        case("mounts/fifo").host("mkfifo {dir}/fifo", "").mount(bind("{dir}/fifo", &["bind"])),
        case("mounts/device").mount(bind("/dev/null", &["bind"])),
        case("mounts/source-link").host("mkdir {dir}/volume; echo kept > {dir}/volume/file; ln -s volume {dir}/link", "")
            .mount(bind("{dir}/link", &["rbind"])).script("cat /volume/file"),
        case("mounts/source-missing").mount(bind("{dir}/nowhere", &["rbind"])).says(&["nowhere"]),
        case("mounts/source-empty").mount(bind("", &["rbind"])).says(&["source", "/volume", "mount"]),
        case("mounts/source-with-mount").host(NESTED, UNNEST).mount(bind("{dir}/volume/inner", &["rbind"])),
        case("mounts/host-proc").mount(bind("/proc", &["rbind", "ro"])).script("test -d /volume/1 && echo there"),
        case("mounts/host-sys").without_mount("/sys").without_mount("/sys/fs/cgroup")
            .mount(json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]}))
            .script("grep ' /sys' /proc/self/mountinfo | sed 's/.* - //' | sort | head -n 3"),
        case("mounts/rootfs-into-itself").mount(bind("{rootfs}", &["bind"])).script("ls -d /volume/bin"),
    ]
}

fn root() -> Vec<Case> {
    vec![
        case("mounts/readonly-root").merge(json!({"root": {"readonly": true}})),
        case("mounts/readonly-root-with-new-destination")
            .merge(json!({"root": {"readonly": true}}))
            .mount(tmpfs("/made/by/runtime", &[])),
        case("mounts/readonly-root-with-cwd")
            .merge(json!({"root": {"readonly": true}}))
            .process(json!({"cwd": "/made/by/runtime"}))
            .says(&["cwd", "mkdir", "directory", "/made"]),
        case("mounts/readonly-root-shared")
            .merge(json!({"root": {"readonly": true}}))
            .linux(json!({"rootfsPropagation": "rshared"})),
        case("mounts/root-is-a-mount")
            .host("mount --bind {rootfs} {rootfs}; mount --make-shared {rootfs}", "umount {rootfs}"),
        case("mounts/root-is-readonly-mount")
            .host("mkdir -p {rootfs}/volume; mount --bind {rootfs} {rootfs}; mount -o remount,bind,ro {rootfs}", "umount {rootfs}")
            .merge(json!({"root": {"readonly": true}}))
            .without_mount("/run")
            .script("echo x 2>&1 >/x; echo ran"),
        case("mounts/no-pivot").steps(vec![
            Step::Create(vec!["--no-pivot"]),
            Step::Call(vec!["start", "{id}"]),
            Step::Wait,
            Step::Call(vec!["delete", "{id}"]),
        ]),
    ]
}

fn own() -> Vec<Case> {
    vec![
        case("mounts/without-dev").without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm").without_mount("/dev/mqueue"),
        case("mounts/without-pts").without_mount("/dev/pts"),
        case("mounts/dev-bind").without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm").without_mount("/dev/mqueue")
            .mount(json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}))
            .script("test -c /dev/null && echo null; test -L /dev/ptmx && echo link || echo other"),
        case("mounts/dev-readonly").without_mount("/dev").without_mount("/dev/pts").without_mount("/dev/shm").without_mount("/dev/mqueue")
            .mount(tmpfs("/dev", &["nosuid", "ro", "mode=755"])),
        case("mounts/cgroup-writable").without_mount("/sys/fs/cgroup")
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]})),
        case("mounts/cgroup2").without_mount("/sys/fs/cgroup")
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup", "options": ["ro", "nsdelegate"]})),
        case("mounts/cgroup-without-namespace").without_namespace("cgroup"),
        case("mounts/cgroup-elsewhere").mount(json!({"destination": "/volume", "type": "cgroup", "source": "cgroup", "options": ["ro"]})),
        case("mounts/sys-writable").without_mount("/sys").without_mount("/sys/fs/cgroup")
            .mount(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid"]})),
        case("mounts/masked").linux(json!({"maskedPaths": ["/masked", "/etc", "/proc/kcore", "/nowhere"]}))
            .host("echo secret > {rootfs}/masked", ""),
        case("mounts/masked-none").linux(json!({"maskedPaths": [], "readonlyPaths": []})),
        case("mounts/masked-missing").linux(json!({"maskedPaths": null, "readonlyPaths": null})),
        case("mounts/masked-link").linux(json!({"maskedPaths": ["/masked"]}))
            .host("ln -s /etc/passwd {rootfs}/masked", ""),
        case("mounts/masked-relative").linux(json!({"maskedPaths": ["masked"]}))
            .host("echo secret > {rootfs}/masked", ""),
        case("mounts/masked-below-file").linux(json!({"maskedPaths": ["/etc/passwd/x"]})),
        case("mounts/readonly-paths").linux(json!({"readonlyPaths": ["/masked", "/tmp", "/nowhere"]}))
            .host("echo plain > {rootfs}/masked", ""),
        case("mounts/readonly-path-with-mounts").host(NESTED, UNNEST)
            .mount(bind("{dir}/volume", &["rbind", "nosuid"]))
            .linux(json!({"readonlyPaths": ["/volume"]})),
    ]
}

fn mapped() -> Vec<Case> {
    let all = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let mapped = |options: &[&str], uids: &Value, gids: &Value| {
        let mut mount = bind("{dir}/volume", options);
        mount["uidMappings"] = uids.clone();
        mount["gidMappings"] = gids.clone();
        mount
    };
    let volume = "mkdir {dir}/volume; mount -t tmpfs x {dir}/volume; mkdir {dir}/volume/inner; \
        mount -t tmpfs y {dir}/volume/inner; touch {dir}/volume/file {dir}/volume/inner/file";
    let look = "stat -c '%n %u:%g' /volume/file /volume/inner/file";
    let volume = |name| case(name).host(volume, UNNEST).script(look);
    vec![
        volume("mounts/idmap").mount(mapped(&["rbind", "idmap"], &all, &all)),
        volume("mounts/ridmap").mount(mapped(&["rbind", "ridmap"], &all, &all)),
        volume("mounts/idmap-without-option").mount(mapped(&["rbind"], &all, &all)),
        volume("mounts/idmap-option-alone").mount(bind("{dir}/volume", &["rbind", "idmap"])).says(&["map"]),
        volume("mounts/idmap-without-gids")
            .mount(json!({"destination": "/volume", "type": "bind", "source": "{dir}/volume", "options": ["rbind"], "uidMappings": all}))
            .says(&["gid", "map"]),
        volume("mounts/idmap-overlap")
            .mount(mapped(&["rbind"], &json!([
                {"containerID": 0, "hostID": 100_000, "size": 1000},
                {"containerID": 500, "hostID": 200_000, "size": 1000}]), &all))
            .says(&["map", "overlap"]),
        case("mounts/idmap-of-tmpfs")
            .mount(json!({"destination": "/volume", "type": "tmpfs", "source": "tmpfs", "uidMappings": all, "gidMappings": all}))
            .says(&["map"]),
        volume("mounts/idmap-in-a-user-namespace")
            .host("mkdir {dir}/volume; mount -t tmpfs x {dir}/volume; mkdir {dir}/volume/inner; \
                mount -t tmpfs y {dir}/volume/inner; touch {dir}/volume/file {dir}/volume/inner/file; \
                chown -R 100000:100000 {rootfs}; chmod 755 {dir} {bundle}", UNNEST)
            .namespace(json!({"type": "user"}))
            .linux(json!({"uidMappings": all, "gidMappings": all}))
            .mount(bind("{dir}/volume", &["rbind", "ridmap"])),
    ]
}
