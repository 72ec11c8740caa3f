//! Guest memory as a file: the regions one after the other, pages of zeros as holes.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{Bytes, GuestAddress};

use super::{GuestRam, IoVec, PAGE};

/// Most that is written at once, in bytes.
const CHUNK: u64 = 1 << 20;

impl GuestRam {
    /// Writes everything to a new file, whose length is that of the memory already.
    /// Nothing may write to the memory meanwhile. Returns the bytes that are no holes.
    pub fn save(&self, file: BorrowedFd<'_>) -> io::Result<u64> {
        let mut written = 0;
        let mut offset = 0;
        for (start, length, _) in self.regions() {
            let mut at = start;
            while at < start + length {
                let end = self.run(at, (start + length).min(at + CHUNK))?;
                if end > at {
                    self.write_out(file, offset + (at - start), at, end - at)?;
                    written += end - at;
                }
                // The page there is zeros, or the chunk is full.
                at = if end - at == CHUNK { end } else { end + PAGE };
            }
            offset += length;
        }
        Ok(written)
    }

    /// The end of the pages from `at` on that are not zeros.
    fn run(&self, at: u64, most: u64) -> io::Result<u64> {
        let mut end = at;
        while end < most && !self.is_zero(end)? {
            end += PAGE;
        }
        Ok(end)
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
        assert_eq!(written, 5 * PAGE + (2 << 20) + PAGE);
        assert!(file.metadata().unwrap().blocks() * 512 <= written);

        let load = || {
            let ram = GuestRam::allocate(bytes).unwrap();
            assert_eq!(ram.load(file.as_fd()).unwrap(), bytes);
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
        assert_eq!(byte(load(), 0), 1);
    }
}
