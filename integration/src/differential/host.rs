//! A container seen from the host, and what a case leaves there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use serde_json::{Map, Value, json};

use super::bundle::{CGROUP, Place};

/// Where cgroup2 is mounted.
pub const CGROUPS: &str = "/sys/fs/cgroup";

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
/// How long processes that were killed may take to go.
const GOING: Duration = Duration::from_secs(5);

/// Files of a cgroup that hold settings end like none of these, which hold what is measured or
/// what is derived.
const MEASURED: [&str; 15] = [
    "stat",
    "current",
    "events",
    "events.local",
    "pressure",
    "peak",
    "procs",
    "threads",
    "type",
    "controllers",
    "numa_stat",
    "effective",
    "local",
    "kill",
    "reclaim",
];

/// What the host sees of a container's process: its namespaces, mappings and cgroup.
pub fn look(pid: u32) -> Value {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let link = |path: PathBuf| {
        fs::read_link(path)
            .map(|path| path.display().to_string())
            .ok()
    };
    let own: Map<String, Value> = NAMESPACES
        .iter()
        .map(|name| {
            let differs =
                link(proc.join("ns").join(name)) != link(Path::new("/proc/self/ns").join(name));
            ((*name).to_owned(), differs.into())
        })
        .collect();
    let text = |name: &str| {
        let text = fs::read_to_string(proc.join(name)).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let cgroup = text("cgroup");
    let path = cgroup.split_once("0::").map_or("", |(_, path)| path);
    json!({
        "own namespaces": own,
        "uid_map": text("uid_map"),
        "gid_map": text("gid_map"),
        "setgroups": text("setgroups"),
        "timens_offsets": text("timens_offsets"),
        "oom_score_adj": text("oom_score_adj"),
        "cgroup": path,
        "settings": settings(&Path::new(CGROUPS).join(path.trim_start_matches('/'))),
    })
}

/// The settings of a cgroup by file.
fn settings(cgroup: &Path) -> Map<String, Value> {
    let mut found = Map::new();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let last = name.split_once('.').map_or("", |(_, rest)| rest);
        let measured = MEASURED
            .iter()
            .any(|end| last == *end || last.ends_with(&format!(".{end}")));
        if !measured && let Ok(text) = fs::read_to_string(entry.path()) {
            let words: Vec<_> = text.split_whitespace().collect();
            found.insert(name, words.join(" ").into());
        }
    }
    found
}

/// What exists on the host before a case, of which nothing may be more after it.
#[derive(Debug)]
pub struct Before {
    mounts: Vec<String>,
    cgroups: Vec<String>,
    children: Vec<u32>,
}

impl Before {
    /// Takes stock.
    pub fn take(place: &Place) -> Before {
        Before {
            mounts: mounts(),
            cgroups: cgroups(place),
            children: children(),
        }
    }

    /// What a case has left: none of the lists may have an entry.
    pub fn left(&self, place: &Place) -> Value {
        let names: Vec<_> = self
            .settled()
            .iter()
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default())
            .collect();
        json!({
            "state": below(&place.state(), |_| true),
            "cgroups": since(&self.cgroups, cgroups(place)),
            "mounts": since(&self.mounts, mounts()),
            "processes": names,
        })
    }

    /// Removes all that a case has left, with its directory.
    ///
    /// # Errors
    /// When the directory does not go.
    pub fn clean(&self, place: &Place) -> io::Result<()> {
        for pid in since(&self.children, children()) {
            kill(pid);
        }
        let mut left = since(&self.cgroups, cgroups(place));
        left.reverse();
        for cgroup in &left {
            let _ = fs::write(Path::new(CGROUPS).join(cgroup).join("cgroup.kill"), "1");
        }
        self.settled();
        for cgroup in &left {
            let _ = fs::remove_dir(Path::new(CGROUPS).join(cgroup));
        }
        for mount in since(&self.mounts, mounts()).iter().rev() {
            let _ = nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
        match fs::remove_dir_all(&place.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// New children, when they have had the time to go.
    fn settled(&self) -> Vec<u32> {
        let deadline = Instant::now() + GOING;
        loop {
            reap(&[]);
            let living = since(&self.children, children());
            if living.is_empty() || Instant::now() > deadline {
                return living;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn since<T: PartialEq>(before: &[T], mut now: Vec<T>) -> Vec<T> {
    now.retain(|one| !before.contains(one));
    now
}

fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

/// Collects those of our children that have ended, but for some. Orphans of runtimes come to us,
/// and while they are not collected a pid namespace does not go.
pub fn reap(but: &[u32]) {
    for pid in since(but, children()) {
        if let Ok(pid) = i32::try_from(pid) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Those that can be a case's: the machine may have others that come and go.
fn cgroups(place: &Place) -> Vec<String> {
    // The files of a cgroup are the kernel's.
    let mut found = below(Path::new(CGROUPS), Path::is_dir);
    found.retain(|path| path.starts_with(CGROUP) || path.contains(&place.id));
    found
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
}

/// Every path below a directory that is `wanted`, parents first.
fn below(directory: &Path, wanted: fn(&Path) -> bool) -> Vec<String> {
    fn walk(root: &Path, directory: &Path, wanted: fn(&Path) -> bool, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if wanted(&path) {
                let shown = path.strip_prefix(root).unwrap_or(&path);
                found.push(shown.display().to_string());
            }
            if path.is_dir() && !path.is_symlink() {
                walk(root, &path, wanted, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(directory, directory, wanted, &mut found);
    found.sort();
    found
}
