//! The node's cache of EROFS blobs, one for each layer directory.
//!
//! A committed layer directory never changes, so its identity (path, device,
//! inode, birth time) is the blob's key. A blob appears under its name only when
//! it is whole; a lock for each key keeps two pods from building the same one.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::superblock::{self, SuperblockError};
use crate::host::lock::{self, ByteLock};

/// The guest sees blobs in pages.
const PAGE: u64 = 4096;

/// Environment variable that names another `mkfs.erofs`.
const MKFS_VARIABLE: &str = "JOEY_MKFS_EROFS";

/// The directory of blobs.
#[derive(Clone, Debug)]
pub struct BlobStore {
    dir: PathBuf,
}

/// A whole image of one layer.
#[derive(Debug)]
pub struct Blob {
    /// Its name in the store.
    pub key: String,
    /// Open for reading.
    pub file: File,
    /// Bytes, a multiple of 4096.
    pub size: u64,
}

/// What is written beside a blob.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    layer: Identity,
    size: u64,
}

/// What makes a layer directory this one and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970; of the last change where the file system keeps no
    /// birth time.
    born: u128,
}

/// Why a layer has no blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The layer directory is not there.
    #[error("cannot read the layer directory {}", .0.display())]
    Layer(PathBuf, #[source] std::io::Error),
    /// The store cannot be written.
    #[error("cannot write {}; check that its disk has room", .0.display())]
    Store(PathBuf, #[source] std::io::Error),
    /// The image tool is not installed.
    #[error("cannot run {0}; install erofs-utils")]
    Tool(String, #[source] std::io::Error),
    /// The image tool failed.
    #[error("{tool} failed on the layer {}: {output}", layer.display())]
    Build {
        /// The tool.
        tool: String,
        /// The layer directory.
        layer: PathBuf,
        /// What it said.
        output: String,
    },
    /// A blob is broken, just after it was built.
    #[error("the image blob {} is corrupt: {reason}; check the disk that holds it", path.display())]
    Corrupt {
        /// The blob.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl BlobStore {
    /// The store in `dir`, made when it is first written to.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The blob of a layer directory, built if there is none or a broken one.
    /// Blocks while it is built, here or by another process.
    ///
    /// # Errors
    /// When the layer cannot be read, or the blob cannot be built.
    pub fn get(&self, layer: &Path) -> Result<Blob, BlobError> {
        let identity = Identity::of(layer)?;
        let key = identity.key();
        if let Ok(Some(blob)) = self.open(&key, &identity) {
            return Ok(blob);
        }
        // Root's alone, as the snapshotter's own directory: layers may hold what
        // is not for every user of the node.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| BlobError::Store(self.dir.clone(), error))?;
        let _lock = self.lock(&key)?;
        match self.open(&key, &identity) {
            Ok(Some(blob)) => return Ok(blob),
            Ok(None) => {}
            Err(reason) => tracing::warn!(
                blob = %self.path(&key).display(), reason, "corrupt image blob: building it anew"
            ),
        }
        self.build(&key, &identity)?;
        self.prune(&key);
        match self.open(&key, &identity) {
            Ok(Some(blob)) => Ok(blob),
            Ok(None) => Err(self.corrupt(&key, "it vanished".into())),
            Err(reason) => Err(self.corrupt(&key, reason)),
        }
    }

    /// Opens a blob: none, a whole one, or what is wrong with it.
    fn open(&self, key: &str, identity: &Identity) -> Result<Option<Blob>, String> {
        let file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let record = self.record(key)?;
        if record.layer != *identity {
            return Err("its record is that of another layer".into());
        }
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        if size != record.size || size == 0 || size % PAGE != 0 {
            return Err(format!("it has {size} bytes instead of {}", record.size));
        }
        superblock::check(&file).map_err(|error| match error {
            SuperblockError::Read(error) => format!("its superblock cannot be read: {error}"),
            other => other.to_string(),
        })?;
        Ok(Some(Blob {
            key: key.to_owned(),
            file,
            size,
        }))
    }

    fn record(&self, key: &str) -> Result<Record, String> {
        let json =
            std::fs::read(self.record_path(key)).map_err(|error| format!("its record: {error}"))?;
        serde_json::from_slice(&json).map_err(|error| format!("its record: {error}"))
    }

    fn build(&self, key: &str, identity: &Identity) -> Result<(), BlobError> {
        let partial = self.dir.join(format!("{key}.partial"));
        let store = |path: &Path| {
            let path = path.to_owned();
            move |error| BlobError::Store(path, error)
        };
        // What a builder left that was killed. The lock makes it ours.
        if let Err(error) = std::fs::remove_file(&partial)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(store(&partial)(error));
        }
        let result = self.run_mkfs(key, identity, &partial).and_then(|()| {
            let file = File::open(&partial).map_err(store(&partial))?;
            superblock::check(&file).map_err(|error| self.corrupt(key, error.to_string()))?;
            file.sync_all().map_err(store(&partial))?;
            let size = file.metadata().map_err(store(&partial))?.len();
            self.write_record(key, identity, size)?;
            let path = self.path(key);
            std::fs::rename(&partial, &path).map_err(store(&path))?;
            File::open(&self.dir)
                .and_then(|dir| dir.sync_all())
                .map_err(store(&self.dir))
        });
        if result.is_err() {
            // Best effort: the next builder removes it otherwise.
            let _ = std::fs::remove_file(&partial);
        }
        result
    }

    fn run_mkfs(&self, key: &str, identity: &Identity, to: &Path) -> Result<(), BlobError> {
        let tool = std::env::var(MKFS_VARIABLE).unwrap_or_else(|_| "mkfs.erofs".to_owned());
        let output = Command::new(&tool)
            .arg("--quiet")
            // The same layer gives the same image: id and time come from it.
            .arg(format!("-U{}", uuid(key)))
            .env("SOURCE_DATE_EPOCH", BUILD_TIME)
            .arg(to)
            .arg(&identity.path)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| BlobError::Tool(tool.clone(), error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        let from = said.len().saturating_sub(500);
        let from = (from..=said.len())
            .find(|at| said.is_char_boundary(*at))
            .unwrap_or(said.len());
        Err(BlobError::Build {
            tool,
            layer: identity.path.clone(),
            output: format!("{}: {}", output.status, said[from..].replace('\n', "; ")),
        })
    }

    fn write_record(&self, key: &str, identity: &Identity, size: u64) -> Result<(), BlobError> {
        let path = self.record_path(key);
        let partial = self.dir.join(format!("{key}.json.partial"));
        let record = Record {
            layer: identity.clone(),
            size,
        };
        let json = serde_json::to_vec(&record).expect("a record is plain data");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(&json)?;
            file.sync_all()?;
            std::fs::rename(&partial, &path)
        };
        write().map_err(|error| BlobError::Store(path.clone(), error))
    }

    /// Removes blobs whose layer directory is gone, except `keep`. A VM that
    /// shows one has it open, so it goes on.
    fn prune(&self, keep: &str) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            if key == keep {
                continue;
            }
            let alive = self.record(key).is_ok_and(|record| {
                Identity::of(&record.layer.path).is_ok_and(|now| now == record.layer)
            });
            if !alive
                && let Ok(Some(_lock)) = ByteLock::try_acquire(&self.lock_path(), lock_byte(key))
            {
                tracing::debug!(key, "removing the image blob of a layer that is gone");
                for path in [self.path(key), self.record_path(key)] {
                    if let Err(error) = std::fs::remove_file(&path)
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(path = %path.display(), %error, "cannot remove");
                    }
                }
            }
        }
    }

    /// Files of builders that were killed; removed if `remove` is set.
    pub fn unfinished(&self, remove: bool) -> Vec<PathBuf> {
        lock::unfinished(&self.dir, &self.lock_path(), remove, |name| {
            let stem = name.strip_suffix(".partial")?;
            Some(lock_byte(stem.split('.').next()?))
        })
    }

    fn lock(&self, key: &str) -> Result<ByteLock, BlobError> {
        let path = self.lock_path();
        ByteLock::acquire(&path, lock_byte(key)).map_err(|error| BlobError::Store(path, error))
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn corrupt(&self, key: &str, reason: String) -> BlobError {
        BlobError::Corrupt {
            path: self.path(key),
            reason,
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.erofs"))
    }

    fn record_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }
}

/// Build time of every blob: later than any file, so that the tool, which clamps
/// newer times to it, changes none.
const BUILD_TIME: &str = "4294967295";

/// The byte of the lock file that stands for a key.
fn lock_byte(key: &str) -> u64 {
    key.get(..15)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_default()
}

/// The first 128 bits of a key in the form of a UUID.
fn uuid(key: &str) -> String {
    let part = |range: std::ops::Range<usize>| key.get(range).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32)
    )
}

impl Identity {
    fn of(layer: &Path) -> Result<Self, BlobError> {
        let failed = |error| BlobError::Layer(layer.to_owned(), error);
        let path = layer.canonicalize().map_err(failed)?;
        let metadata = path.metadata().map_err(failed)?;
        if !metadata.is_dir() {
            return Err(failed(std::io::ErrorKind::NotADirectory.into()));
        }
        let born = metadata
            .created()
            .or_else(|_| metadata.modified())
            .map_err(failed)?
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        Ok(Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            born,
        })
    }

    fn key(&self) -> String {
        use std::fmt::Write;
        use std::os::unix::ffi::OsStrExt;
        let mut hash = Sha256::new();
        hash.update(self.path.as_os_str().as_bytes());
        hash.update([0]);
        hash.update(self.device.to_le_bytes());
        hash.update(self.inode.to_le_bytes());
        hash.update(self.born.to_le_bytes());
        hash.finalize()
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

#[cfg(test)]
mod tests;
