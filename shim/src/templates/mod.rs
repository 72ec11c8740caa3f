//! Templates: VMs that have booted, saved once and gone on from by every start.
//!
//! They live in the state directory, which is in memory. Each has a directory of its own,
//! named by what it is made from ([`recipe`]), which appears when it is whole. A start
//! that finds none boots, and has one made ([`build`]); one that is not as it was made is
//! removed.

mod build;
pub mod recipe;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use build::{build, build_in_background};

use self::recipe::{Identity, Recipe};
use crate::host::lock::ByteLock;

/// Their place in the state directory; no namespace of containerd begins with a dot.
pub const DIRECTORY: &str = ".templates";
/// Name of the file in the state directory that is locked by whoever makes or removes
/// templates.
const LOCK: &str = "templates.lock";
/// Files of a template.
const MEMORY: &str = "memory";
const STATE: &str = "state";
const CHANGES: &str = "changes";
const MANIFEST: &str = "manifest.json";
/// What is read at once of a file that is verified, in bytes.
const PAGE: usize = 4096;

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of it, or of what it is made from, cannot be used.
    #[error("{}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// A file's content is not what was written.
    #[error("{} is not as it was made: its SHA-256 is wrong", .0.display())]
    Damaged(PathBuf),
    /// What describes it cannot be read.
    #[error("{} cannot be read", .0.display())]
    Manifest(PathBuf, #[source] serde_json::Error),
}

/// A file of a template, as it was made.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    sha256: String,
    /// While the file has it, its content needs no second look.
    identity: Identity,
}

impl Seal {
    fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            sha256: digest(&file)?,
            identity: file.metadata()?.into(),
        })
    }

    /// Opens the file and makes sure of its content. `path`: for the error.
    fn open(&self, path: PathBuf) -> Result<File, TemplateError> {
        let open = || -> io::Result<(File, bool)> {
            let file = File::open(&path)?;
            let fine =
                Identity::from(file.metadata()?) == self.identity || digest(&file)? == self.sha256;
            Ok((file, fine))
        };
        match open() {
            Ok((file, true)) => Ok(file),
            Ok((_, false)) => Err(TemplateError::Damaged(path)),
            Err(error) => Err(TemplateError::Io(path, error)),
        }
    }
}

/// What stands beside the files of a template.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    recipe: Recipe,
    memory: Seal,
    state: Seal,
    changes: Seal,
}

impl Manifest {
    /// `None`: there is no template.
    fn read(directory: &Path) -> Result<Option<Self>, TemplateError> {
        let path = directory.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TemplateError::Io(path, error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| TemplateError::Manifest(path, error))
    }
}

/// A template that can be gone on from.
#[derive(Debug)]
pub struct Template {
    /// Its name.
    pub key: String,
    /// Guest memory.
    pub memory: File,
    /// Everything else.
    pub state: File,
    /// Which pages a sandbox writes to when it starts.
    pub changes: File,
}

/// Opens the template of a recipe; `None`: there is none.
///
/// # Errors
/// When there is one that cannot be used: it should be removed.
pub fn find(state_dir: &Path, recipe: &Recipe) -> Result<Option<Template>, TemplateError> {
    let key = recipe.key();
    let directory = directory(state_dir, &key);
    let Some(manifest) = Manifest::read(&directory)? else {
        return Ok(None);
    };
    Ok(Some(Template {
        key,
        memory: manifest.memory.open(directory.join(MEMORY))?,
        state: manifest.state.open(directory.join(STATE))?,
        changes: manifest.changes.open(directory.join(CHANGES))?,
    }))
}

/// What is known of a template.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub key: String,
    /// Whether starts still use it: its files are those of its recipe.
    pub current: bool,
    /// Bytes of the host's memory that it takes.
    pub bytes: u64,
    /// The size of its VMs before they grow, in MiB.
    pub memory_mib: u32,
}

/// All templates of the node. One that cannot be read is not current.
pub fn list(state_dir: &Path) -> Vec<Listed> {
    let mut found: Vec<_> = entries(state_dir)
        .map(|directory| {
            use std::os::unix::fs::MetadataExt;
            let manifest = Manifest::read(&directory).ok().flatten();
            let bytes = |name| {
                let metadata = fs::metadata(directory.join(name));
                metadata.map_or(0, |metadata| metadata.blocks() * 512)
            };
            Listed {
                key: name_of(&directory),
                current: manifest.as_ref().is_some_and(|one| one.recipe.is_current()),
                bytes: bytes(MEMORY) + bytes(STATE),
                memory_mib: manifest.map_or(0, |one| one.recipe.spec().memory_mib),
            }
        })
        .collect();
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

/// Removes all templates; returns their names. Blocks while one is made.
///
/// # Errors
/// When they cannot be locked, or one cannot be removed.
pub fn remove_all(state_dir: &Path) -> io::Result<Vec<String>> {
    let _lock = ByteLock::acquire(&state_dir.join(LOCK), 0)?;
    let all = list(state_dir).into_iter().map(|one| one.key);
    all.map(|key| remove(state_dir, &key).map(|()| key))
        .collect()
}

/// Removes a template. VMs that were made from it go on.
///
/// # Errors
/// When it cannot be removed; that there is none is fine.
pub fn remove(state_dir: &Path, key: &str) -> io::Result<()> {
    let directory = directory(state_dir, key);
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    // Without it nobody uses what is left.
    gone(fs::remove_file(directory.join(MANIFEST)))?;
    gone(fs::remove_dir_all(&directory))
}

/// Removes the templates whose kernel, agent or VMM are gone; returns their names.
pub fn remove_outdated(state_dir: &Path) -> Vec<String> {
    let outdated = list(state_dir).into_iter().filter(|one| !one.current);
    outdated
        .filter(|one| remove(state_dir, &one.key).is_ok())
        .map(|one| one.key)
        .collect()
}

fn directory(state_dir: &Path, key: &str) -> PathBuf {
    state_dir.join(DIRECTORY).join(key)
}

/// The directories of whole templates.
fn entries(state_dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(state_dir.join(DIRECTORY))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The SHA-256 of what is in a file, and where, in hexadecimal. Most of guest memory is
/// holes, which are not read.
fn digest(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut hasher = Sha256::new();
    hasher.update(length.to_le_bytes());
    let mut page = [0; PAGE];
    let mut at = 0;
    while at < length {
        at = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / PAGE as u64 * PAGE as u64,
            // Only a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let bytes = &mut page[..PAGE.min((length - at) as usize)];
        file.read_exact_at(bytes, at)?;
        // Whether a page of zeros is a hole is the file system's to decide.
        if bytes.iter().any(|byte| *byte != 0) {
            hasher.update(at.to_le_bytes());
            hasher.update(&*bytes);
        }
        at += PAGE as u64;
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    struct Node {
        dir: tempfile::TempDir,
        recipe: Recipe,
    }

    impl Node {
        /// A node with a template whose files have this content.
        fn new(memory: &[u8], state: &[u8]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let this = std::env::current_exe().unwrap();
            let config = crate::config::Config {
                kernel: this.clone(),
                agent: this.clone(),
                vmm: this,
                ..Default::default()
            };
            let recipe = Recipe::of(&config, &crate::vm::shape(&config, 1)).unwrap();
            let place = directory(dir.path(), &recipe.key());
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join(MEMORY), memory).unwrap();
            fs::write(place.join(STATE), state).unwrap();
            fs::write(place.join(CHANGES), "[]").unwrap();
            let manifest = Manifest {
                recipe: recipe.clone(),
                memory: Seal::of(&place.join(MEMORY)).unwrap(),
                state: Seal::of(&place.join(STATE)).unwrap(),
                changes: Seal::of(&place.join(CHANGES)).unwrap(),
            };
            fs::write(place.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
            Self { dir, recipe }
        }

        fn place(&self) -> PathBuf {
            directory(self.dir.path(), &self.recipe.key())
        }

        fn find(&self) -> Result<Option<Template>, TemplateError> {
            find(self.dir.path(), &self.recipe)
        }
    }

    #[test]
    fn a_template_is_there_until_it_is_removed() {
        let node = Node::new(&[7; 10_000], b"state");
        let found = node.find().unwrap().unwrap();
        let mut text = String::new();
        (&found.state).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), found.key), ("state", node.recipe.key()));
        let listed = list(node.dir.path());
        assert!(listed.len() == 1 && listed[0].current, "{listed:?}");
        assert_eq!(remove_outdated(node.dir.path()), [""; 0]);
        remove(node.dir.path(), &node.recipe.key()).unwrap();
        assert!(node.find().unwrap().is_none());
        remove(node.dir.path(), &node.recipe.key()).unwrap();
        assert!(list(node.dir.path()).is_empty());
    }

    #[test]
    fn what_was_left_half_made_goes_too() {
        let node = Node::new(b"", b"");
        fs::write(node.place().join("manifest.partial"), "{").unwrap();
        remove(node.dir.path(), &node.recipe.key()).unwrap();
        assert!(!node.place().exists());
    }

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        for (name, offset) in [(MEMORY, 0), (MEMORY, 9_999), (STATE, 2), (CHANGES, 1)] {
            let node = Node::new(&[7; 10_000], b"state");
            let path = node.place().join(name);
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"!", offset).unwrap();
            let error = node.find().unwrap_err();
            assert!(
                matches!(&error, TemplateError::Damaged(at) if *at == path),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_was_only_touched_is_still_good() {
        let node = Node::new(&[7; 10_000], b"state");
        let path = node.place().join(MEMORY);
        fs::write(path, [7; 10_000]).unwrap();
        assert!(node.find().unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let node = Node::new(b"", b"");
        fs::write(node.place().join(MANIFEST), "{").unwrap();
        assert!(node.find().unwrap_err().to_string().contains(MANIFEST));
        assert!(!list(node.dir.path())[0].current);
        assert_eq!(remove_outdated(node.dir.path()), [node.recipe.key()]);
    }

    #[test]
    fn zeros_and_holes_are_the_same_and_places_count() {
        let of = |writes: &[(u64, &[u8])], length| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            for (at, bytes) in writes {
                file.write_all_at(bytes, *at).unwrap();
            }
            digest(&file).unwrap()
        };
        let plain = of(&[(8192, b"x")], 20_000);
        assert_eq!(of(&[(0, &[0; 20_000]), (8192, b"x")], 20_000), plain);
        assert_ne!(of(&[(4096, b"x")], 20_000), plain);
        assert_ne!(of(&[(8192, b"x")], 20_001), plain);
        assert_ne!(of(&[(8193, b"x")], 20_000), plain);
    }
}
