//! Guest memory as a file: the regions one after the other, zeros as holes.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::{Bytes, GuestAddress};

use super::{GuestRam, IoVec, MemoryError, PAGE};

/// Most that is written at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// Fewer bytes of zeros than this are no hole. The more holes, the more mappings: with this
/// a guest that has booted has some 25, and its zeros add a thirtieth to the file.
const HOLE: u64 = 16 * PAGE;

impl GuestRam {
    /// Writes everything to a new file, whose length is that of the memory already.
    /// Nothing may write to the memory meanwhile. Returns the bytes that are no holes.
    pub fn save(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        let mut written = 0;
        for (region, offset) in self.in_file() {
            let mut at = region.start;
            while let Some(part) = self.part(at..region.end)? {
                at = part.end;
                written += part.end - part.start;
                for address in part.clone().step_by(CHUNK as usize) {
                    let length = CHUNK.min(part.end - address);
                    self.write_out(file, offset + (address - region.start), address, length)?;
                }
            }
        }
        Ok(written)
    }

    /// Gives it the content of a file ([`Self::save`]), which is mapped private: pages that
    /// the guest does not write to are the page cache's, shared with all others. Returns
    /// where in guest memory it is mapped.
    ///
    /// Holes are not mapped. A guest that touches a hole of a file in memory has the host
    /// put a page of zeros into the file, for ever, and then make a copy of it. What it
    /// touches between the mapped parts comes in small pages: most of a huge one would stay
    /// unused.
    pub fn load(&self, file: BorrowedFd<'_>) -> Result<Vec<Range<u64>>, MemoryError> {
        self.keep_pages_small();
        let mut mapped = Vec::new();
        for (region, offset) in self.in_file() {
            let mut at = offset;
            let end = offset + (region.end - region.start);
            let failed = |source| MemoryError::MapFile {
                address: region.start,
                source,
            };
            while let Some(data) = data(file, at..end).map_err(failed)? {
                at = data.end;
                let address = region.start + (data.start - offset);
                let length = data.end - data.start;
                self.map_file(file, data.start, address, length)?;
                mapped.push(address..address + length);
            }
        }
        Ok(mapped)
    }

    /// Not of what is plugged, which is for what needs much.
    fn keep_pages_small(&self) {
        for (_, length, host) in self.first_regions() {
            // SAFETY: the range is guest memory, which stays mapped; its content stays the same.
            // A kernel that refuses has no huge pages.
            unsafe {
                libc::madvise(
                    host as *mut libc::c_void,
                    length as usize,
                    libc::MADV_NOHUGEPAGE,
                )
            };
        }
    }

    /// The regions' addresses, each with where in such a file it is.
    pub(super) fn in_file(&self) -> impl Iterator<Item = (Range<u64>, u64)> {
        self.regions().scan(0, |end, (start, length, _)| {
            let offset = *end;
            *end += length;
            Some((start..start + length, offset))
        })
    }

    /// The first part of a range that has no hole: from a page that is not zeros to one.
    fn part(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let mut found: Option<Range<u64>> = None;
        for page in range.step_by(PAGE as usize) {
            let zero = self.is_zero(page)?;
            match &mut found {
                Some(part) if zero && page + PAGE - part.end >= HOLE => break,
                Some(part) if !zero => part.end = page + PAGE,
                None if !zero => found = Some(page..page + PAGE),
                _ => {}
            }
        }
        Ok(found)
    }

    fn is_zero(&self, page: u64) -> io::Result<bool> {
        let mut bytes = [0u8; PAGE as usize];
        self.read_slice(&mut bytes, GuestAddress(page))
            .map_err(io::Error::other)?;
        Ok(bytes == [0; PAGE as usize])
    }

    fn write_out(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        address: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut source = IoVec::new();
        let part = u32::try_from(length).map_err(io::Error::other)?;
        source
            .push(*self, address, part)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let whole = 0..source.len();
        source.write_all_at(file, whole, offset)
    }
}

/// The first whole pages of a range of a file that are not in a hole.
fn data(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let seek = |at: u64, whence| -> Result<u64, Errno> {
        let found = lseek(
            file,
            i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?,
            whence,
        )?;
        u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    };
    let start = match seek(range.start, Whence::SeekData) {
        Ok(start) if start < range.end => start,
        // Only a hole follows.
        Ok(_) | Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(start, Whence::SeekHole)?;
    let (start, end) = (
        start / PAGE * PAGE,
        end.next_multiple_of(PAGE).min(range.end),
    );
    Ok(Some(start..end))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory::{HIGH_START, LOW_END};
    use crate::sys;

    #[test]
    fn memory_comes_back_and_zeros_cost_nothing() {
        let bytes = LOW_END + (4 << 20);
        let ram = GuestRam::allocate(bytes).unwrap();
        let places = [
            0,
            0x5000,
            0x5fff,
            LOW_END - 1,
            HIGH_START,
            HIGH_START + 0x3f_f000,
        ];
        for (value, place) in (1..).zip(places) {
            ram.put(place, &[value]).unwrap();
        }
        // More than a chunk at a stretch.
        ram.put(64 << 20, &vec![7; (2 << 20) + 1]).unwrap();
        let file = File::from(sys::memory_file(c"memory").unwrap());
        file.set_len(bytes).unwrap();
        let written = ram.save(file.as_fd()).unwrap();
        // Those of the first pages with the zeros between them.
        assert_eq!(written, 6 * PAGE + 3 * PAGE + (2 << 20) + PAGE);
        assert!(file.metadata().unwrap().blocks() * 512 <= written);

        let load = || {
            let ram = GuestRam::allocate(bytes).unwrap();
            ram.load(file.as_fd()).unwrap();
            ram
        };
        let copy = load();
        let byte = |ram: GuestRam, place| ram.read_obj::<u8>(GuestAddress(place)).unwrap();
        for (value, place) in (1..).zip(places) {
            assert_eq!(byte(copy, place), value);
        }
        assert_eq!(byte(copy, (64 << 20) + (2 << 20)), 7);
        assert_eq!(byte(copy, (64 << 20) + (2 << 20) + 1), 0);
        copy.put(0, &[99]).unwrap();
        // In a hole.
        copy.put(128 << 20, &[99]).unwrap();
        assert_eq!(byte(copy, (128 << 20) + 1), 0);
        assert_eq!(byte(load(), 0), 1);
        assert_eq!(byte(load(), 128 << 20), 0);
        // Nobody's reading or writing makes it larger.
        assert!(file.metadata().unwrap().blocks() * 512 <= written);
    }

    /// Whether the kernel may put huge pages where this address of the host is.
    fn may_be_huge(host: u64) -> bool {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in smaps.lines() {
            let first = line.split(' ').next().unwrap();
            if let Some((start, end)) = first.split_once('-') {
                let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
                is_here = (start..end).contains(&host);
            } else if is_here && first == "VmFlags:" {
                return !line.split(' ').any(|flag| flag == "nh");
            }
        }
        panic!("{host:#x} is not mapped");
    }

    #[test]
    fn holes_stay_small() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            eprintln!("this kernel has no huge pages");
            return;
        }
        let file = File::from(sys::memory_file(c"memory").unwrap());
        file.set_len(8 << 20).unwrap();
        let ram = GuestRam::allocate(8 << 20).unwrap();
        let (_, _, host) = ram.regions().next().unwrap();
        assert!(may_be_huge(host));
        ram.load(file.as_fd()).unwrap();
        assert!(!may_be_huge(host));
    }
}
