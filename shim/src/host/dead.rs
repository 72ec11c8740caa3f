//! What is known of sandboxes that died: one file each, of the newest few.
//!
//! ```text
//! /var/lib/joey/dead/NAMESPACE+ID.log
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How many are kept.
const KEPT: usize = 32;

/// Largest file, in bytes.
const MAX_BYTES: usize = 80 << 10;

/// Between namespace and id, neither of which can hold it.
const SEPARATOR: char = '+';
const SUFFIX: &str = ".log";

/// How many of a log's last lines an error names, and how long each may be.
const LAST_LINES: usize = 6;
const LAST_LINE_BYTES: usize = 160;

/// A sandbox that died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// When it died.
    pub at: SystemTime,
    /// What is known of it.
    pub path: PathBuf,
}

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("dead")
}

/// Keeps `text`, and of all that is kept the newest. Returns where it is.
///
/// # Errors
/// When it cannot be written.
pub fn keep(data_dir: &Path, namespace: &str, id: &str, text: &str) -> io::Result<PathBuf> {
    let directory = directory(data_dir);
    // Root's alone: what a pod's kernel says is not for every user of the node.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)?;
    let path = directory.join(format!("{namespace}{SEPARATOR}{id}{SUFFIX}"));
    let mut end = text.len().min(MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let partial = directory.join(format!(".{id}.partial"));
    fs::write(&partial, &text[..end])?;
    fs::rename(&partial, &path)?;
    prune(data_dir);
    Ok(path)
}

/// Removes all but the newest, and what a killed writer left.
pub fn prune(data_dir: &Path) {
    for old in list(data_dir).into_iter().skip(KEPT) {
        // Another shim may have removed it.
        let _ = fs::remove_file(old.path);
    }
}

/// All that is kept, newest first.
pub fn list(data_dir: &Path) -> Vec<Dead> {
    let Ok(entries) = fs::read_dir(directory(data_dir)) else {
        return Vec::new();
    };
    let mut dead: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (namespace, id) = name.strip_suffix(SUFFIX)?.split_once(SEPARATOR)?;
            Some(Dead {
                namespace: namespace.to_owned(),
                id: id.to_owned(),
                at: entry.metadata().ok()?.modified().ok()?,
                path: entry.path(),
            })
        })
        .collect();
    dead.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.path.cmp(&b.path)));
    dead
}

/// The end of a log on one line, for an error. A kernel's panic is its reason, and what
/// follows it is often longer than the end that is shown: then it begins there.
pub fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let panic = lines.iter().rposition(|line| line.contains("Kernel panic"));
    let start = panic.unwrap_or(lines.len().saturating_sub(LAST_LINES));
    lines[start..]
        .iter()
        .take(LAST_LINES)
        .map(|line| line.get(..LAST_LINE_BYTES).unwrap_or(line))
        .collect::<Vec<_>>()
        .join(" | ")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn only_the_newest_are_kept() {
        let data = tempfile::tempdir().unwrap();
        for n in 0..KEPT as u64 + 3 {
            let path = keep(data.path(), "k8s.io", &format!("s{n}"), "log\n").unwrap();
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(n))
                .unwrap();
        }
        prune(data.path());
        let dead = list(data.path());
        assert_eq!(dead.len(), KEPT);
        assert_eq!(dead[0].id, format!("s{}", KEPT + 2));
        assert_eq!(dead[0].namespace, "k8s.io");
        assert_eq!(dead[KEPT - 1].id, "s3");
    }

    #[test]
    fn a_file_is_bounded() {
        let data = tempfile::tempdir().unwrap();
        let path = keep(data.path(), "n", "a", &"ä".repeat(MAX_BYTES)).unwrap();
        assert!(path.metadata().unwrap().len() <= MAX_BYTES as u64);
        assert_eq!(fs::read_dir(data.path().join("dead")).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_a_logs_end() {
        let log = (0..9).map(|n| format!("line {n}\n\n")).collect::<String>();
        let said = last_lines(&log);
        assert!(said.starts_with("line 3 | line 4"), "{said}");
        assert!(said.ends_with("line 8"), "{said}");
        let panic = format!("before\n[ 1.0] Kernel panic - not syncing: why\n{log}");
        let said = last_lines(&panic);
        assert!(
            said.starts_with("[ 1.0] Kernel panic - not syncing: why | line 0"),
            "{said}"
        );
        assert!(said.ends_with("line 4"), "{said}");
        assert_eq!(last_lines(""), "");
        assert_eq!(last_lines(&"x".repeat(999)).len(), LAST_LINE_BYTES);
    }
}
