//! The sandbox's state directory, and the record in it by which a dead shim's
//! sandbox is removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Name of the record.
const RECORD: &str = "sandbox.json";

/// Name of the file in the bundle that leads to the state directory.
const POINTER: &str = "joey-state-dir";

/// What must be undone when nobody else is left to do it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The VMM's pid.
    pub vmm_pid: i32,
    /// When that pid was given out, in ticks since boot: tells it from a later
    /// process of the same number.
    pub vmm_started: u64,
    /// The pod's cgroup.
    pub cgroup: PathBuf,
}

/// A sandbox's directory under the state directory: `<namespace>/<id>`.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    handle: File,
}

impl StateDir {
    /// Makes it, and leaves a pointer to it in the bundle for `delete`.
    ///
    /// # Errors
    /// When it exists already or cannot be made.
    pub fn create(root: &Path, namespace: &str, id: &str, bundle: &Path) -> io::Result<Self> {
        let path = path(root, namespace, id);
        let parent = root.join(namespace);
        fs::create_dir_all(&parent)?;
        // Root's alone: the socket in it leads into the guest.
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let named = || {
            fs::write(bundle.join(POINTER), path.as_os_str().as_encoded_bytes())?;
            File::open(&path)
        };
        match named() {
            Ok(handle) => Ok(Self { path, handle }),
            Err(error) => {
                let _ = fs::remove_dir_all(&path);
                Err(error)
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

    /// A path of a file in it that is short enough for a socket's address, good
    /// in this process only.
    pub fn socket_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()).into()
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
        let partial = self.path.join("sandbox.partial");
        fs::write(&partial, serde_json::to_vec(record)?)?;
        fs::rename(partial, self.path.join(RECORD))
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
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; fields are counted after it.
    let fields = stat.rsplit_once(')')?.1;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

impl Record {
    /// Kills the VMM if it is still the process that was recorded.
    pub fn kill_vmm(&self) {
        if self.vmm_pid > 0 && start_time(self.vmm_pid) == Some(self.vmm_started) {
            // It may end by itself in between.
            let _ = kill(Pid::from_raw(self.vmm_pid), Signal::SIGKILL);
        }
    }
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
        let dir = StateDir::create(root.path(), "k8s.io", "abc", bundle.path()).unwrap();
        let path = StateDir::of_bundle(bundle.path()).unwrap();
        assert_eq!(path, dir.path());
        assert_eq!(read(&path).unwrap(), None);
        let record = Record {
            vmm_pid: 7,
            vmm_started: 9,
            cgroup: "/sys/fs/cgroup/x".into(),
        };
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
        let dir = StateDir::create(root.path(), &namespace, &id, bundle.path()).unwrap();
        let _listener = UnixListener::bind(dir.socket_path("vsock")).unwrap();
        UnixStream::connect(dir.socket_path("vsock")).unwrap();
        assert!(dir.path().join("vsock").exists());
    }

    #[test]
    fn an_id_has_one_directory() {
        let root = tempfile::tempdir().unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let create = || StateDir::create(root.path(), "n", "a", bundle.path());
        let first = create().unwrap();
        assert_eq!(create().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        first.remove().unwrap();
        create().unwrap();
    }

    #[test]
    fn only_the_recorded_process_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let started = start_time(pid).unwrap();
        let record = |vmm_started| Record {
            vmm_pid: pid,
            vmm_started,
            ..Default::default()
        };
        record(started + 1).kill_vmm();
        assert!(child.try_wait().unwrap().is_none());
        record(started).kill_vmm();
        assert!(!child.wait().unwrap().success());
        assert_eq!(start_time(pid), None);
    }
}
