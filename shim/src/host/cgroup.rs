//! The sandbox's cgroup (version 2), below that of its pod: all that the sandbox
//! costs the host is counted there. It holds two more: `vmm`, which is limited and killed
//! as a whole, and `shim`, from which that is done.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that a pod's cgroup is wanted to have.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Those of them that bound what the VMM and the like can take of the host.
const LIMITING: [&str; 2] = ["memory", "pids"];

/// What is killed with the VM: the VMM and whatever serves it.
const VMM: &str = "vmm";

/// Most threads of the VMM, KVM's own and virtiofsd's: 32 vCPUs and less than 20 others.
/// Twice that, as newer kernels and daemons may have more.
const MAX_THREADS: u32 = 128;

/// Memory that the VMM and virtiofsd may take beside the guest's: this, and a part of the
/// guest's. Nearly all pods stay below 30 MiB; it is there for one that was taken over, and
/// must not make a healthy one die. Those can fill 4096 connections' buffers of 256 KiB, and
/// have virtiofsd hold two kibibytes for each of the guest's of inodes; and a disk's cache in
/// the host is slow when it is small.
const OVERHEAD_MIB: u64 = 1024;

/// The part of the guest's memory: one in so many.
const OVERHEAD_PART: u64 = 4;

/// The shim itself.
const SHIM: &str = "shim";

/// The file that takes processes.
const PROCS: &str = "cgroup.procs";

/// How long killed processes may take to leave.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// A cgroup of one sandbox.
#[derive(Clone, Debug)]
pub struct Cgroup {
    dir: PathBuf,
    /// What [`Cgroup::kill`] kills.
    victims: PathBuf,
}

/// Why a cgroup is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has no unified hierarchy.
    #[error(
        "{ROOT} is not a cgroup v2 hierarchy; boot the host with systemd.unified_cgroup_hierarchy=1"
    )]
    NotUnified,
    /// The spec's path leads out of the hierarchy.
    #[error("the OCI spec's cgroupsPath {0} is neither a path nor slice:prefix:name")]
    Path(String),
    /// It cannot be made, read or removed.
    #[error("cgroup {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

impl Cgroup {
    /// Makes the cgroup that the OCI spec's `cgroupsPath` names: a path
    /// (cgroupfs driver) or `slice:prefix:name` (systemd driver). There is room for the threads
    /// of so many VMMs in it.
    ///
    /// # Errors
    /// When the host has no cgroup v2, or the path is wrong or cannot be made.
    pub fn create(cgroups_path: &Path, vmms: u32) -> Result<Self, CgroupError> {
        let root = Path::new(ROOT);
        if !root.join("cgroup.controllers").exists() {
            return Err(CgroupError::NotUnified);
        }
        let dir = place(cgroups_path)?;
        let victims = dir.join(VMM);
        fs::create_dir_all(&victims).map_err(|error| CgroupError::Io(victims.clone(), error))?;
        let mut parent = root.to_owned();
        for part in dir.strip_prefix(root).unwrap_or(&dir) {
            hand_down(&parent, &CONTROLLERS);
            parent.push(part);
        }
        hand_down(&dir, &LIMITING);
        let threads = MAX_THREADS.saturating_mul(vmms);
        limit(&victims, "pids.max", &threads.to_string())?;
        Ok(Self { dir, victims })
    }

    /// A cgroup that exists, or did, whose shim is gone: [`Cgroup::kill`] spares
    /// nothing in it.
    pub fn existing(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            victims: dir.clone(),
            dir,
        }
    }

    /// Its directory: what the sandbox uses is counted here.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the VMM, and whatever is to end with it, is started.
    pub fn vmm_dir(&self) -> PathBuf {
        self.dir.join(VMM)
    }

    /// Moves a VMM into it, so that the pod pays for it from now on. Blocks as
    /// [`Cgroup::enter`] does.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn adopt(&self, pid: u32) -> Result<(), CgroupError> {
        let file = self.vmm_dir().join(PROCS);
        fs::write(&file, pid.to_string()).map_err(|error| CgroupError::Io(file, error))
    }

    /// Moves this process into it, so that the pod pays for its shim too. Returns
    /// where it was. Blocks for as long as the kernel's readers take, some ten
    /// milliseconds.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn enter(&self) -> Result<PathBuf, CgroupError> {
        let table = Path::new("/proc/self/cgroup");
        let failed = |path: &Path, error| CgroupError::Io(path.to_owned(), error);
        let text = fs::read_to_string(table).map_err(|error| failed(table, error))?;
        let home = own_path(&text).ok_or(CgroupError::NotUnified)?;
        let shim = self.dir.join(SHIM);
        match fs::create_dir(&shim) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&shim, error));
            }
            _ => {}
        }
        // 0 is the process that writes.
        fs::write(shim.join(PROCS), "0").map_err(|error| failed(&shim, error))?;
        Ok(Path::new(ROOT).join(home))
    }

    /// Moves this process back to where [`Cgroup::enter`] took it from. That may be
    /// gone, with containerd's service; the root is always there.
    ///
    /// # Errors
    /// When neither takes it.
    pub fn leave(home: &Path) -> Result<(), CgroupError> {
        let root = Path::new(ROOT);
        fs::write(home.join(PROCS), "0")
            .or_else(|_| fs::write(root.join(PROCS), "0"))
            .map_err(|error| CgroupError::Io(home.to_owned(), error))
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap_or_default();
        let mut lines = events.lines();
        let count = lines.find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Bounds the memory of the VMM and what serves it, for a guest that has `guest_mib` MiB.
    /// Call it again before the guest gets more. Where the host does not count memory there
    /// is no limit.
    ///
    /// # Errors
    /// When the kernel does not take the limit.
    pub fn set_memory_limit(&self, guest_mib: u64) -> Result<(), CgroupError> {
        let mib = guest_mib + guest_mib / OVERHEAD_PART + OVERHEAD_MIB;
        limit(&self.vmm_dir(), "memory.max", &(mib << 20).to_string())
    }

    /// Confines it to processors of the host; an empty list: to those of its parent.
    ///
    /// # Errors
    /// When the kernel does not take the list.
    pub fn set_cpus(&self, list: &str) -> Result<(), CgroupError> {
        let file = self.dir.join("cpuset.cpus");
        fs::write(&file, format!("{list}\n")).map_err(|error| CgroupError::Io(file, error))
    }

    /// Kills the VMM and whatever runs beside it; the shim stays.
    ///
    /// # Errors
    /// Unless it is gone already.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match fs::write(self.victims.join("cgroup.kill"), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CgroupError::Io(self.victims.clone(), error))
            }
            _ => Ok(()),
        }
    }

    /// Removes it, waiting for killed processes to leave. Blocks.
    ///
    /// # Errors
    /// When processes stay in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        for dir in [self.dir.join(VMM), self.dir.join(SHIM), self.dir.clone()] {
            remove_until(deadline, dir)?;
        }
        Ok(())
    }
}

fn remove_until(deadline: Instant, dir: PathBuf) -> Result<(), CgroupError> {
    let mut pause = Duration::from_micros(200);
    loop {
        match fs::remove_dir(&dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(error) => return Err(CgroupError::Io(dir, error)),
        }
    }
}

/// The directory of the cgroup that the OCI spec's `cgroupsPath` names.
///
/// # Errors
/// When the path is wrong.
pub fn place(cgroups_path: &Path) -> Result<PathBuf, CgroupError> {
    let relative = relative_path(cgroups_path)
        .ok_or_else(|| CgroupError::Path(cgroups_path.display().to_string()))?;
    Ok(Path::new(ROOT).join(relative))
}

/// Sets a limit, if the controller is there that has it.
fn limit(dir: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = dir.join(file);
    // Without O_CREAT: in a cgroup that makes no difference, in a test it does.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::Io(path, error)),
        _ => Ok(()),
    }
}

/// Hands controllers of a cgroup down to those in it. Where the kubelet and
/// systemd have done so, nothing is written. What cannot be had the pod goes without.
fn hand_down(dir: &Path, controllers: &[&str]) {
    let words = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let (there, down) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let is_in = |list: &str, name: &str| list.split_ascii_whitespace().any(|word| word == name);
    // Each by itself: one that is refused must not keep the others off.
    for name in controllers {
        if is_in(&there, name) && !is_in(&down, name) {
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{name}"));
        }
    }
}

/// The path below the root in a `/proc/PID/cgroup`.
fn own_path(table: &str) -> Option<&str> {
    let mut lines = table.lines();
    lines.find_map(|line| line.strip_prefix("0::/"))
}

/// The directory below the root for a `cgroupsPath`.
fn relative_path(cgroups_path: &Path) -> Option<PathBuf> {
    let text = cgroups_path.to_str()?;
    if let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] {
        return systemd_path(slice, prefix, name);
    }
    let mut path = PathBuf::new();
    for part in cgroups_path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

/// systemd nests `a-b.slice` in `a.slice`; the pod is a scope in its slice.
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Option<PathBuf> {
    let plain = |part: &str| !part.is_empty() && !part.contains('/') && part != "." && part != "..";
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let stem = slice.strip_suffix(".slice")?;
    if !plain(stem) || !plain(name) || prefix.contains('/') {
        return None;
    }
    let mut path = PathBuf::new();
    // "-.slice" is the root.
    if stem != "-" {
        let mut nested = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return None;
            }
            if !nested.is_empty() {
                nested.push('-');
            }
            nested.push_str(part);
            path.push(format!("{nested}.slice"));
        }
    }
    path.push(if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    });
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<String> {
        relative_path(Path::new(text)).map(|path| path.display().to_string())
    }

    #[test]
    fn cgroupfs_paths_stay_below_the_root() {
        assert_eq!(path("/k8s.io/abc").as_deref(), Some("k8s.io/abc"));
        assert_eq!(
            path("kubepods/pod1/abc").as_deref(),
            Some("kubepods/pod1/abc")
        );
        for wrong in ["/../etc", "a/../../b", "/", ""] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn systemd_slices_nest() {
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:abc").as_deref(),
            Some(
                "kubepods.slice/kubepods-burstable.slice/\
                 kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
            )
        );
        assert_eq!(
            path(":cri:abc").as_deref(),
            Some("system.slice/cri-abc.scope")
        );
        assert_eq!(path("-.slice::abc").as_deref(), Some("abc.scope"));
        for wrong in [
            "pod1:cri:abc",
            "a--b.slice:cri:abc",
            "a.slice:cri:../x",
            "../a.slice:c:d",
        ] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_shim_is_spared_and_all_of_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("sandbox");
        fs::create_dir_all(whole.join(VMM)).unwrap();
        fs::create_dir_all(whole.join(SHIM)).unwrap();
        let cgroup = Cgroup {
            victims: whole.join(VMM),
            dir: whole.clone(),
        };
        cgroup.kill().unwrap();
        assert!(whole.join("vmm/cgroup.kill").exists());
        assert!(!whole.join("cgroup.kill").exists());
        fs::remove_file(whole.join("vmm/cgroup.kill")).unwrap();
        cgroup.remove().unwrap();
        assert!(!whole.exists());
    }

    #[test]
    fn a_limit_grows_with_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::existing(dir.path());
        // A host that does not count memory.
        fs::create_dir(cgroup.vmm_dir()).unwrap();
        cgroup.set_memory_limit(256).unwrap();
        let file = cgroup.vmm_dir().join("memory.max");
        assert!(!file.exists());

        for (guest, whole) in [(256, 1344), (4096, 6144)] {
            fs::write(&file, "").unwrap();
            cgroup.set_memory_limit(guest).unwrap();
            let limit = fs::read_to_string(&file).unwrap();
            assert_eq!(limit, (whole * 1048576_u64).to_string());
        }
    }

    #[test]
    fn the_unified_line_is_found() {
        let table = "2:cpu:/a\n0::/system.slice/containerd.service\n";
        assert_eq!(own_path(table), Some("system.slice/containerd.service"));
        assert_eq!(own_path("0::/\n"), Some(""));
        assert_eq!(own_path("1:name=systemd:/\n"), None);
    }

    #[test]
    fn kills_for_want_of_memory_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::existing(dir.path());
        assert_eq!(cgroup.oom_kills(), 0);
        let events = "oom 3\noom_kill 2\noom_group_kill 0\n";
        fs::write(dir.path().join("memory.events"), events).unwrap();
        assert_eq!(cgroup.oom_kills(), 2);
    }

    #[test]
    fn a_cgroup_that_is_gone_needs_no_removal() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::existing(dir.path().join("none"));
        cgroup.kill().unwrap();
        cgroup.remove().unwrap();
    }
}
