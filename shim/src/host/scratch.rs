//! The pod's scratch disk: a clone without a name of a template that is
//! formatted once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use sha2::{Digest, Sha256};

use super::files;
use super::lock::{self, ByteLock};

/// How the template is formatted. No journal: the disk never outlives its VM.
/// The inode tables are holes of a new file, so nobody has to write zeros.
const FORMAT: [&str; 10] = [
    "-q",
    "-F",
    "-m",
    "0",
    "-b",
    "4096",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard",
];

/// Name of the file whose byte N is locked by whoever formats a template of N MiB.
const LOCK: &str = "scratch.lock";

/// Environment variable that names another `mkfs.ext4`.
const MKFS_VARIABLE: &str = "JOEY_MKFS_EXT4";

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The data directory cannot be written.
    #[error("cannot write {}; check that its disk has room", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// The formatting tool is not installed.
    #[error("cannot run {0}; install e2fsprogs")]
    Tool(String, #[source] io::Error),
    /// The formatting tool failed.
    #[error("{tool} failed to format the scratch template: {output}")]
    Format {
        /// The tool.
        tool: String,
        /// What it said.
        output: String,
    },
}

/// A new scratch disk of `mib` MiB in `data_dir`. It has no name: it goes when
/// the last process closes it. Blocks, and formats the template if there is none.
///
/// # Errors
/// When the template cannot be made or cloned.
pub fn create(data_dir: &Path, mib: u64) -> Result<File, ScratchError> {
    let template = template(data_dir, mib)?;
    let failed = |error| ScratchError::Io(data_dir.to_owned(), error);
    let disk = files::unnamed(data_dir).map_err(failed)?;
    clone(&template, &disk).map_err(failed)?;
    Ok(disk)
}

/// Whether what is written to a disk in `data_dir` stays in memory: the directory is on a
/// tmpfs. One that cannot be asked is on something else.
pub fn is_in_memory(data_dir: &Path) -> bool {
    statfs(data_dir).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
}

/// Templates whose formatter was killed; removed if `remove` is set.
pub fn unfinished(data_dir: &Path, remove: bool) -> Vec<PathBuf> {
    lock::unfinished(data_dir, &data_dir.join(LOCK), remove, |name| {
        let name = name.strip_suffix(".partial")?.strip_prefix("scratch-")?;
        name.split('-').next()?.parse().ok()
    })
}

fn template(data_dir: &Path, mib: u64) -> Result<File, ScratchError> {
    let hash = Sha256::digest(FORMAT.join(" "));
    let name = format!(
        "scratch-{mib}-{:02x}{:02x}{:02x}",
        hash[0], hash[1], hash[2]
    );
    let path = data_dir.join(format!("{name}.ext4"));
    if let Ok(file) = File::open(&path) {
        return Ok(file);
    }
    let failed = |error| ScratchError::Io(path.clone(), error);
    std::fs::create_dir_all(data_dir).map_err(failed)?;
    let _lock = ByteLock::acquire(&data_dir.join(LOCK), mib).map_err(failed)?;
    if let Ok(file) = File::open(&path) {
        return Ok(file);
    }
    // Whatever is left under this name is of a process that was killed.
    let partial = data_dir.join(format!("{name}.partial"));
    let file = File::create(&partial).map_err(failed)?;
    file.set_len(mib << 20).map_err(failed)?;
    format(&partial)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&partial, &path).map_err(failed)?;
    File::open(&path).map_err(failed)
}

fn format(path: &Path) -> Result<(), ScratchError> {
    let tool = std::env::var(MKFS_VARIABLE).unwrap_or_else(|_| "mkfs.ext4".to_owned());
    let output = Command::new(&tool)
        .args(FORMAT)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ScratchError::Tool(tool.clone(), error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ScratchError::Format {
        tool,
        output: String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace('\n', "; "),
    })
}

/// Shares the blocks where the file system can, else copies what is not a hole.
fn clone(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        copy(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let left = usize::try_from(end - source).unwrap_or(usize::MAX);
        if copy_file_range(from, Some(&mut source), to, Some(&mut target), left)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_disk_is_formatted_sparse_and_unnamed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = create(dir.path(), 64).unwrap();
        let metadata = disk.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert_eq!(metadata.nlink(), 0);
        assert!(metadata.blocks() * 512 < 4 << 20, "{}", metadata.blocks());
        let mut magic = [0; 2];
        disk.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
    }

    #[test]
    fn disks_are_independent_and_the_template_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = create(dir.path(), 16).unwrap();
        first.write_all_at(b"mine", 8 << 20).unwrap();
        let second = create(dir.path(), 16).unwrap();
        let mut bytes = [0; 4];
        second.read_exact_at(&mut bytes, 8 << 20).unwrap();
        assert_eq!(bytes, [0; 4]);
        let templates = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                !name.to_str().unwrap().ends_with(".lock")
            })
            .count();
        assert_eq!(templates, 1);
    }

    #[test]
    fn a_clone_keeps_data_and_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(10 << 20).unwrap();
        from.write_all_at(b"start", 0).unwrap();
        from.write_all_at(b"end", (10 << 20) - 3).unwrap();
        let to = tempfile::tempfile().unwrap();
        clone(&from, &to).unwrap();
        let mut bytes = [0; 3];
        to.read_exact_at(&mut bytes, (10 << 20) - 3).unwrap();
        assert_eq!(&bytes, b"end");
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
