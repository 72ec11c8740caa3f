//! Where in the sandbox's image window each blob is shown.

use std::collections::HashMap;

use vmm::devices::virtio::block::WINDOW_SIZE;

/// Blobs start at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;

/// The window has no gap that is large enough.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pod's images do not fit its image window of 16 TiB")]
pub struct Full;

/// The blobs that a sandbox shows. One that is shown stays, and nothing else is
/// ever shown in its place: the guest may hold files of it open, and its pages in
/// its cache, long after the last container that was made from it.
#[derive(Debug, Default)]
pub struct Window {
    places: HashMap<String, u64>,
    /// Where the next blob goes.
    end: u64,
}

impl Window {
    /// Where a blob is shown, if it is.
    pub fn place(&self, key: &str) -> Option<u64> {
        self.places.get(key).copied()
    }

    /// An offset for a blob of `length` bytes that is not shown yet.
    ///
    /// # Errors
    /// When there is no room.
    pub fn free(&self, length: u64) -> Result<u64, Full> {
        match self.end.checked_add(length) {
            Some(end) if end <= WINDOW_SIZE => Ok(self.end),
            _ => Err(Full),
        }
    }

    /// The blob `key` is shown from now on, at an offset of [`Window::free`].
    pub fn shown(&mut self, key: &str, offset: u64, length: u64) {
        self.places.insert(key.to_owned(), offset);
        self.end = (offset + length).next_multiple_of(ALIGNMENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(window: &mut Window, key: &str, length: u64) -> Result<u64, Full> {
        let offset = window.free(length)?;
        window.shown(key, offset, length);
        Ok(offset)
    }

    #[test]
    fn blobs_are_aligned_and_stay() {
        let mut window = Window::default();
        assert_eq!(window.place("a"), None);
        assert_eq!(show(&mut window, "a", 4096), Ok(0));
        assert_eq!(show(&mut window, "b", ALIGNMENT + 1), Ok(ALIGNMENT));
        assert_eq!(show(&mut window, "c", 1), Ok(3 * ALIGNMENT));
        assert_eq!(window.place("a"), Some(0));
        assert_eq!(window.place("b"), Some(ALIGNMENT));
    }

    #[test]
    fn a_place_that_was_not_used_is_given_again() {
        let window = Window::default();
        assert_eq!(window.free(1), window.free(1));
    }

    #[test]
    fn the_window_ends() {
        let mut window = Window::default();
        assert_eq!(show(&mut window, "a", WINDOW_SIZE), Ok(0));
        assert_eq!(window.free(1), Err(Full));
        assert_eq!(Window::default().free(u64::MAX), Err(Full));
    }
}
