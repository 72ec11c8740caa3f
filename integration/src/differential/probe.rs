//! What a process of the container sees of itself and around it, as one JSON value.
//!
//! Runs as the container's command. What is of the moment (descriptors' inodes, mount ids) is left
//! out here, so that two values can be compared as they are.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};
use nix::sys::stat::{Mode, SFlag};
use rustix::process::{getpgrp, getpid, getsid};
use serde_json::{Map, Value, json};

/// Where the program is in every root file system.
pub const PATH: &str = "/probe";

/// Lines of /proc/self/status.
const STATUS: [&str; 19] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed_list",
    "Mems_allowed_list",
    "SigBlk",
    "SigIgn",
    "THP_enabled",
];

const SYSCTLS: [&str; 13] = [
    "kernel/hostname",
    "kernel/domainname",
    "kernel/msgmax",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "fs/mqueue/msg_max",
    "net/core/somaxconn",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/conf/lo/forwarding",
];

/// Paths that specs mask or make read-only.
const GUARDED: [&str; 12] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys/kernel/hostname",
    "/proc/sysrq-trigger",
    "/masked",
];

/// Everything.
pub fn view() -> Value {
    json!({
        "arguments": std::env::args().collect::<Vec<_>>(),
        "status": status(),
        "files": {
            "uid_map": text("/proc/self/uid_map"),
            "gid_map": text("/proc/self/gid_map"),
            "setgroups": text("/proc/self/setgroups"),
            "cgroup": text("/proc/self/cgroup"),
            "oom_score_adj": text("/proc/self/oom_score_adj"),
            "personality": text("/proc/self/personality"),
            "label": text("/proc/self/attr/current"),
            "coredump_filter": text("/proc/self/coredump_filter"),
            "comm": text("/proc/self/comm"),
            "lo": text("/sys/class/net/lo/flags"),
            "timens_offsets": text("/proc/self/timens_offsets"),
        },
        "environment": environment(),
        "cwd": std::env::current_dir()
            .map_or_else(|error| io_error(&error), |path| path.display().to_string()),
        "limits": limits(),
        "scheduling": scheduling(),
        "ioprio": ioprio(),
        "mempolicy": memory_policy(),
        "keyrings": keyrings(),
        "process": attributes(),
        "sysctl": SYSCTLS
            .iter()
            .map(|name| ((*name).to_owned(), text(&format!("/proc/sys/{name}"))))
            .collect::<Map<_, _>>(),
        "mounts": mounts(),
        "root": tree(Path::new("/"), 1),
        "dev": tree(Path::new("/dev"), 3),
        "guarded": guarded(),
        "descriptors": descriptors(),
        "terminal": terminal(),
        "calls": calls(),
    })
}

fn errno(error: Errno) -> String {
    format!("{error:?}")
}

fn io_error(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |raw| errno(Errno::from_raw(raw)))
}

/// A file's text, or the kernel's answer.
fn text(path: &str) -> Value {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let words: Vec<_> = text.trim_matches('\0').split_whitespace().collect();
            words.join(" ").into()
        }
        Err(error) => io_error(&error).into(),
    }
}

fn status() -> Map<String, Value> {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| STATUS.contains(name))
        .map(|(name, value)| {
            let words: Vec<_> = value.split_whitespace().collect();
            (name.to_owned(), words.join(" ").into())
        })
        .collect()
}

/// Their order says nothing to the process.
fn environment() -> Vec<String> {
    let mut pairs: Vec<_> = std::env::vars_os()
        .map(|(name, value)| format!("{}={}", name.display(), value.display()))
        .collect();
    pairs.sort();
    pairs
}

fn limits() -> Map<String, Value> {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    // The name has a column of 26 characters.
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_at_checked(26))
        .map(|(name, rest)| {
            let words: Vec<_> = rest.split_whitespace().take(2).collect();
            (name.trim().to_owned(), words.join(" ").into())
        })
        .collect()
}

/// The fields of /proc/self/stat by their numbers in proc(5).
fn stat_fields() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name may hold spaces.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    ["", "", ""]
        .into_iter()
        .chain(rest.split_whitespace())
        .map(str::to_owned)
        .collect()
}

fn scheduling() -> Value {
    let fields = stat_fields();
    let field = |number: usize| fields.get(number).cloned();
    json!({ "nice": field(19), "priority": field(40), "policy": field(41) })
}

fn ioprio() -> Value {
    match Command::new("/bin/ionice").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().into(),
        Err(error) => io_error(&error).into(),
    }
}

/// The policies of all mappings, of which there is one unless something is wrong.
fn memory_policy() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
    let mut policies: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(str::to_owned)
        .collect();
    policies.sort();
    policies.dedup();
    policies
}

/// The keyrings in reach, without their numbers.
fn keyrings() -> Vec<String> {
    let text = fs::read_to_string("/proc/keys").unwrap_or_default();
    let mut names: Vec<_> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(7) == Some(&"keyring"))
        .filter_map(|words| Some((*words.get(8)?).to_owned()))
        .collect();
    names.sort();
    names
}

fn attributes() -> Value {
    use nix::sys::prctl;
    let pid = getpid();
    json!({
        "is the first": pid.is_init(),
        "has its parent here": rustix::process::getppid().is_some(),
        "leads its session": getsid(None).is_ok_and(|session| session == pid),
        "leads its group": getpgrp() == pid,
        "death signal": prctl::get_pdeathsig().map(|s| format!("{s:?}")).map_err(errno),
        "dumpable": prctl::get_dumpable().map_err(errno),
        "keeps capabilities": prctl::get_keepcaps().map_err(errno),
        "subreaper": prctl::get_child_subreaper().map_err(errno),
        "timer slack": prctl::get_timerslack().map_err(errno),
        "secure bits": rustix::thread::capabilities_secure_bits()
            .map(|bits| bits.bits())
            .map_err(|error| io_error(&error.into())),
    })
}

/// The mount table without its ids, by place; mounts on one place keep their order.
fn mounts() -> Map<String, Value> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts = Map::new();
    for (place, value) in text.lines().filter_map(mount) {
        let list = mounts.entry(place).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(value);
        }
    }
    mounts
}

fn mount(line: &str) -> Option<(String, Value)> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<_> = left.split(' ').collect();
    let right: Vec<_> = right.split(' ').collect();
    let [_, _, _, root, place, options, tags @ ..] = left.as_slice() else {
        return None;
    };
    let [kind, source, super_options] = right.as_slice() else {
        return None;
    };
    let sorted = |options: &str| {
        let mut options: Vec<_> = options.split(',').map(str::to_owned).collect();
        options.sort();
        options.join(",")
    };
    let mut tags: Vec<_> = tags
        .iter()
        .map(|tag| tag.split(':').next().unwrap_or_default())
        .collect();
    tags.sort_unstable();
    // Network namespaces of other runs.
    let root = match root.split_once(":[") {
        Some((name, _)) => name,
        None => root,
    };
    let value = json!({
        "type": kind,
        "root": root,
        "source": source,
        "options": sorted(options),
        "superblock": sorted(super_options),
        "propagation": tags.join(" "),
    });
    Some(((*place).to_owned(), value))
}

/// One line for each entry: kind, mode, owner, and what it is.
fn tree(directory: &Path, depth: usize) -> Map<String, Value> {
    let mut found = Map::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = meta.file_type();
        let what = if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap_or_default();
            format!("l {}", target.display())
        } else if kind.is_char_device() || kind.is_block_device() {
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            let number = meta.rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            format!("{letter} {major}:{minor}")
        } else if kind.is_dir() {
            "d".to_owned()
        } else if kind.is_fifo() {
            "p".to_owned()
        } else {
            "f".to_owned()
        };
        let owner = format!("{:o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        found.insert(path.display().to_string(), format!("{what} {owner}").into());
        if kind.is_dir() && depth > 1 {
            found.extend(tree(&path, depth - 1));
        }
    }
    found
}

/// What reading and writing of guarded paths comes to.
fn guarded() -> Map<String, Value> {
    GUARDED
        .iter()
        .map(|path| {
            let read = match fs::metadata(path) {
                Err(error) => io_error(&error),
                Ok(meta) if meta.is_dir() => match fs::read_dir(path) {
                    Ok(entries) => format!("{} entries", entries.count().min(1)),
                    Err(error) => io_error(&error),
                },
                Ok(_) => {
                    let mut byte = [0];
                    match fs::File::open(path).and_then(|mut file| file.read(&mut byte)) {
                        Ok(count) => format!("{count} bytes"),
                        Err(error) => io_error(&error),
                    }
                }
            };
            let write = match fs::OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOCTTY)
                .open(path)
            {
                Ok(_) => "ok".to_owned(),
                Err(error) => io_error(&error),
            };
            (
                (*path).to_owned(),
                format!("read {read}, write {write}").into(),
            )
        })
        .collect()
}

/// Open descriptors and what they lead to, without inode numbers.
fn descriptors() -> Map<String, Value> {
    let mut found = Map::new();
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return found;
    };
    let own = format!("/proc/{}/fd", getpid().as_raw_nonzero());
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if target.as_os_str().as_bytes() == own.as_bytes() {
            continue;
        }
        let target = target.display().to_string();
        let target = target.split(":[").next().unwrap_or_default();
        found.insert(entry.file_name().display().to_string(), target.into());
    }
    found
}

fn terminal() -> Value {
    use rustix::termios::{isatty, tcgetwinsize};
    let one = |fd: &dyn AsFd, name: &str| {
        let fd = fd.as_fd();
        let size = tcgetwinsize(fd).map(|size| [size.ws_row, size.ws_col]);
        (name.to_owned(), json!([isatty(fd), size.ok()]))
    };
    let streams: Map<String, Value> = [
        one(&io::stdin(), "stdin"),
        one(&io::stdout(), "stdout"),
        one(&io::stderr(), "stderr"),
    ]
    .into_iter()
    .collect();
    let controlling = stat_fields().get(7).is_some_and(|number| number != "0");
    json!({ "controlling": controlling, "streams": streams })
}

/// What a few system calls come to, each of which some privilege or filter stops.
fn calls() -> Value {
    let said = |result: Result<(), Errno>| match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => errno(error),
    };
    let socket = |family, kind, protocol| {
        nix::sys::socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).map(drop)
    };
    let directory = Path::new("/tmp/probe-directory");
    let device = Path::new("/tmp/probe-device");
    let mode = Mode::from_bits_truncate(0o777);
    let mkdir = nix::unistd::mkdir(directory, mode);
    let made = fs::symlink_metadata(directory).map(|meta| format!("{:o}", meta.mode() & 0o7777));
    let chown = nix::unistd::chown(directory, Some(1234.into()), Some(1234.into()));
    let number = rustix::fs::makedev(1, 3);
    let mknod = nix::sys::stat::mknod(device, SFlag::S_IFCHR, mode, number);
    let opened = fs::File::open(device).map(drop).map_err(|e| io_error(&e));
    let other = Path::new("/tmp/probe-other-device");
    let unlisted = nix::sys::stat::mknod(other, SFlag::S_IFCHR, mode, rustix::fs::makedev(10, 237));
    for path in [device, other] {
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_dir(directory);
    json!({
        "mkdir": said(mkdir),
        "mode of what it made": made.map_err(|error| io_error(&error)),
        "chown": said(chown),
        "mknod 1:3": said(mknod),
        "open 1:3": opened,
        "mknod 10:237": said(unlisted),
        "open /dev/null": fs::OpenOptions::new()
            .write(true)
            .open("/dev/null")
            .map(drop)
            .map_err(|error| io_error(&error)),
        "mount": said(
            rustix::mount::mount("x", "/tmp", "tmpfs", rustix::mount::MountFlags::empty(), None)
                .map_err(|error| Errno::from_raw(error.raw_os_error()))
        ),
        "unshare": said(nix::sched::unshare(CloneFlags::CLONE_NEWUTS)),
        "sethostname": said(nix::unistd::sethostname("probed")),
        "raw socket": said(socket(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp))),
        "inet socket": said(socket(AddressFamily::Inet, SockType::Stream, None)),
        "packet socket": said(socket(AddressFamily::Packet, SockType::Raw, None)),
        "netlink socket": said(socket(AddressFamily::Netlink, SockType::Raw, None)),
        "unix socket": said(socket(AddressFamily::Unix, SockType::Stream, None)),
        "chroot": said(nix::unistd::chroot("/")),
        "setuid": said(nix::unistd::setuid(1234.into())),
        "kill": said(nix::sys::signal::kill(nix::unistd::Pid::this(), None)),
    })
}
