//! Volumes: directories and files of the host, emptyDirs, block devices and images.

use std::sync::atomic::{AtomicU32, Ordering};

use integration::combination::Combination;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::cri::{BUSYBOX, Container, DEBIAN, Pod, fails, sh};
use crate::leaks;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    let all: [(&str, fn()); 18] = [
        (
            "directory_is_shared_both_ways",
            directory_is_shared_both_ways,
        ),
        (
            "owners_and_attributes_are_the_same",
            owners_and_attributes_are_the_same,
        ),
        (
            "read_only_is_refused_by_both_sides",
            read_only_is_refused_by_both_sides,
        ),
        ("files_are_shared", files_are_shared),
        (
            "part_of_a_volume_shows_no_more",
            part_of_a_volume_shows_no_more,
        ),
        ("swapped_link_is_seen", swapped_link_is_seen),
        (
            "containers_of_a_pod_see_one_directory",
            containers_of_a_pod_see_one_directory,
        ),
        ("large_file_arrives_intact", large_file_arrives_intact),
        (
            "nothing_of_the_host_is_in_reach",
            nothing_of_the_host_is_in_reach,
        ),
        ("mounts_of_the_host_follow", mounts_of_the_host_follow),
        (
            "volume_is_free_after_its_container",
            volume_is_free_after_its_container,
        ),
        (
            "empty_dir_in_memory_has_a_limit",
            empty_dir_in_memory_has_a_limit,
        ),
        (
            "empty_dir_on_disk_is_the_pods",
            empty_dir_on_disk_is_the_pods,
        ),
        ("block_device_is_raw", block_device_is_raw),
        (
            "block_device_can_be_read_only",
            block_device_can_be_read_only,
        ),
        ("image_is_a_volume", image_is_a_volume),
        (
            "termination_message_reaches_the_host",
            termination_message_reaches_the_host,
        ),
        (
            "killed_virtiofsd_ends_the_pod",
            killed_virtiofsd_ends_the_pod,
        ),
    ];
    all.into_iter()
        .filter(|(name, _)| *name != "image_is_a_volume" || has_image_volumes())
        .map(|(name, test)| trial(&format!("volumes::{name}"), test))
        .collect()
}

/// containerd 1.7 has none.
fn has_image_volumes() -> bool {
    !Combination::of_this_run().is_containerd_1_7()
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A directory of the host, removed when dropped.
pub struct HostDir(pub String);

impl HostDir {
    pub fn new() -> Self {
        let path = format!("/run/volume{}", NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("mkdir {path}"));
        Self(path)
    }

    /// The directory of a kubelet for a pod of its own.
    fn kubelet() -> Self {
        let path = format!(
            "/run/kubelet/pods/uid{}",
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        sh(&format!("mkdir -p {path}/volumes/kubernetes.io~empty-dir"));
        Self(path)
    }
}

impl Drop for HostDir {
    fn drop(&mut self) {
        crate::cri::run(&format!(
            "for m in $(awk '{{print $5}}' /proc/self/mountinfo | grep ^{0}/ | sort -r) {0}; do umount -q $m; done; rm -rf {0}; rmdir -p /run/kubelet/pods 2>/dev/null",
            self.0
        ));
    }
}

pub fn mount(host: &str, container: &str) -> Value {
    json!({"host_path": host, "container_path": container})
}

fn with(mut mount: Value, key: &str, value: Value) -> Value {
    mount[key] = value;
    mount
}

/// A container that has these mounts and waits.
pub fn start(pod: &Pod, image: &str, mounts: &[Value]) -> Container {
    let container = pod.create(
        image,
        json!({"command": ["sleep", "1000"], "mounts": mounts}),
    );
    sh(&format!("crictl start {}", container.id));
    container
}

/// Waits until a condition of the shell holds in a container.
fn until(container: &Container, condition: &str) {
    container.sh(&format!(
        "for i in $(seq 1000); do if {condition}; then exit 0; fi; sleep 0.1; done; exit 1"
    ));
}

/// A command of the host that a container can run, which sees the host's /usr as /h.
fn hosts(command: &str) -> String {
    format!(
        "/h/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /h/lib/x86_64-linux-gnu /h/bin/{command}"
    )
}

fn directory_is_shared_both_ways() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!("echo from-host > {host}/a; mkdir {host}/sub"));
    let pod = Pod::run();
    let container = start(&pod, BUSYBOX, &[mount(host, "/data")]);
    assert_eq!(container.sh("cat /data/a"), "from-host");
    container.sh("echo from-guest > /data/sub/b; mv /data/a /data/c; mkfifo /data/fifo");
    assert_eq!(
        sh(&format!("cat {host}/sub/b {host}/c")),
        "from-guest\nfrom-host"
    );
    assert_eq!(sh(&format!("stat -c %F {host}/fifo")), "fifo");
    sh(&format!("rm {host}/c; echo more >> {host}/sub/b"));
    until(&container, "[ ! -e /data/c ] && grep -q more /data/sub/b");
    // Nothing of it is mounted where the host could trip over it.
    assert_eq!(sh("grep -c volume /proc/self/mountinfo || true"), "0");
}

fn owners_and_attributes_are_the_same() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "cd {host} && echo x > theirs && chown 2000:3000 theirs && chmod 4640 theirs && setfattr -n user.note -v host theirs"
    ));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[
            mount(host, "/data"),
            with(mount("/usr", "/h"), "readonly", json!(true)),
        ],
    );
    assert_eq!(
        container.sh("stat -c '%u %g %a' /data/theirs"),
        "2000 3000 4640"
    );
    let get = hosts("getfattr --absolute-names --only-values -n user.note");
    assert_eq!(container.sh(&format!("{get} /data/theirs")), "host");
    container.sh(&format!(
        "cd /data && touch ours && chown 1234:4321 ours && chmod 2751 ours && ln ours again && ln -s nowhere link && {}",
        hosts("setfattr -n user.note -v guest ours")
    ));
    assert_eq!(
        sh(&format!("stat -c '%u %g %a %h' {host}/ours")),
        "1234 4321 2751 2"
    );
    assert_eq!(
        sh(&format!(
            "getfattr --absolute-names --only-values -n user.note {host}/ours; readlink {host}/link"
        )),
        "guestnowhere"
    );
    // A process that is not root makes its own files, and may not touch others'.
    let user = pod.create(
        BUSYBOX,
        json!({
            "command": ["sh", "-c", "touch /data/user/mine; rm -f /data/ours; echo x >> /data/theirs; true"],
            "mounts": [mount(host, "/data")],
            "linux": {"security_context": {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}}},
        }),
    );
    sh(&format!("mkdir -m 777 {host}/user"));
    sh(&format!("crictl start {}", user.id));
    user.wait();
    assert_eq!(
        sh(&format!("stat -c '%u %g' {host}/user/mine")),
        "1000 1000"
    );
    assert_eq!(
        sh(&format!("cat {host}/theirs; stat -c %s {host}/ours")),
        "x\n0"
    );
}

fn read_only_is_refused_by_both_sides() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "mkdir {host}/sub && mount -t tmpfs tmpfs {host}/sub"
    ));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[with(mount(host, "/ro"), "readonly", json!(true))],
    );
    let said = container.sh("touch /ro/x 2>&1 || true");
    assert!(said.contains("Read-only file system"), "{said}");
    // As with runc, a mount below stays writable unless that was asked for too.
    container.sh("touch /ro/sub/x");
    assert_eq!(sh(&format!("ls {host}/sub")), "x");
    // By ctr, as a container of CRI that asks for it with any runtime but runc's makes
    // containerd 2.1 panic.
    let said = sh(&format!(
        "ctr -n k8s.io run --rm --runtime io.containerd.joey.v2 --mount type=bind,src={host},dst=/rro,options=rbind:rro {BUSYBOX} rro sh -c 'touch /rro/y; touch /rro/sub/y; ls /rro/sub' 2>&1"
    ));
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    // Its two outputs come by ways of their own.
    assert!(said.lines().any(|line| line == "x"), "{said}");
}

fn files_are_shared() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "echo one > {host}/rw; echo two > {host}/ro; echo secret > {host}/other"
    ));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[
            mount(&format!("{host}/rw"), "/etc/rw.conf"),
            with(
                mount(&format!("{host}/ro"), "/etc/ro.conf"),
                "readonly",
                json!(true),
            ),
        ],
    );
    assert_eq!(container.sh("cat /etc/rw.conf /etc/ro.conf"), "one\ntwo");
    container.sh("echo changed > /etc/rw.conf");
    assert_eq!(sh(&format!("cat {host}/rw")), "changed");
    let said = container.sh("echo changed 2>&1 > /etc/ro.conf || true");
    assert_eq!(sh(&format!("cat {host}/ro")), "two", "{said}");
    sh(&format!("echo longer than before > {host}/ro"));
    until(&container, "grep -q longer /etc/ro.conf");
}

fn part_of_a_volume_shows_no_more() {
    let dir = HostDir::new();
    let host = &dir.0;
    // As kubelet does it: the part is bound to a place of its own.
    sh(&format!(
        "cd {host} && mkdir -p whole/part place && echo in > whole/part/in && echo out > whole/out && mount --bind whole/part place"
    ));
    let pod = Pod::run();
    let container = start(&pod, BUSYBOX, &[mount(&format!("{host}/place"), "/data")]);
    assert_eq!(
        container.sh("ls /data; cat /data/in; ls /data/.. | grep -c out || true"),
        "in\nin\n0"
    );
    container.sh("echo new > /data/new");
    assert_eq!(sh(&format!("cat {host}/whole/part/new")), "new");
}

/// How kubelet renews configMaps, secrets and tokens.
fn swapped_link_is_seen() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "mount -t tmpfs tmpfs {host} && cd {host} && mkdir ..1 && echo old > ..1/key && ln -s ..1 ..data && ln -s ..data/key key"
    ));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[with(mount(host, "/config"), "readonly", json!(true))],
    );
    assert_eq!(container.sh("cat /config/key"), "old");
    sh(&format!(
        "cd {host} && mkdir ..2 && echo new > ..2/key && ln -s ..2 ..data_tmp && mv -T ..data_tmp ..data && rm -r ..1"
    ));
    until(&container, "[ \"$(cat /config/key)\" = new ]");
}

fn containers_of_a_pod_see_one_directory() {
    let dir = HostDir::new();
    let pod = Pod::run();
    let one = start(&pod, BUSYBOX, &[mount(&dir.0, "/data")]);
    let two = start(&pod, BUSYBOX, &[mount(&dir.0, "/other")]);
    one.sh("echo x > /data/file");
    assert_eq!(two.sh("cat /other/file"), "x");
    // Locks hold between them, so it is the same file to the guest's kernel.
    one.sh("(flock 9; touch /data/locked; sleep 1000) 9> /data/lock > /dev/null 2>&1 &");
    until(&two, "[ -e /other/locked ]");
    assert_eq!(
        two.sh("flock -n /other/lock true && echo free || echo held"),
        "held"
    );
    // One virtiofsd serves them, where they need one.
    let expected = u8::from(Combination::of_this_run().has_vm()).to_string();
    let daemons = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *virtiofsd*) echo $p;; esac; done | wc -l";
    assert_eq!(sh(daemons), expected);
    sh(&format!("crictl rm -f {}", one.id));
    assert_eq!(two.sh("cat /other/file"), "x");
}

fn large_file_arrives_intact() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!("head -c 104857600 /dev/urandom > {host}/in"));
    let pod = Pod::run();
    let container = start(&pod, BUSYBOX, &[mount(host, "/data")]);
    container.sh("dd if=/data/in of=/data/out bs=1M conv=fsync 2> /dev/null");
    let sum = |file: &str| sh(&format!("sha256sum < {host}/{file}"));
    assert_eq!(sum("in"), sum("out"));
    assert_eq!(
        format!("{}", container.sh("sha256sum < /data/out")),
        sum("in")
    );
}

fn nothing_of_the_host_is_in_reach() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "mkdir {host}/shared && echo secret > {host}/beside && ln -s / {host}/shared/root && ln -s ../beside {host}/shared/up && ln -s {host}/beside {host}/shared/full"
    ));
    // The strongest that a container can be.
    let privileged = json!({"security_context": {"privileged": true}});
    let pod = Pod::with("joey", json!({"linux": privileged}));
    let container = pod.create(
        BUSYBOX,
        json!({
            "command": ["sleep", "1000"],
            "mounts": [mount(&format!("{host}/shared"), "/data")],
            "linux": privileged,
        }),
    );
    sh(&format!("crictl start {}", container.id));
    for path in [
        "/data/up",
        "/data/full",
        "/data/../beside",
        "/data/root/run/joey",
        "/data/root/var/lib/containerd",
    ] {
        assert_eq!(
            container.sh(&format!(
                "cat {path} 2> /dev/null || ls {path} 2> /dev/null || echo none"
            )),
            "none",
            "{path}"
        );
    }
    container
        .sh("ln -s /etc/shadow /data/mine; mknod /data/disk b 254 0; mknod /data/null c 1 3; true");
    // virtiofsd itself has nothing but the volume.
    let daemon = sh(
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *virtiofsd*) echo ${p#/proc/};; esac; done",
    );
    assert_eq!(sh(&format!("ls -A /proc/{daemon}/root/")), "1");
    assert_eq!(
        sh(&format!(
            "awk '{{print $5}}' /proc/{daemon}/mountinfo | sort"
        )),
        "/\n/1"
    );
    let status = sh(&format!("cat /proc/{daemon}/status"));
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().last())
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(
        (field("NoNewPrivs:"), field("Seccomp:")),
        ("1".into(), "2".into())
    );
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
    assert_eq!(field("CapEff:"), "00000000880000db");
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        sh(&format!(
            "[ $(readlink /proc/{daemon}/ns/{namespace}) != $(readlink /proc/1/ns/{namespace}) ]"
        ));
    }
}

fn mounts_of_the_host_follow() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "mount -t tmpfs tmpfs {host} && mount --make-shared {host} && mkdir {host}/late"
    ));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[
            with(mount(host, "/follows"), "propagation", json!(1)),
            mount(host, "/private"),
        ],
    );
    assert_eq!(
        container.sh("ls /follows/late /private/late | grep -c new || true"),
        "0"
    );
    sh(&format!(
        "mount -t tmpfs tmpfs {host}/late && touch {host}/late/new"
    ));
    until(&container, "[ -e /follows/late/new ]");
    assert_eq!(container.sh("ls /private/late"), "");
}

fn volume_is_free_after_its_container() {
    let dir = HostDir::new();
    let host = &dir.0;
    sh(&format!(
        "modprobe loop && truncate -s 16M {host}.img && mkfs.ext4 -q {host}.img && mount -o loop {host}.img {host}"
    ));
    let device = sh(&format!("findmnt -no SOURCE {host}"));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[
            mount(host, "/data"),
            mount(&format!("{host}/lost+found"), "/more"),
        ],
    );
    container.sh("echo x > /data/file; cat /data/file; ls -R /data /more");
    let other = HostDir::new();
    let _stays = start(&pod, BUSYBOX, &[mount(&other.0, "/data")]);
    sh(&format!("crictl rm -f {}", container.id));
    // Not only can it be unmounted: the file system ends, so its device is free.
    sh(&format!(
        "umount {host} && for i in $(seq 1000); do losetup {device} 2> /dev/null || exit 0; sleep 0.1; done; exit 1"
    ));
    sh(&format!("rm {host}.img"));
}

fn empty_dir_in_memory_has_a_limit() {
    let kubelet = HostDir::kubelet();
    let path = format!("{}/volumes/kubernetes.io~empty-dir/cache", kubelet.0);
    sh(&format!(
        "mkdir {path} && mount -t tmpfs -o size=8m tmpfs {path} && chmod 777 {path}"
    ));
    let pod = Pod::run();
    let one = start(&pod, BUSYBOX, &[mount(&path, "/cache")]);
    let two = start(&pod, BUSYBOX, &[mount(&path, "/cache")]);
    assert_eq!(
        one.sh("stat -f -c %T /cache; stat -c %a /cache"),
        "tmpfs\n777"
    );
    let said = one.sh("dd if=/dev/zero of=/cache/big bs=1M count=9 2>&1 || true");
    assert!(said.contains("No space left"), "{said}");
    one.sh("rm /cache/big; echo x > /cache/file");
    assert_eq!(two.sh("cat /cache/file"), "x");
    // A VM's is its own, and charged to it.
    let on_host = if Combination::of_this_run().has_vm() {
        ""
    } else {
        "file"
    };
    assert_eq!(sh(&format!("ls -A {path}")), on_host);
}

fn empty_dir_on_disk_is_the_pods() {
    let kubelet = HostDir::kubelet();
    let path = format!("{}/volumes/kubernetes.io~empty-dir/work", kubelet.0);
    sh(&format!("mkdir -m 2770 {path} && chgrp 2000 {path}"));
    let pod = Pod::run();
    let one = start(&pod, BUSYBOX, &[mount(&path, "/work")]);
    one.sh("mkdir -p /work/sub; echo x > /work/sub/file; dd if=/dev/zero of=/work/big bs=1M count=20 conv=fsync 2> /dev/null");
    assert_eq!(one.sh("stat -c '%a %g' /work"), "2770 2000");
    // subPath: kubelet makes the directory on the host and binds it.
    let place = format!("{}/volume-subpaths/work/web/0", kubelet.0);
    sh(&format!(
        "mkdir -p {path}/sub {place} && mount --bind {path}/sub {place}"
    ));
    let two = start(&pod, BUSYBOX, &[mount(&path, "/w"), mount(&place, "/part")]);
    assert_eq!(two.sh("cat /w/sub/file /part/file; ls /part"), "x\nx\nfile");
    assert_eq!(
        sh(&format!("ls -A {path} {path}/sub | grep -c file || true")),
        "0"
    );
    // It outlives its first container.
    sh(&format!("crictl rm -f {}", one.id));
    assert_eq!(two.sh("cat /w/sub/file"), "x");
    // What is on the host already is shared with it.
    let full = format!("{}/volumes/kubernetes.io~empty-dir/full", kubelet.0);
    sh(&format!("mkdir {full} && echo y > {full}/file"));
    let three = start(&pod, BUSYBOX, &[mount(&full, "/full")]);
    three.sh("cat /full/file > /full/copy");
    assert_eq!(sh(&format!("cat {full}/copy")), "y");
}

/// A loop device over a file, gone when dropped.
pub struct Loop {
    pub device: String,
    pub file: String,
}

impl Loop {
    pub fn new(size: &str) -> Self {
        let file = format!("/run/disk{}.img", NEXT.fetch_add(1, Ordering::Relaxed));
        // Nothing loads it at need: there is no /dev/loop-control before it.
        let device = sh(&format!(
            "modprobe loop && truncate -s {size} {file} && losetup -f --show {file}"
        ));
        Self { device, file }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        crate::cri::run(&format!("losetup -d {}; rm -f {}", self.device, self.file));
    }
}

fn disk(pod: &Pod, device: &str, permissions: &str) -> Container {
    pod.create(
        BUSYBOX,
        json!({
            "command": ["sleep", "1000"],
            "devices": [{"host_path": device, "container_path": "/dev/data", "permissions": permissions}],
        }),
    )
}

fn block_device_is_raw() {
    let device = Loop::new("32M");
    let pod = Pod::run();
    let container = disk(&pod, &device.device, "rwm");
    sh(&format!("crictl start {}", container.id));
    assert_eq!(container.sh("blockdev --getsize64 /dev/data"), "33554432");
    container.sh("echo from-guest | dd of=/dev/data bs=512 seek=7 conv=sync,fsync 2> /dev/null");
    assert_eq!(
        sh(&format!(
            "dd if={} bs=512 skip=7 count=1 2> /dev/null | tr -d '\\0'",
            device.file
        )),
        "from-guest"
    );
    sh(&format!("crictl rm -f {}", container.id));
    // The slot and the device are free again.
    sh(&format!(
        "echo from-host | dd of={} bs=512 conv=sync,fsync 2> /dev/null",
        device.device
    ));
    let again = disk(&pod, &device.device, "rwm");
    sh(&format!("crictl start {}", again.id));
    assert_eq!(
        again.sh("dd if=/dev/data bs=512 count=1 2> /dev/null | tr -d '\\0'"),
        "from-host"
    );
    // More than the four slots.
    let devices: Vec<Value> = (0..5)
        .map(|i| json!({"host_path": device.device, "container_path": format!("/dev/d{i}"), "permissions": "rwm"}))
        .collect();
    let many = pod.create(
        BUSYBOX,
        json!({"command": ["sleep", "1"], "devices": devices}),
    );
    let said = fails(&format!("crictl start {}", many.id));
    assert!(said.contains("/dev/d") && said.contains("disk"), "{said}");
    assert_eq!(
        again.sh("dd if=/dev/data bs=512 count=1 2> /dev/null | tr -d '\\0'"),
        "from-host"
    );
}

fn block_device_can_be_read_only() {
    let device = Loop::new("1M");
    sh(&format!(
        "echo content | dd of={} conv=notrunc 2> /dev/null",
        device.file
    ));
    let pod = Pod::run();
    let container = disk(&pod, &device.device, "r");
    sh(&format!("crictl start {}", container.id));
    assert_eq!(container.sh("head -c 7 /dev/data"), "content");
    let said = container.sh("echo x 2>&1 > /dev/data || echo refused");
    assert!(said.contains("refused"), "{said}");
    assert_eq!(sh(&format!("head -c 7 {}", device.file)), "content");
}

fn image_is_a_volume() {
    sh(&format!("crictl pull {DEBIAN}"));
    let pod = Pod::run();
    let container = start(
        &pod,
        BUSYBOX,
        &[json!({"container_path": "/image", "image": {"image": DEBIAN}, "readonly": true})],
    );
    assert_eq!(
        container.sh("test -f /image/etc/debian_version && echo there"),
        "there"
    );
    let said = container.sh("touch /image/x 2>&1 || true");
    assert!(said.contains("Read-only file system"), "{said}");
}

fn termination_message_reaches_the_host() {
    let kubelet = HostDir::kubelet();
    let log = format!("{}/containers/web/0123abcd", kubelet.0);
    sh(&format!(
        "mkdir -p {}/containers/web && : > {log} && chmod 666 {log}",
        kubelet.0
    ));
    let pod = Pod::run();
    let container = pod.create(
        BUSYBOX,
        json!({
            "command": ["sh", "-c", "echo first > /dev/termination-log; echo last words >> /dev/termination-log; exit 3"],
            "mounts": [mount(&log, "/dev/termination-log")],
        }),
    );
    sh(&format!("crictl start {}", container.id));
    assert_eq!(container.wait(), 3);
    assert_eq!(sh(&format!("cat {log}")), "first\nlast words");
    // No virtiofsd was needed for it.
    assert_eq!(
        sh(
            "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *virtiofsd*) echo $p;; esac; done"
        ),
        ""
    );
}

fn killed_virtiofsd_ends_the_pod() {
    let dir = HostDir::new();
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = start(&pod, BUSYBOX, &[mount(&dir.0, "/data")]);
        sh(
            "for p in /proc/[0-9]*; do case $(readlink $p/exe) in *virtiofsd*) kill -9 ${p#/proc/};; esac; done",
        );
        assert_eq!(container.wait(), 137);
        sh(&format!(
            "for i in $(seq 1000); do [ $(crictl inspectp -o json {} | jq -r .status.state) = SANDBOX_NOTREADY ] && exit 0; sleep 0.1; done; exit 1",
            pod.id
        ));
    }
    leaks::settled(&before);
}
