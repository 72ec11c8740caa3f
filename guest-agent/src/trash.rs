//! Removes directory trees in the background, a little at a time: a container may
//! have left a million files, and the event loop has other work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Entries removed before others get their turn.
const BATCH: usize = 64;

/// Removes `tree` when there is time. What cannot be removed is logged and stays.
pub fn remove(tree: PathBuf) {
    tokio::spawn(async move {
        if let Err(error) = remove_tree(&tree).await {
            log::warn!("cannot remove {}: {error}", tree.display());
        }
    });
}

async fn remove_tree(tree: &Path) -> io::Result<()> {
    let mut directories = vec![tree.to_path_buf()];
    let mut removed = 0;
    // A directory stays on the stack until a pass finds it empty.
    while let Some(directory) = directories.last().cloned() {
        let depth = directories.len();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
                break;
            }
            fs::remove_file(entry.path())?;
            removed += 1;
            if removed % BATCH == 0 {
                tokio::task::yield_now().await;
            }
        }
        if directories.len() == depth {
            fs::remove_dir(&directory)?;
            directories.pop();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tree_goes_and_what_its_links_point_to_stays() {
        let base = tempfile::tempdir().unwrap();
        let kept = base.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let tree = base.path().join("tree");
        for deep in ["a/b/c", "a/d", "e"] {
            fs::create_dir_all(tree.join(deep)).unwrap();
            for number in 0..BATCH {
                fs::write(tree.join(deep).join(number.to_string()), "").unwrap();
            }
        }
        std::os::unix::fs::symlink(&kept, tree.join("a/link")).unwrap();
        remove_tree(&tree).await.unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
    }
}
