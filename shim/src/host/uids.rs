//! A user id for each VMM, so that one that breaks out of its guest owns nothing
//! of another.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::lock::ByteLock;

/// A user id that no other VMM of this host has while this is held, or a copy of its
/// descriptor: the VMM that runs as it holds one.
#[derive(Debug)]
pub struct UidLease {
    /// The id; the group's is the same.
    pub uid: u32,
    lock: ByteLock,
}

impl AsFd for UidLease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// No id can be had.
#[derive(Debug, thiserror::Error)]
pub enum UidError {
    /// Every id is in use.
    #[error("all {0} user ids for VMMs are in use; raise uid_count in the configuration")]
    Exhausted(u32),
    /// The file of locks cannot be used.
    #[error("cannot lock a user id in {}", .0.display())]
    Lock(PathBuf, #[source] std::io::Error),
}

impl UidLease {
    /// Takes a free id of `base..base + count`. `state_dir` holds the locks.
    ///
    /// # Errors
    /// When all are taken or the locks cannot be used.
    pub fn take(state_dir: &Path, sandbox: &str, base: u32, count: u32) -> Result<Self, UidError> {
        let path = state_dir.join("uids.lock");
        let mut hasher = DefaultHasher::new();
        sandbox.hash(&mut hasher);
        // Start anywhere, so that pods that start together rarely meet.
        let first = (hasher.finish() % u64::from(count)) as u32;
        for i in 0..count {
            let uid = base + (first + i) % count;
            match ByteLock::try_acquire(&path, u64::from(uid)) {
                Ok(Some(lock)) => return Ok(Self { uid, lock }),
                Ok(None) => {}
                Err(error) => return Err(UidError::Lock(path, error)),
            }
        }
        Err(UidError::Exhausted(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_until_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let take = |name| UidLease::take(dir.path(), name, 5000, 3);
        let mut leases = vec![take("a").unwrap(), take("a").unwrap(), take("b").unwrap()];
        let mut uids: Vec<_> = leases.iter().map(|lease| lease.uid).collect();
        uids.sort_unstable();
        assert_eq!(uids, [5000, 5001, 5002]);
        assert!(matches!(take("c"), Err(UidError::Exhausted(3))));
        let free = leases.pop().unwrap().uid;
        assert_eq!(take("c").unwrap().uid, free);
    }
}
