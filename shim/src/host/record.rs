//! The sandbox's state directory, and the record in it by which a dead shim's
//! sandbox is removed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::{pool, templates};

/// Name of the record.
const RECORD: &str = "sandbox.json";

/// Name of the file in the bundle that leads to the state directory.
const POINTER: &str = "joey-state-dir";

/// The kernel's name for this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How often a namespace's directory is made again that another sandbox, the last in
/// it, has just removed.
const MAX_TRIES: u32 = 16;

/// What must be undone when nobody else is left to do it, and what an operator is
/// shown. It is there before anything else of the sandbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The boot of the host that the processes belong to.
    pub boot: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox's id.
    pub id: String,
    /// The shim's pid, and when it was given out.
    pub shim_pid: i32,
    /// See `shim_pid`.
    pub shim_started: u64,
    /// The VMM's pid; 0: there is none yet.
    pub vmm_pid: i32,
    /// When that pid was given out, in ticks since boot: tells it from a later
    /// process of the same number.
    pub vmm_started: u64,
    /// The pod's cgroup; empty: it is not chosen yet.
    pub cgroup: PathBuf,
    /// The pod's network namespace, if it has one.
    pub netns: Option<PathBuf>,
    /// The filter on the pod's interface: the interface's index, and the filter's handle.
    pub filter: Option<(u32, u32)>,
    /// The shim's socket.
    pub socket: PathBuf,
    /// When the sandbox was made, in seconds since 1970.
    pub created: u64,
    /// The pod's name and Kubernetes namespace; empty without a pod.
    pub pod: String,
    /// See `pod`.
    pub pod_namespace: String,
    /// How large the VM is.
    pub vcpus: u8,
    /// See `vcpus`.
    pub memory_mib: u32,
}

/// A sandbox's directory under the state directory: `<namespace>/<id>`.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    handle: File,
}

impl StateDir {
    /// Makes it with its record in it, and leaves a pointer to it in the bundle, if it is
    /// containerd's sandbox, for `delete`. Wherever this process is killed, what it leaves is found again: the
    /// directory has a name that tells its maker until all of that is there.
    ///
    /// # Errors
    /// When it exists already or cannot be made.
    pub fn create(root: &Path, record: &Record, bundle: Option<&Path>) -> io::Result<Self> {
        let parent = root.join(&record.namespace);
        let path = path(root, &record.namespace, &record.id);
        if path.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let unfinished = parent.join(unfinished_name(record));
        make(&unfinished)?;
        let finish = || {
            write_record(&unfinished, record)?;
            if let Some(bundle) = bundle {
                fs::write(bundle.join(POINTER), path.as_os_str().as_encoded_bytes())?;
            }
            // Fails if another made it meanwhile, as that one is not empty.
            fs::rename(&unfinished, &path)?;
            File::open(&path)
        };
        match finish() {
            Ok(handle) => Ok(Self { path, handle }),
            Err(error) => {
                let _ = remove(&unfinished);
                Err(match error.kind() {
                    io::ErrorKind::DirectoryNotEmpty => io::ErrorKind::AlreadyExists.into(),
                    _ => error,
                })
            }
        }
    }

    /// The path that a bundle points to.
    ///
    /// # Errors
    /// When it has no pointer.
    pub fn of_bundle(bundle: &Path) -> io::Result<PathBuf> {
        fs::read_to_string(bundle.join(POINTER)).map(PathBuf::from)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As the function of this name, for as long as this is there.
    pub fn socket_path(&self, name: &str) -> PathBuf {
        socket_path(&self.handle, name)
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// As writing does.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        fs::write(self.path.join(name), content)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// As writing does.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        write_record(&self.path, record)
    }

    /// Removes it with all that is in it, and the namespace's directory if this
    /// was the last.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// Where a sandbox's state directory is.
pub fn path(root: &Path, namespace: &str, id: &str) -> PathBuf {
    root.join(namespace).join(id)
}

/// A path of a file in an open directory that is short enough for a socket's address,
/// good in this process only, while the directory is open.
pub fn socket_path(directory: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).into()
}

/// All directories in the place of state directories, also those that are being made.
pub fn state_dirs(root: &Path) -> Vec<PathBuf> {
    let directories = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    };
    let mut found: Vec<_> = directories(root)
        .iter()
        .filter(|directory| {
            let name = directory.file_name();
            ![templates::DIRECTORY, pool::DIRECTORY]
                .map(OsStr::new)
                .contains(&name.unwrap_or_default())
        })
        .flat_map(|namespace| directories(namespace))
        .collect();
    found.sort();
    found
}

/// The name of a directory that is being made, which no sandbox can have.
fn unfinished_name(record: &Record) -> String {
    format!(".{}.{}.{}", record.id, record.shim_pid, record.shim_started)
}

/// Whether a directory is still being made; `None`: its name does not say that it was.
pub fn being_made(directory: &Path) -> Option<bool> {
    let name = directory.file_name()?.to_str()?;
    let mut parts = name.strip_prefix('.')?.rsplitn(3, '.');
    let started = parts.next()?.parse().ok()?;
    let pid = parts.next()?.parse().ok()?;
    Some(is_process(pid, started))
}

/// Makes a directory that is root's alone: the socket in it leads into the guest.
fn make(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAX_TRIES => {
                tries += 1;
            }
            made => return made,
        }
    }
}

fn write_record(dir: &Path, record: &Record) -> io::Result<()> {
    let partial = dir.join("sandbox.partial");
    fs::write(&partial, serde_json::to_vec(record)?)?;
    fs::rename(partial, dir.join(RECORD))
}

/// Reads a state directory's record; `None` if the sandbox never had one.
///
/// # Errors
/// When it is there but cannot be read.
pub fn read(state_dir: &Path) -> io::Result<Option<Record>> {
    match fs::read(state_dir.join(RECORD)) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a state directory; one that is gone is fine.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(state_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(namespace) = state_dir.parent() {
        // Fails while other sandboxes are in it, as it should.
        let _ = fs::remove_dir(namespace);
    }
    Ok(())
}

/// When a process was started, in ticks since boot; `None` if it is gone.
///
/// # Errors
/// When the kernel does not tell.
pub fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // The process may end while the file is open.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // The name, in parentheses, may hold anything; fields are counted after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        // Dead, and its parent has not looked yet.
        return Ok(None);
    }
    let started = fields.nth(18).and_then(|field| field.parse().ok());
    started.map(Some).ok_or(io::ErrorKind::InvalidData.into())
}

/// The kernel's name for this boot; empty if it gives none.
pub fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

impl Record {
    /// The record of a sandbox that this process makes.
    pub fn new(namespace: &str, id: &str) -> Self {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        Self {
            boot: boot_id(),
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            shim_pid: pid,
            shim_started: start_time(pid).ok().flatten().unwrap_or_default(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs()),
            ..Default::default()
        }
    }

    /// Whether the shim that owns the sandbox lives.
    pub fn shim_lives(&self) -> bool {
        self.of_this_boot() && is_process(self.shim_pid, self.shim_started)
    }

    /// Whether the sandbox's VMM lives.
    pub fn vmm_lives(&self) -> bool {
        self.of_this_boot() && is_process(self.vmm_pid, self.vmm_started)
    }

    /// Whether pids mean anything: after a reboot they are other processes'.
    pub fn of_this_boot(&self) -> bool {
        self.boot == boot_id()
    }

    /// Kills the VMM if it is still the process that was recorded.
    pub fn kill_vmm(&self) {
        if self.vmm_lives() {
            // It may end by itself in between.
            let _ = kill(Pid::from_raw(self.vmm_pid), Signal::SIGKILL);
        }
    }
}

/// Whether `pid` is the process that was given it at `started`. When that cannot be told,
/// it is: a sandbox is not taken apart on a guess.
fn is_process(pid: i32, started: u64) -> bool {
    pid > 0 && start_time(pid).map_or(true, |found| found == Some(started))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use super::*;

    #[test]
    fn a_bundle_leads_to_the_record() {
        let root = tempfile::tempdir().unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let mut record = Record::new("k8s.io", "abc");
        let dir = StateDir::create(root.path(), &record, Some(bundle.path())).unwrap();
        let path = StateDir::of_bundle(bundle.path()).unwrap();
        assert_eq!(path, dir.path());
        assert_eq!(read(&path).unwrap().as_ref(), Some(&record));
        assert!(record.shim_lives() && !record.vmm_lives());
        record.vmm_pid = 7;
        record.cgroup = "/sys/fs/cgroup/x".into();
        dir.write_record(&record).unwrap();
        assert_eq!(read(&path).unwrap(), Some(record));
        dir.remove().unwrap();
        assert!(!root.path().join("k8s.io").exists());
        dir.remove().unwrap();
    }

    #[test]
    fn long_ids_still_have_sockets() {
        let root = tempfile::tempdir().unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let (namespace, id) = ("n".repeat(76), "i".repeat(76));
        let record = Record::new(&namespace, &id);
        let dir = StateDir::create(root.path(), &record, Some(bundle.path())).unwrap();
        let _listener = UnixListener::bind(dir.socket_path("vsock")).unwrap();
        UnixStream::connect(dir.socket_path("vsock")).unwrap();
        assert!(dir.path().join("vsock").exists());
    }

    #[test]
    fn an_id_has_one_directory() {
        let root = tempfile::tempdir().unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let create = || StateDir::create(root.path(), &Record::new("n", "a"), Some(bundle.path()));
        let first = create().unwrap();
        assert_eq!(create().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        first.remove().unwrap();
        create().unwrap();
    }

    #[test]
    fn only_the_recorded_process_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let started = start_time(pid).unwrap().unwrap();
        let record = |vmm_started| Record {
            vmm_pid: pid,
            vmm_started,
            ..Record::new("n", "a")
        };
        record(started + 1).kill_vmm();
        let of_another_boot = Record {
            boot: "another".into(),
            ..record(started)
        };
        of_another_boot.kill_vmm();
        assert!(child.try_wait().unwrap().is_none());
        record(started).kill_vmm();
        assert!(!child.wait().unwrap().success());
        assert_eq!(start_time(pid).unwrap(), None);
    }

    #[test]
    fn a_directory_that_is_being_made_tells_its_maker() {
        let record = Record::new("n", "a.b");
        assert_eq!(being_made(Path::new(&unfinished_name(&record))), Some(true));
        let gone = Record {
            shim_started: 1,
            ..record
        };
        assert_eq!(being_made(Path::new(&unfinished_name(&gone))), Some(false));
        assert_eq!(being_made(Path::new("a.1.2")), None);
        assert_eq!(being_made(Path::new(".x")), None);
    }
}
