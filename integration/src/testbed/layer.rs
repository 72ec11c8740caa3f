//! Files that a test host gets beside its root, without copying them in: a
//! read-only disk made at boot, which lies over the root.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, unnamed_file};

/// Files by their place in the test host. Later ones replace earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    files: Vec<(PathBuf, String, u32)>,
    trees: Vec<PathBuf>,
}

impl Layer {
    /// A layer without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file; `to` is absolute.
    pub fn file(mut self, from: impl Into<PathBuf>, to: impl Into<String>, mode: u32) -> Self {
        self.files.push((from.into(), to.into(), mode));
        self
    }

    /// Adds what lies below a directory, with its permissions.
    pub fn tree(mut self, from: impl Into<PathBuf>) -> Self {
        self.trees.push(from.into());
        self
    }

    /// Packs the files, all owned by root, into an EROFS file without a name.
    pub(super) fn build(&self) -> Result<File, Error> {
        let staging = Staging::new().map_err(Error::io("make a temporary directory"))?;
        for tree in &self.trees {
            copy_tree(tree, &staging.0).map_err(Error::io(format!("copy {}", tree.display())))?;
        }
        for (from, to, mode) in &self.files {
            let place = staging.0.join(to.trim_start_matches('/'));
            copy(from, &place, *mode).map_err(Error::io(format!("copy {}", from.display())))?;
        }
        let disk = unnamed_file().map_err(Error::io("make a temporary file"))?;
        let output = Command::new("mkfs.erofs")
            .args(["--quiet", "-T0", "--all-root"])
            .arg(format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                disk.as_raw_fd()
            ))
            .arg(&staging.0)
            .output()
            .map_err(Error::io("run mkfs.erofs (scripts/deps.sh installs it)"))?;
        if output.status.success() {
            return Ok(disk);
        }
        Err(Error::Build {
            script: "mkfs.erofs".into(),
            reason: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

struct Staging(PathBuf);

impl Staging {
    fn new() -> io::Result<Staging> {
        let path = std::env::temp_dir().join(format!(
            "testhost-layer-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Staging(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path, mode: u32) -> io::Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&place)?;
            copy_tree(&entry.path(), &place)?;
        } else {
            // Checkouts differ in what group and others may do.
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            copy(
                &entry.path(),
                &place,
                if executable { 0o755 } else { 0o644 },
            )?;
        }
    }
    Ok(())
}
