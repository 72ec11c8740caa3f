//! The image window: one large read-only disk into which image files are mapped
//! while the VM runs. What is not mapped reads as zeros.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Disk;
use crate::memory::{IoVec, PAGE};

/// Size of the window in bytes: 16 TiB.
pub const WINDOW_SIZE: u64 = 16 << 40;
/// Most images at a time: each holds a descriptor open.
const MAX_IMAGES: usize = 1024;

/// Why an image cannot be mapped or unmapped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// Offset or length is zero, unaligned, or beyond the window.
    #[error(
        "image range {offset:#x}+{length:#x} must be pages within the window of {WINDOW_SIZE:#x} bytes"
    )]
    Range {
        /// As given.
        offset: u64,
        /// As given.
        length: u64,
    },
    /// Another image is there.
    #[error(
        "image range {offset:#x}+{length:#x} overlaps the image at {other:#x}: unmap that first"
    )]
    Overlap {
        /// As given.
        offset: u64,
        /// As given.
        length: u64,
        /// Offset of the image that is there.
        other: u64,
    },
    /// No image starts there.
    #[error("no image is mapped at {0:#x}")]
    Absent(u64),
    /// There are too many.
    #[error("{MAX_IMAGES} images are mapped, which is the most: unmap one first")]
    TooMany,
}

#[derive(Clone, Debug)]
struct Image {
    file: Arc<File>,
    length: u64,
}

/// The window; clones show the same images.
#[derive(Clone, Debug, Default)]
pub struct Window {
    images: Arc<Mutex<BTreeMap<u64, Image>>>,
}

/// Where the bytes of a range come from.
enum Source {
    Image { file: Arc<File>, offset: u64 },
    Zeros,
}

impl Window {
    /// An empty window.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows the first `length` bytes of `file` at `offset`. What the file lacks
    /// reads as zeros.
    pub fn map(&self, offset: u64, length: u64, file: File) -> Result<(), MapError> {
        let range = MapError::Range { offset, length };
        if !offset.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || length == 0 {
            return Err(range);
        }
        let end = match offset.checked_add(length) {
            Some(end) if end <= WINDOW_SIZE => end,
            _ => return Err(range),
        };
        let mut images = self.lock();
        if let Some((other, image)) = images.range(..end).next_back()
            && other + image.length > offset
        {
            return Err(MapError::Overlap {
                offset,
                length,
                other: *other,
            });
        }
        if images.len() == MAX_IMAGES {
            return Err(MapError::TooMany);
        }
        let file = Arc::new(file);
        images.insert(offset, Image { file, length });
        Ok(())
    }

    /// Takes an image back. A read that is under way may still see it.
    pub fn unmap(&self, offset: u64) -> Result<(), MapError> {
        match self.lock().remove(&offset) {
            Some(_) => Ok(()),
            None => Err(MapError::Absent(offset)),
        }
    }

    /// What is at `offset`, and for how many bytes, at most `length`.
    fn find(&self, offset: u64, length: u64) -> (Source, u64) {
        let images = self.lock();
        if let Some((start, image)) = images.range(..=offset).next_back() {
            let within = offset - start;
            if within < image.length {
                let source = Source::Image {
                    file: Arc::clone(&image.file),
                    offset: within,
                };
                return (source, length.min(image.length - within));
            }
        }
        let next = images.range(offset..).next();
        let hole = next.map_or(length, |(start, _)| length.min(start - offset));
        (Source::Zeros, hole)
    }

    /// A panic ends the process, so the lock is never poisoned.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Image>> {
        self.images
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Disk for Window {
    fn serial(&self) -> &'static str {
        "window"
    }

    fn capacity(&self) -> u64 {
        WINDOW_SIZE
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()> {
        let (mut at, mut offset) = (range.start, offset);
        while at < range.end {
            let (source, length) = self.find(offset, (range.end - at) as u64);
            let end = at + length as usize;
            let mut filled = at;
            if let Source::Image { file, offset } = source {
                while filled < end {
                    let position = offset + (filled - at) as u64;
                    match buffer.read_at(file.as_fd(), filled..end, position)? {
                        0 => break,
                        count => filled += count,
                    }
                }
            }
            buffer.zero(filled..end);
            at = end;
            offset += length;
        }
        Ok(())
    }

    fn write(&self, _: &mut IoVec, _: Range<usize>, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::GuestRam;
    use crate::sys;

    fn image(byte: u8, length: usize) -> File {
        let mut file = File::from(sys::memory_file(c"image").unwrap());
        file.write_all(&vec![byte; length]).unwrap();
        file
    }

    fn read(window: &Window, offset: u64, length: usize) -> Vec<u8> {
        let ram = GuestRam::allocate(1 << 20).unwrap();
        let mut buffer = IoVec::new();
        // Odd parts, filled with something that must be overwritten.
        buffer.push(ram, 0x1000, 700).unwrap();
        buffer.push(ram, 0x4000, length as u32 - 700).unwrap();
        buffer.copy_from(0, &vec![0xee; length]);
        window.read(&mut buffer, 0..length, offset).unwrap();
        let mut bytes = vec![0; length];
        buffer.copy_to(0, &mut bytes);
        bytes
    }

    #[test]
    fn one_read_crosses_images_and_holes() {
        let window = Window::new();
        window.map(0x1000, 0x1000, image(1, 0x1000)).unwrap();
        window.map(0x2000, 0x1000, image(2, 0x1000)).unwrap();
        // Shorter than mapped: the rest is zeros.
        window.map(0x4000, 0x2000, image(3, 0x1200)).unwrap();
        let mut expected = vec![0; 0x800];
        expected.extend([1; 0x1000]);
        expected.extend([2; 0x1000]);
        expected.extend([0; 0x1000]);
        expected.extend([3; 0x1200]);
        expected.extend([0; 0x1600]);
        assert_eq!(read(&window, 0x800, expected.len()), expected);
    }

    #[test]
    fn unmapped_images_are_gone() {
        let window = Window::new();
        window.map(0, 0x1000, image(1, 0x1000)).unwrap();
        assert_eq!(read(&window, 0, 0x1000), [1; 0x1000]);
        window.unmap(0).unwrap();
        assert_eq!(read(&window, 0, 0x1000), [0; 0x1000]);
        assert_eq!(window.unmap(0), Err(MapError::Absent(0)));
        window.map(0, 0x2000, image(2, 0x1000)).unwrap();
    }

    #[test]
    fn images_never_overlap() {
        let window = Window::new();
        window.map(0x4000, 0x4000, image(1, 1)).unwrap();
        for (offset, length) in [
            (0x4000, 0x1000),
            (0x3000, 0x2000),
            (0x7000, 0x1000),
            (0, 0x1_0000),
        ] {
            let error = window.map(offset, length, image(2, 1)).unwrap_err();
            assert!(matches!(error, MapError::Overlap { other: 0x4000, .. }));
        }
        window.map(0x3000, 0x1000, image(2, 1)).unwrap();
        window.map(0x8000, 0x1000, image(2, 1)).unwrap();
    }

    #[test]
    fn ranges_are_pages_within_the_window() {
        let window = Window::new();
        for (offset, length) in [
            (0, 0),
            (1, 0x1000),
            (0, 1),
            (WINDOW_SIZE, 0x1000),
            (WINDOW_SIZE - 0x1000, 0x2000),
            (!0xfff, 0x1000),
        ] {
            let error = window.map(offset, length, image(1, 1)).unwrap_err();
            assert_eq!(error, MapError::Range { offset, length });
        }
        window
            .map(WINDOW_SIZE - 0x1000, 0x1000, image(1, 1))
            .unwrap();
    }
}
