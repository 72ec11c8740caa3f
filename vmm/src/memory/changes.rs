//! Pages that are a guest's own: which ones it has written to since it was saved. The next
//! one that goes on from there writes to the same, and can have them before it runs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{GuestRam, PAGE};

/// Bytes that are compared at once.
const CHUNK: usize = 64 << 10;

impl GuestRam {
    /// Addresses of the pages that are not as in a file ([`Self::save`]), in their order.
    pub fn changes(&self, file: &File) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        let (mut now, mut then) = (vec![0; CHUNK], vec![0; CHUNK]);
        for (region, offset) in self.in_file() {
            for at in region.clone().step_by(CHUNK) {
                let size = (CHUNK as u64).min(region.end - at) as usize;
                let (now, then) = (&mut now[..size], &mut then[..size]);
                self.read_slice(now, GuestAddress(at))
                    .map_err(io::Error::other)?;
                file.read_exact_at(then, offset + (at - region.start))?;
                let pages = now.chunks(PAGE as usize).zip(then.chunks(PAGE as usize));
                let pages = (at..).step_by(PAGE as usize).zip(pages);
                let changed = pages.filter(|(_, (now, then))| now != then);
                found.extend(changed.map(|(page, _)| page));
            }
        }
        Ok(found)
    }

    /// Has the guest's own copies of pages made, as if it had written to them.
    ///
    /// # Errors
    /// Where they are not guest memory, and before Linux 5.14.
    pub fn make_own(&self, range: &Range<u64>) -> io::Result<()> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let size = range.end.checked_sub(range.start);
        let size = size.and_then(|size| usize::try_from(size).ok());
        let slice = self
            .get_slice(GuestAddress(range.start), size.ok_or_else(outside)?)
            .map_err(|_| outside())?;
        let start = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the slice is guest memory, which stays mapped; its content stays the same.
        match unsafe { libc::madvise(start.cast(), slice.len(), libc::MADV_POPULATE_WRITE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Puts addresses of pages together to ranges.
pub fn ranges(mut pages: Vec<u64>) -> Vec<Range<u64>> {
    pages.sort_unstable();
    let mut found: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match found.last_mut() {
            Some(last) if page < last.end => {}
            Some(last) if page == last.end => last.end += PAGE,
            _ => found.push(page..page + PAGE),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::memory::{HIGH_START, LOW_END};
    use crate::sys;

    #[test]
    fn what_was_written_is_found_wherever_it_is() {
        let bytes = LOW_END + (1 << 20);
        let file = File::from(sys::memory_file(c"memory").unwrap());
        file.set_len(bytes).unwrap();
        let ram = GuestRam::allocate(bytes).unwrap();
        ram.put(0, &[7; 0x5000]).unwrap();
        ram.save(file.as_fd()).unwrap();
        assert!(ram.changes(&file).unwrap().is_empty());
        for (place, value) in [
            (0x1fff, 8),
            (0x2000, 8),
            (0x4000, 0),
            // Where there was nothing.
            (0x10_0000, 1),
            (HIGH_START, 1),
            // As before.
            (0x3000, 7),
            (0x20_0000, 0),
        ] {
            ram.put(place, &[value]).unwrap();
        }
        let expected = [0x1000, 0x2000, 0x4000, 0x10_0000, HIGH_START];
        assert_eq!(ram.changes(&file).unwrap(), expected);
    }

    #[test]
    fn pages_become_ranges_whatever_their_order() {
        let pages = vec![0x5000, 0x1000, 0x2000, 0x2000, 0x4000, HIGH_START];
        let expected = [
            0x1000..0x3000,
            0x4000..0x6000,
            HIGH_START..HIGH_START + PAGE,
        ];
        assert_eq!(ranges(pages), expected);
        assert_eq!(ranges(Vec::new()), []);
    }

    #[test]
    fn own_copies_are_the_same_and_nobody_elses() {
        let file = File::from(sys::memory_file(c"memory").unwrap());
        file.write_all_at(&[7; 0x4000], 0).unwrap();
        let ram = GuestRam::allocate(0x10_0000).unwrap();
        file.set_len(0x10_0000).unwrap();
        ram.load(file.as_fd()).unwrap();
        ram.make_own(&(0x1000..0x2000)).unwrap();
        // What is shared follows the file.
        file.write_all_at(&[8; 0x4000], 0).unwrap();
        let byte = |at| ram.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0xfff, 0x1000, 0x1fff, 0x2000].map(byte), [8, 7, 7, 8]);
        assert!(ram.make_own(&(0x10_0000..0x10_1000)).is_err());
        let reversed = Range {
            start: 0x2000,
            end: 0x1000,
        };
        assert!(ram.make_own(&reversed).is_err());
    }
}
