//! From the kernel's hands to a machine in which containerd can run.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_move};

/// The disks, in the order in which the test bed puts them on the PCI bus.
const ROOT_DISK: &str = "/dev/vda";
const DATA_DISK: &str = "/dev/vdb";
const IMAGES_DISK: &str = "/dev/vdc";
const LAYER_DISK: &str = "/dev/vdd";

const CONTROLLERS: &str = "+cpu +memory +pids +io +cpuset";

/// Does everything once and returns the token that clients must show.
pub fn set_up() -> anyhow::Result<String> {
    let token = fs::read_to_string("/token").context("read /token of the initramfs")?;
    file_system("devtmpfs", "/dev", "devtmpfs", "mode=755")?;
    file_system("proc", "/proc", "proc", "")?;
    load_modules(Path::new("/modules"))?;
    switch_root()?;
    mount_all()?;
    cgroups()?;
    identity()?;
    network()?;
    // Kernel messages below "emergency" would cost time on the serial console.
    fs::write("/proc/sys/kernel/printk", "1").context("quieten the console")?;
    Ok(token)
}

fn file_system(source: &str, target: &str, kind: &str, data: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
    let data = CString::new(data)?;
    mount(
        source,
        target,
        kind,
        MountFlags::empty(),
        Some(data.as_c_str()),
    )
    .with_context(|| format!("mount {kind} on {target}"))
}

/// Loads every file of `directory`; the names are in loading order. Of the KVM
/// modules only the processor's own is loaded: the search of the other costs time.
fn load_modules(directory: &Path) -> anyhow::Result<()> {
    let processor = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let mut files = fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .with_context(|| format!("list {}", directory.display()))?;
    files.sort();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let foreign = match name.split_once("kvm-") {
            Some((_, "amd.ko")) => !processor.contains(" svm"),
            Some((_, "intel.ko")) => !processor.contains(" vmx"),
            _ => false,
        };
        if !foreign {
            let file = File::open(&path)?;
            rustix::system::finit_module(&file, c"", 0).with_context(|| format!("load {name}"))?;
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Makes the root disk, with the run's own files and a tmpfs over it, the root.
fn switch_root() -> anyhow::Result<()> {
    image(ROOT_DISK, "/lower")?;
    image(LAYER_DISK, "/layer")?;
    file_system("tmpfs", "/upper", "tmpfs", "mode=755")?;
    fs::create_dir("/upper/files")?;
    fs::create_dir("/upper/work")?;
    file_system(
        "overlay",
        "/root",
        "overlay",
        "lowerdir=/layer:/lower,upperdir=/upper/files,workdir=/upper/work",
    )?;
    for directory in ["/dev", "/proc"] {
        mount_move(directory, format!("/root{directory}"))
            .with_context(|| format!("move {directory}"))?;
    }
    std::env::set_current_dir("/root")?;
    mount_move(".", "/").context("move the root")?;
    rustix::process::chroot(".").context("chroot")?;
    std::env::set_current_dir("/")?;
    // As systemd does: volumes of containers ask for shared propagation.
    mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .context("share the root's mounts")
}

fn mount_all() -> anyhow::Result<()> {
    file_system("sysfs", "/sys", "sysfs", "")?;
    file_system(
        "devpts",
        "/dev/pts",
        "devpts",
        "mode=620,gid=5,ptmxmode=666",
    )?;
    file_system("tmpfs", "/dev/shm", "tmpfs", "mode=1777")?;
    file_system("tmpfs", "/run", "tmpfs", "mode=755")?;
    file_system("tmpfs", "/tmp", "tmpfs", "mode=1777")?;
    file_system("cgroup2", "/sys/fs/cgroup", "cgroup2", "nsdelegate")?;
    file_system("bpf", "/sys/fs/bpf", "bpf", "mode=700")?;
    file_system(DATA_DISK, "/var/lib", "ext4", "discard")?;
    image(IMAGES_DISK, "/var/lib/registry")
}

fn image(disk: &str, target: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
    mount(disk, target, "erofs", MountFlags::RDONLY, None)
        .with_context(|| format!("mount {disk} on {target}"))
}

/// Leaves the root cgroup to containers: a cgroup that hands out controllers may
/// hold no process of its own.
fn cgroups() -> anyhow::Result<()> {
    let init = Path::new("/sys/fs/cgroup/init");
    rustix::fs::mkdir(init, Mode::from_raw_mode(0o755)).context("make the init cgroup")?;
    fs::write(init.join("cgroup.procs"), "1").context("enter the init cgroup")?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", CONTROLLERS)
        .context("enable cgroup controllers")
}

fn identity() -> anyhow::Result<()> {
    rustix::system::sethostname(b"testhost").context("set the host name")?;
    fs::write("/etc/hostname", "testhost\n")?;
    fs::write(
        "/etc/hosts",
        "127.0.0.1 localhost testhost\n::1 localhost testhost\n",
    )?;
    Ok(())
}

/// The loopback, and the interface on which QEMU forwards the command port.
fn network() -> anyhow::Result<()> {
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{name}"), "1").with_context(|| name.to_owned())?;
    }
    let mut ip = Command::new("/usr/sbin/ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("start ip")?;
    let batch = "link set lo up\nlink set eth0 up\naddress add 10.0.2.15/24 dev eth0\n";
    if let Some(mut stdin) = ip.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let status = ip.wait()?;
    if !status.success() {
        bail!("ip could not set up eth0: {status}");
    }
    Ok(())
}
