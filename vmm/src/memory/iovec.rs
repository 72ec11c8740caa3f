//! Scatter lists over guest memory, handed to the kernel without a copy.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::GuestRam;

/// Most parts of one list: the kernel's own limit (UIO_MAXIOV).
const MAX_PARTS: usize = 1024;

/// A buffer that the guest named is not guest memory, or has too many parts.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a guest buffer lies outside of guest memory or has too many parts")]
pub struct BadBuffer;

/// A list of ranges of guest memory, in order. The guest may change the bytes at
/// any time; they are only ever copied or given to system calls, never borrowed.
#[derive(Debug, Default)]
pub struct IoVec {
    parts: Vec<libc::iovec>,
    length: usize,
}

// SAFETY: every pointer comes from `GuestRam`, which is never unmapped and which
// any thread may access, as the guest does at the same time anyway.
unsafe impl Send for IoVec {}

impl IoVec {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            parts: Vec::new(),
            length: 0,
        }
    }

    /// Bytes in all parts.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all parts; keeps the list's own memory for the next use.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.length = 0;
    }

    /// Adds a range of guest memory at the end.
    pub fn push(&mut self, ram: GuestRam, address: u64, length: u32) -> Result<(), BadBuffer> {
        if length == 0 {
            return Ok(());
        }
        let size = usize::try_from(length).map_err(|_| BadBuffer)?;
        if self.parts.len() == MAX_PARTS {
            return Err(BadBuffer);
        }
        let slice = ram
            .get_slice(GuestAddress(address), size)
            .map_err(|_| BadBuffer)?;
        self.length = self.length.checked_add(size).ok_or(BadBuffer)?;
        self.parts.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: size,
        });
        Ok(())
    }

    /// Adds all parts of `other` at the end.
    pub fn append(&mut self, other: &Self) -> Result<(), BadBuffer> {
        if self.parts.len() + other.parts.len() > MAX_PARTS {
            return Err(BadBuffer);
        }
        self.length = self.length.checked_add(other.length).ok_or(BadBuffer)?;
        self.parts.extend_from_slice(&other.parts);
        Ok(())
    }

    /// Takes `count` bytes off the front.
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.length);
        self.length -= left;
        let mut whole = 0;
        for part in &mut self.parts {
            if left < part.iov_len {
                // SAFETY: `left` is less than the part's length, so the pointer stays in it.
                part.iov_base = unsafe { part.iov_base.byte_add(left) };
                part.iov_len -= left;
                break;
            }
            left -= part.iov_len;
            whole += 1;
        }
        self.parts.drain(..whole);
    }

    /// Copies bytes from `offset` on into `buffer`; returns how many there were.
    pub fn copy_to(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        self.each(
            offset..offset.saturating_add(buffer.len()),
            |pointer, length| {
                // SAFETY: the source is guest memory of `length` bytes, the target lies in
                // `buffer`; they cannot overlap, as no Rust object is in guest memory.
                unsafe {
                    std::ptr::copy_nonoverlapping(pointer, buffer[done..].as_mut_ptr(), length);
                }
                done += length;
            },
        );
        done
    }

    /// Copies `bytes` to `offset` on; returns how many had room.
    pub fn copy_from(&self, offset: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.each(
            offset..offset.saturating_add(bytes.len()),
            |pointer, length| {
                // SAFETY: as in `copy_to`, the other way round.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), pointer, length);
                }
                done += length;
            },
        );
        done
    }

    /// Fills a range with zeros.
    pub fn zero(&self, range: Range<usize>) {
        self.each(range, |pointer, length| {
            // SAFETY: the range is guest memory of `length` bytes.
            unsafe { std::ptr::write_bytes(pointer, 0, length) };
        });
    }

    /// Reads from `file` at `offset` into a range; returns the bytes read.
    pub fn read_at(
        &mut self,
        file: BorrowedFd<'_>,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.call(range, |parts, count| {
            // SAFETY: all parts are guest memory, which the kernel may write.
            unsafe { libc::preadv(file.as_raw_fd(), parts, count, offset) }
        })
    }

    /// Fills a whole range from `file` at `offset`; a file that ends before is an error.
    pub fn read_exact_at(
        &mut self,
        file: BorrowedFd<'_>,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<()> {
        whole(range, offset, io::ErrorKind::UnexpectedEof, |rest, at| {
            self.read_at(file, rest, at)
        })
    }

    /// Writes a range to `file` at `offset`; returns the bytes written.
    pub fn write_at(
        &mut self,
        file: BorrowedFd<'_>,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.call(range, |parts, count| {
            // SAFETY: all parts are guest memory, which the kernel may read.
            unsafe { libc::pwritev(file.as_raw_fd(), parts, count, offset) }
        })
    }

    /// Writes a whole range to `file` at `offset`.
    pub fn write_all_at(
        &mut self,
        file: BorrowedFd<'_>,
        range: Range<usize>,
        offset: u64,
    ) -> io::Result<()> {
        whole(range, offset, io::ErrorKind::WriteZero, |rest, at| {
            self.write_at(file, rest, at)
        })
    }

    /// Reads once from a stream or packet device into a range.
    pub fn read(&mut self, file: BorrowedFd<'_>, range: Range<usize>) -> io::Result<usize> {
        self.call(range, |parts, count| {
            // SAFETY: all parts are guest memory, which the kernel may write.
            unsafe { libc::readv(file.as_raw_fd(), parts, count) }
        })
    }

    /// Writes a range once to a stream or packet device. A stream socket whose
    /// peer has gone gives EPIPE, not a signal: Rust programs ignore SIGPIPE.
    pub fn write(&mut self, file: BorrowedFd<'_>, range: Range<usize>) -> io::Result<usize> {
        self.call(range, |parts, count| {
            // SAFETY: all parts are guest memory, which the kernel may read.
            unsafe { libc::writev(file.as_raw_fd(), parts, count) }
        })
    }

    /// Calls `f` with pointer and length of each piece of `range`.
    pub(super) fn each(&self, range: Range<usize>, mut f: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (range.start, range.end.saturating_sub(range.start));
        for part in &self.parts {
            if left == 0 {
                break;
            }
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let length = (part.iov_len - skip).min(left);
            // SAFETY: `skip` is less than the part's length, so the pointer stays in it.
            f(unsafe { part.iov_base.cast::<u8>().add(skip) }, length);
            left -= length;
            skip = 0;
        }
    }

    /// Calls `f` with the parts of `range` as the kernel takes them: first and last
    /// part are cut to fit for the time of the call.
    fn call(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(*const libc::iovec, i32) -> isize,
    ) -> io::Result<usize> {
        let end = range.end.min(self.length);
        if range.start >= end {
            return Ok(0);
        }
        let (mut first, mut skip) = (0, range.start);
        while skip >= self.parts[first].iov_len {
            skip -= self.parts[first].iov_len;
            first += 1;
        }
        let (mut last, mut left) = (first, skip + (end - range.start));
        while left > self.parts[last].iov_len {
            left -= self.parts[last].iov_len;
            last += 1;
        }
        let saved = (self.parts[first], self.parts[last]);
        self.parts[last].iov_len = left;
        // SAFETY: `skip` is less than the part's length, so the pointer stays in it.
        self.parts[first].iov_base = unsafe { self.parts[first].iov_base.byte_add(skip) };
        self.parts[first].iov_len -= skip;
        // At most MAX_PARTS, which fits.
        let count = (last - first + 1) as i32;
        let result = f(self.parts[first..].as_ptr(), count);
        let error = io::Error::last_os_error();
        self.parts[last] = saved.1;
        self.parts[first] = saved.0;
        usize::try_from(result).map_err(|_| error)
    }
}

/// Calls `step` until nothing of a range is left; one that does nothing is `nothing`.
fn whole(
    mut range: Range<usize>,
    mut offset: u64,
    nothing: io::ErrorKind,
    mut step: impl FnMut(Range<usize>, u64) -> io::Result<usize>,
) -> io::Result<()> {
    while range.start < range.end {
        let count = step(range.clone(), offset)?;
        if count == 0 {
            return Err(nothing.into());
        }
        range.start += count;
        offset += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys;

    /// Three parts of 10, 20 and 30 bytes that count 0, 1, 2, ... through.
    fn counting() -> (GuestRam, IoVec) {
        let ram = GuestRam::allocate(1 << 16).unwrap();
        let mut vec = IoVec::new();
        for (address, length) in [(0x1000, 10), (0x5000, 20), (0x3000, 30)] {
            vec.push(ram, address, length).unwrap();
        }
        let bytes: Vec<u8> = (0..60).collect();
        assert_eq!(vec.copy_from(0, &bytes), 60);
        (ram, vec)
    }

    #[test]
    fn copies_across_parts() {
        let (_, vec) = counting();
        let mut buffer = [0; 25];
        assert_eq!(vec.copy_to(8, &mut buffer), 25);
        assert_eq!(buffer.to_vec(), (8..33).collect::<Vec<u8>>());
        assert_eq!(vec.copy_to(50, &mut buffer), 10);
        assert_eq!(vec.copy_to(60, &mut buffer), 0);
        assert_eq!(vec.copy_to(usize::MAX, &mut buffer), 0);
    }

    #[test]
    fn zeroes_only_the_range() {
        let (_, vec) = counting();
        vec.zero(9..31);
        let mut all = [0; 60];
        vec.copy_to(0, &mut all);
        let expected: Vec<u8> = (0..60)
            .map(|i| if (9..31).contains(&i) { 0 } else { i })
            .collect();
        assert_eq!(all.to_vec(), expected);
    }

    #[test]
    fn every_range_reaches_the_kernel_whole_and_leaves_the_list_as_it_was() {
        let (_, mut vec) = counting();
        for start in 0..60 {
            for end in start + 1..=60 {
                let (mut a, b) = std::os::unix::net::UnixStream::pair().unwrap();
                assert_eq!(vec.write(b.as_fd(), start..end).unwrap(), end - start);
                drop(b);
                let mut got = Vec::new();
                a.read_to_end(&mut got).unwrap();
                assert_eq!(got, (start as u8..end as u8).collect::<Vec<u8>>());
            }
        }
        assert_eq!(vec.len(), 60);
    }

    #[test]
    fn reads_and_writes_files_at_offsets() {
        let (_, mut vec) = counting();
        let mut file = std::fs::File::from(sys::memory_file(c"f").unwrap());
        file.write_all(&[200; 100]).unwrap();
        assert_eq!(vec.write_at(file.as_fd(), 5..15, 50).unwrap(), 10);
        assert_eq!(vec.read_at(file.as_fd(), 25..45, 45).unwrap(), 20);
        let mut got = [0; 20];
        vec.copy_to(25, &mut got);
        assert_eq!(got[..5], [200; 5]);
        assert_eq!(got[5..15].to_vec(), (5..15).collect::<Vec<u8>>());
        assert_eq!(got[15..], [200; 5]);
        assert_eq!(vec.read_at(file.as_fd(), 0..60, 90).unwrap(), 10);
    }

    #[test]
    fn advance_drops_the_front() {
        let (_, mut vec) = counting();
        vec.advance(12);
        assert_eq!(vec.len(), 48);
        let mut byte = [0];
        vec.copy_to(0, &mut byte);
        assert_eq!(byte, [12]);
        vec.advance(1000);
        assert!(vec.is_empty());
    }

    #[test]
    fn refuses_what_is_not_guest_memory() {
        let ram = GuestRam::allocate(1 << 16).unwrap();
        let mut vec = IoVec::new();
        assert_eq!(vec.push(ram, 0xffff, 2), Err(BadBuffer));
        assert_eq!(vec.push(ram, u64::MAX, 1), Err(BadBuffer));
        for _ in 0..MAX_PARTS {
            vec.push(ram, 0, 1).unwrap();
        }
        assert_eq!(vec.push(ram, 0, 1), Err(BadBuffer));
    }
}
