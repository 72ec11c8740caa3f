//! What a template is made from: when any of it changes, the template is another.

use std::fmt::Write;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmm::VmSpec;

use crate::config::Config;

/// Characters of a key.
const KEY: usize = 32;

/// One state of one file: whoever changes the file changes this, without that anybody
/// reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// When its content and its inode were changed last, in nanoseconds since 1970.
    modified: i64,
    changed: i64,
}

impl From<Metadata> for Identity {
    fn from(metadata: Metadata) -> Self {
        let nanos = |seconds: i64, rest: i64| seconds.wrapping_mul(1_000_000_000) + rest;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file, and the state that was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    path: PathBuf,
    identity: Identity,
}

impl Part {
    fn of(path: &Path) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        Ok(Self {
            path: path.to_owned(),
            identity: fs::metadata(path).map_err(named)?.into(),
        })
    }

    fn is_there(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

/// Everything that a template's content depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    kernel: Part,
    agent: Part,
    vmm: Part,
    /// Its user is another in each VM.
    spec: VmSpec,
    scratch_mib: u64,
}

impl Recipe {
    /// What a template of this node is made from now.
    ///
    /// # Errors
    /// Names the file that is not there.
    pub fn of(config: &Config, spec: &VmSpec) -> io::Result<Self> {
        Ok(Self {
            kernel: Part::of(&config.kernel)?,
            agent: Part::of(&config.agent)?,
            vmm: Part::of(&config.vmm)?,
            spec: VmSpec {
                uid: 0,
                gid: 0,
                ..spec.clone()
            },
            scratch_mib: config.scratch_mib,
        })
    }

    /// Its name: the same for the same recipe.
    pub fn key(&self) -> String {
        let text = serde_json::to_vec(self).expect("a recipe is plain data");
        let mut key = String::new();
        for byte in Sha256::digest(text) {
            write!(key, "{byte:02x}").expect("text takes all");
        }
        key.truncate(KEY);
        key
    }

    /// Whether its files are still those that it was made from.
    pub fn is_current(&self) -> bool {
        [&self.kernel, &self.agent, &self.vmm]
            .iter()
            .all(|part| part.is_there())
    }

    /// How large its VMs are at first.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kernel_setting_or_shape_is_another_template() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let config = Config {
            kernel: path("kernel"),
            agent: path("agent"),
            vmm: path("vmm"),
            ..Config::default()
        };
        let spec = VmSpec {
            vcpus: 1,
            memory_mib: 128,
            hotplug_mib: 0,
            offloads: vmm::Offloads::Tcp,
            uid: 7,
            gid: 7,
            console: false,
        };
        let first = Recipe::of(&config, &spec).unwrap();
        let same = VmSpec {
            uid: 8,
            gid: 8,
            ..spec.clone()
        };
        assert_eq!(Recipe::of(&config, &same).unwrap().key(), first.key());
        assert!(first.is_current());

        let larger = VmSpec {
            memory_mib: 129,
            ..spec.clone()
        };
        assert_ne!(Recipe::of(&config, &larger).unwrap().key(), first.key());
        let scratch = Config {
            scratch_mib: config.scratch_mib + 1,
            ..config.clone()
        };
        assert_ne!(Recipe::of(&scratch, &spec).unwrap().key(), first.key());
        // The same content at the same place, but another file.
        let new = path("new");
        std::fs::write(&new, "kernel").unwrap();
        std::fs::rename(new, &config.kernel).unwrap();
        assert_ne!(Recipe::of(&config, &spec).unwrap().key(), first.key());
        assert!(!first.is_current());
        std::fs::remove_file(&config.agent).unwrap();
        let error = Recipe::of(&config, &spec).unwrap_err().to_string();
        assert!(error.contains("agent"), "{error}");
    }
}
