//! What a sandbox leaves whose shim was killed, and how the node gets rid of it:
//! [`of_shim`] for one whose end containerd knows, [`reconcile`] for all that nobody
//! asks about any more, as after a crash or a reboot.
//!
//! Nothing that lives is touched: a record names its processes by pid and start time
//! within one boot, and a partial file is removed only under its writer's lock. The user
//! ids of VMMs need no look: they are locks, which end with their holders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use network::Remains;

use super::cgroup::{self, Cgroup};
use super::lock::ByteLock;
use super::record::{self, Record};
use super::{dead, scratch};
use crate::config::Config;
use crate::error::chain;
use crate::images::blobs::BlobStore;

/// Name of the file in the state directory that is locked by whoever looks for remains.
/// Its time says when that was done last.
pub const LOCK: &str = "reconcile.lock";

/// How often the node is looked through while pods are started.
const INTERVAL: Duration = Duration::from_secs(600);

/// What was found, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thing, in words.
    pub what: String,
    /// Why it could not be removed.
    pub error: Option<String>,
}

/// Removes what a state directory records. What else the sandbox had (TAP, scratch disk,
/// locks) the kernel undoes when the processes end that hold it. Returns the VMM's pid
/// and what could not be removed; the rest is removed all the same.
pub fn of_sandbox(state_dir: &Path) -> (u32, Vec<String>) {
    let mut errors = Vec::new();
    let record = match record::read(state_dir) {
        Ok(record) => record,
        Err(error) => {
            errors.push(format!("the record in {}: {error}", state_dir.display()));
            None
        }
    };
    let pid = record.as_ref().map_or(0, |record| record.vmm_pid);
    // Without its record a cgroup that cannot be removed yet would never be found again.
    let undone = record.is_none_or(|record| undo(&record, &mut errors));
    if undone && let Err(error) = record::remove(state_dir) {
        errors.push(format!("{}: {error}", state_dir.display()));
    }
    (u32::try_from(pid).unwrap_or_default(), errors)
}

/// As [`of_sandbox`], and all else that the sandbox's shim had: the VM that it was making a
/// template of.
pub fn of_shim(state_dir: &Path) -> (u32, Vec<String>) {
    let read = |state_dir: &Path| record::read(state_dir).ok().flatten();
    let shim = |record: Record| (record.shim_pid, record.shim_started);
    let theirs = read(state_dir)
        .filter(|record| !record.shim_lives())
        .map(shim);
    let (pid, mut errors) = of_sandbox(state_dir);
    if let (Some(theirs), Some(root)) = (theirs, state_dir.ancestors().nth(2)) {
        for other in record::state_dirs(root) {
            if read(&other).map(shim) == Some(theirs) {
                errors.extend(of_sandbox(&other).1);
            }
        }
    }
    (pid, errors)
}

/// Returns whether the cgroup is gone.
fn undo(record: &Record, errors: &mut Vec<String>) -> bool {
    // A record of an earlier boot names a cgroup that may be another's by now.
    let cgroup = Some(&record.cgroup)
        .filter(|path| path.starts_with(cgroup::ROOT) && *path != Path::new(cgroup::ROOT))
        .filter(|_| record.of_this_boot())
        .map(Cgroup::existing);
    if let Some(cgroup) = &cgroup
        && let Err(error) = cgroup.kill()
    {
        errors.push(chain(&error));
    }
    record.kill_vmm();
    let removed = cgroup.map_or(Ok(()), |cgroup| cgroup.remove());
    let gone = removed.is_ok();
    errors.extend(removed.err().map(|error| chain(&error)));
    if let (Some(netns), Some((interface, handle)), true) =
        (&record.netns, record.filter, record.of_this_boot())
        && let Err(error) = network::sweep(netns, Remains { interface, handle })
    {
        errors.push(chain(&error));
    }
    gone
}

/// Looks through the node unless that was done a moment ago or is being done; logs what
/// was found. Blocks.
pub fn reconcile_sometimes(config: &Config) {
    let path = config.state_dir.join(LOCK);
    let recent = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|last| {
            SystemTime::now()
                .duration_since(last)
                .is_ok_and(|since| since < INTERVAL)
        });
    if recent {
        return;
    }
    match reconcile(config, true) {
        Ok(findings) => {
            for Finding { what, error } in findings.unwrap_or_default() {
                match error {
                    None => tracing::info!(what, "removed what was left behind"),
                    Some(error) => tracing::warn!(what, error, "cannot remove what was left"),
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look for what was left behind"),
    }
}

/// Looks through the node for what nobody owns any more, and removes it if `remove` is
/// set. `None`: somebody else is at it. Blocks.
///
/// # Errors
/// When the state directory cannot be used.
pub fn reconcile(config: &Config, remove: bool) -> io::Result<Option<Vec<Finding>>> {
    fs::create_dir_all(&config.state_dir)?;
    let path = config.state_dir.join(LOCK);
    let Some(_lock) = ByteLock::try_acquire(&path, 0)? else {
        return Ok(None);
    };
    if remove {
        fs::File::options()
            .write(true)
            .open(&path)?
            .set_modified(SystemTime::now())?;
    }
    let mut findings = Vec::new();
    // Those whose shim and VMM are gone.
    let ownerless = record::state_dirs(&config.state_dir)
        .into_iter()
        .filter(|state_dir| is_ownerless(state_dir));
    for state_dir in ownerless {
        findings.push(Finding {
            what: format!("the sandbox in {}", state_dir.display()),
            error: remove
                .then(|| of_sandbox(&state_dir).1)
                .filter(|errors| !errors.is_empty())
                .map(|errors| errors.join("; ")),
        });
    }
    let partial = |path: PathBuf| Finding {
        what: format!("the unfinished file {}", path.display()),
        error: None,
    };
    let blobs = BlobStore::new(config.data_dir.join("layers"));
    findings.extend(blobs.unfinished(remove).into_iter().map(partial));
    findings.extend(
        scratch::unfinished(&config.data_dir, remove)
            .into_iter()
            .map(partial),
    );
    if remove {
        dead::prune(&config.data_dir);
    }
    Ok(Some(findings))
}

fn is_ownerless(state_dir: &Path) -> bool {
    if let Some(being_made) = record::being_made(state_dir) {
        return !being_made;
    }
    match record::read(state_dir) {
        // A VMM ends with its shim, so one that lives alone is about to, unless it hangs.
        Ok(Some(record)) => !record.shim_lives(),
        // It has its record for as long as it has its name; whatever this is, it is not
        // of a sandbox that lives. Or it is being removed right now, which is as good.
        Ok(None) => true,
        // No record of ours, or a torn one. One that could not be read says nothing about
        // its sandbox.
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::host::record::StateDir;

    struct Node {
        dir: tempfile::TempDir,
        config: Config,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = Config {
                state_dir: dir.path().join("state"),
                data_dir: dir.path().join("data"),
                ..Config::default()
            };
            fs::create_dir_all(config.data_dir.join("layers")).unwrap();
            Self { dir, config }
        }

        fn sandbox(&self, record: &Record) -> PathBuf {
            let state =
                StateDir::create(&self.config.state_dir, record, Some(self.dir.path())).unwrap();
            state.path().to_owned()
        }

        fn found(&self, remove: bool) -> Vec<String> {
            let findings = reconcile(&self.config, remove).unwrap().unwrap();
            assert!(
                findings.iter().all(|finding| finding.error.is_none()),
                "{findings:?}"
            );
            findings.into_iter().map(|finding| finding.what).collect()
        }
    }

    /// A process that has ended.
    fn gone() -> (i32, u64) {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let started = record::start_time(pid).unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        (pid, started)
    }

    fn orphan(id: &str) -> Record {
        let (shim_pid, shim_started) = gone();
        Record {
            shim_pid,
            shim_started,
            ..Record::new("n", id)
        }
    }

    #[test]
    fn a_sandbox_that_lives_is_not_touched() {
        let node = Node::new();
        let alive = node.sandbox(&Record::new("n", "alive"));
        // Being made, by this process.
        let record = Record::new("n", "x");
        let made = alive.with_file_name(format!(".x.{}.{}", record.shim_pid, record.shim_started));
        fs::create_dir(&made).unwrap();
        assert_eq!(node.found(true), [""; 0]);
        assert!(alive.exists() && made.exists());
    }

    #[test]
    fn what_killed_processes_left_is_removed() {
        let node = Node::new();
        let alive = node.sandbox(&Record::new("n", "alive"));
        let mut vmm = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = vmm.id() as i32;
        let hanging = node.sandbox(&Record {
            vmm_pid: pid,
            vmm_started: record::start_time(pid).unwrap().unwrap(),
            ..orphan("hanging")
        });
        // The reboot's: the processes of these numbers are not theirs.
        let rebooted = node.sandbox(&Record {
            boot: "earlier".into(),
            cgroup: "/sys/fs/cgroup".into(),
            ..Record::new("m", "rebooted")
        });
        let (dead_pid, dead_started) = gone();
        let unfinished = alive.with_file_name(format!(".y.{dead_pid}.{dead_started}"));
        fs::create_dir(&unfinished).unwrap();
        let torn = alive.with_file_name("torn");
        fs::create_dir(&torn).unwrap();
        fs::write(torn.join("sandbox.json"), "{").unwrap();

        let found = node.found(false);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(hanging.exists() && torn.exists());
        assert_eq!(vmm.try_wait().unwrap(), None);
        let findings = reconcile(&node.config, true).unwrap().unwrap();
        assert_eq!(findings.len(), 4);
        assert!(!vmm.wait().unwrap().success());
        for path in [&hanging, &rebooted, &unfinished, &torn] {
            assert!(!path.exists(), "{}", path.display());
        }
        assert!(alive.exists());
        // With its last sandbox a namespace's directory goes.
        assert!(!node.config.state_dir.join("m").exists());
        assert_eq!(node.found(true), [""; 0]);
    }

    #[test]
    fn unfinished_files_are_removed_unless_they_are_being_written() {
        let node = Node::new();
        let data = &node.config.data_dir;
        let key = "0123456789abcdef";
        let blob = data.join(format!("layers/{key}.partial"));
        let json = data.join(format!("layers/{key}.json.partial"));
        let disk = data.join("scratch-64-abcdef.partial");
        let whole = data.join("scratch-64-abcdef.ext4");
        for path in [&blob, &json, &disk, &whole] {
            fs::write(path, "").unwrap();
        }
        let lock = ByteLock::acquire(&data.join("scratch.lock"), 64).unwrap();
        assert_eq!(node.found(true).len(), 2);
        assert!(disk.exists() && !blob.exists() && !json.exists());
        drop(lock);
        assert_eq!(node.found(true).len(), 1);
        assert!(!disk.exists() && whole.exists());
    }

    #[test]
    fn one_looks_at_a_time_and_not_too_often() {
        let node = Node::new();
        reconcile_sometimes(&node.config);
        let path = node.sandbox(&orphan("a"));
        reconcile_sometimes(&node.config);
        assert!(path.exists(), "it was done a moment ago");
        let lock = node.config.state_dir.join(LOCK);
        let held = ByteLock::acquire(&lock, 0).unwrap();
        assert_eq!(reconcile(&node.config, true).unwrap(), None);
        drop(held);
        let file = fs::File::options().write(true).open(lock).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        reconcile_sometimes(&node.config);
        assert!(!path.exists());
    }
}
