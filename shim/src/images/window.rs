//! Where in the sandbox's image window each blob is shown.

use std::collections::BTreeMap;

use vmm::devices::virtio::block::WINDOW_SIZE;

/// Blobs start at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;

/// The window has no gap that is large enough.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pod's images do not fit its image window of 16 TiB")]
pub struct Full;

/// The blobs that a sandbox shows, and how many containers use each.
#[derive(Debug, Default)]
pub struct Window {
    shown: BTreeMap<u64, Shown>,
}

#[derive(Debug)]
struct Shown {
    key: String,
    length: u64,
    users: u32,
}

/// A place in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte offset.
    pub offset: u64,
    /// Whether nothing is shown there yet: the caller maps the blob.
    pub new: bool,
}

impl Window {
    /// A place for one more user of the blob `key`, which has `length` bytes.
    ///
    /// # Errors
    /// When there is no room.
    pub fn acquire(&mut self, key: &str, length: u64) -> Result<Place, Full> {
        if let Some((offset, shown)) = self.shown.iter_mut().find(|(_, shown)| shown.key == key) {
            shown.users += 1;
            return Ok(Place {
                offset: *offset,
                new: false,
            });
        }
        let offset = self.gap(length).ok_or(Full)?;
        self.shown.insert(
            offset,
            Shown {
                key: key.to_owned(),
                length,
                users: 1,
            },
        );
        Ok(Place { offset, new: true })
    }

    /// One user less at `offset`. Returns whether it was the last: then the
    /// caller takes the blob out of the window.
    pub fn release(&mut self, offset: u64) -> bool {
        let Some(shown) = self.shown.get_mut(&offset) else {
            return false;
        };
        shown.users -= 1;
        if shown.users > 0 {
            return false;
        }
        self.shown.remove(&offset);
        true
    }

    /// The lowest aligned offset with `length` free bytes.
    fn gap(&self, length: u64) -> Option<u64> {
        let mut start = 0u64;
        for (offset, shown) in &self.shown {
            if start.checked_add(length)? <= *offset {
                break;
            }
            start = (offset + shown.length).next_multiple_of(ALIGNMENT);
        }
        (start.checked_add(length)? <= WINDOW_SIZE).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(offset: u64) -> Place {
        Place { offset, new: true }
    }

    #[test]
    fn blobs_are_aligned_and_shared() {
        let mut window = Window::default();
        assert_eq!(window.acquire("a", 4096), Ok(new(0)));
        assert_eq!(window.acquire("b", ALIGNMENT + 1), Ok(new(ALIGNMENT)));
        assert_eq!(window.acquire("c", 1), Ok(new(3 * ALIGNMENT)));
        let again = window.acquire("a", 4096).unwrap();
        assert_eq!((again.offset, again.new), (0, false));
        assert!(!window.release(0));
        assert!(window.release(0));
        assert!(!window.release(0));
    }

    #[test]
    fn freed_places_are_used_again() {
        let mut window = Window::default();
        for key in ["a", "b", "c"] {
            window.acquire(key, 4096).unwrap();
        }
        assert!(window.release(ALIGNMENT));
        assert_eq!(window.acquire("big", 2 * ALIGNMENT), Ok(new(3 * ALIGNMENT)));
        assert_eq!(window.acquire("small", 4096), Ok(new(ALIGNMENT)));
    }

    #[test]
    fn the_window_ends() {
        let mut window = Window::default();
        assert_eq!(window.acquire("a", WINDOW_SIZE), Ok(new(0)));
        assert_eq!(window.acquire("b", 1), Err(Full));
        assert_eq!(Window::default().acquire("c", u64::MAX), Err(Full));
    }
}
