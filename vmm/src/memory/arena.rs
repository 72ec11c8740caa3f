//! Memory that is shared with another process, which may change it at any time.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use super::IoVec;

/// A shared mapping of a file. Its bytes are only ever copied, never borrowed. A range
/// beyond its end is a mistake of ours, not of the other process, and panics.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and all accesses are copies or atomic, as
// another process makes them at the same time anyway.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps the first `length` bytes of `file`, which must never become shorter: pages
    /// beyond its end would kill the process.
    pub fn map(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            length,
        })
    }

    /// The bytes at `offset`.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        // SAFETY: `at` has checked the range; `bytes` is ours.
        unsafe { std::ptr::copy_nonoverlapping(self.at(offset, N), bytes.as_mut_ptr(), N) };
        bytes
    }

    /// Puts `bytes` at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let target = self.at(offset, bytes.len());
        // SAFETY: `at` has checked the range; no Rust object is in the arena.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// An index that the other process counts up; what it wrote before is seen after.
    pub fn load(&self, offset: usize) -> u16 {
        u16::from_le(self.index(offset).load(Ordering::Acquire))
    }

    /// Publishes an index; the other process sees what was written before.
    pub fn store(&self, offset: usize, value: u16) {
        self.index(offset).store(value.to_le(), Ordering::Release);
    }

    /// Copies a range of guest memory to `offset`.
    pub fn gather(&self, offset: usize, from: &IoVec, range: Range<usize>) {
        let mut target = self.at(offset, range.len());
        from.each(range, |pointer, length| {
            // SAFETY: the pieces are together no longer than the range, for which `at` has
            // checked that there is room; guest memory and arena never overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(pointer, target, length);
                target = target.add(length);
            }
        });
    }

    /// Copies `length` bytes from `offset` to the start of guest memory.
    pub fn scatter(&self, offset: usize, length: usize, to: &IoVec) {
        let mut source = self.at(offset, length).cast_const();
        to.each(0..length, |pointer, length| {
            // SAFETY: as in `gather`, the other way round.
            unsafe {
                std::ptr::copy_nonoverlapping(source, pointer, length);
                source = source.add(length);
            }
        });
    }

    fn index(&self, offset: usize) -> &AtomicU16 {
        let pointer = self.at(offset, 2).cast::<u16>();
        assert!(pointer.is_aligned());
        // SAFETY: aligned, within the mapping, which lives as long as `self`, and only
        // ever accessed atomically.
        unsafe { AtomicU16::from_ptr(pointer) }
    }

    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length));
        // SAFETY: the offset lies within the mapping.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it for longer than `self`.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::memory::GuestRam;
    use crate::sys;

    #[test]
    fn guest_memory_goes_through_and_back() {
        let file = sys::sealed_memory_file(c"arena", 8192).unwrap();
        let arena = Arena::map(file.as_fd(), 8192).unwrap();
        let same = Arena::map(file.as_fd(), 8192).unwrap();
        let ram = GuestRam::allocate(1 << 16).unwrap();
        let (mut from, mut to) = (IoVec::new(), IoVec::new());
        from.push(ram, 0, 10).unwrap();
        from.push(ram, 0x1000, 20).unwrap();
        to.push(ram, 0x2000, 7).unwrap();
        to.push(ram, 0x3000, 100).unwrap();
        let bytes: Vec<u8> = (0..30).collect();
        from.copy_from(0, &bytes);
        arena.gather(8170, &from, 8..30);
        assert_eq!(same.read::<4>(8170), [8, 9, 10, 11]);
        same.scatter(8170, 22, &to);
        let mut got = [0; 23];
        to.copy_to(0, &mut got);
        assert_eq!(got[..22], bytes[8..]);
        assert_eq!(got[22], 0);
        same.store(2, 0x1234);
        assert_eq!(arena.load(2), 0x1234);
    }

    #[test]
    #[should_panic]
    fn a_range_beyond_the_end_is_never_touched() {
        let file = sys::sealed_memory_file(c"arena", 4096).unwrap();
        let arena = Arena::map(file.as_fd(), 4096).unwrap();
        arena.write(4095, &[1, 2]);
    }
}
