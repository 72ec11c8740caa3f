//! Pages of the guest that go back to the host.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{GuestRam, IoVec, PAGE};

impl GuestRam {
    /// Gives a range back: it reads as zeros, or as the file that is mapped there. Page
    /// by page; what of it is not a whole page is kept.
    pub fn discard(&self, address: u64, length: u64) -> io::Result<()> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let size = usize::try_from(length).map_err(|_| outside())?;
        let slice = self
            .get_slice(GuestAddress(address), size)
            .map_err(|_| outside())?;
        let start = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the slice is guest memory.
        unsafe { discard(start, size) }.map(drop)
    }
}

impl IoVec {
    /// Gives all parts back, as [`GuestRam::discard`]; returns how many bytes that were.
    pub fn discard(&self) -> io::Result<usize> {
        let mut done = 0;
        let mut failed = Ok(());
        self.each(0..self.len(), |pointer, length| {
            if failed.is_ok() {
                // SAFETY: the part is guest memory.
                match unsafe { discard(pointer, length) } {
                    Ok(bytes) => done += bytes,
                    Err(error) => failed = Err(error),
                }
            }
        });
        failed.map(|()| done)
    }
}

/// Gives the whole pages of a range back; returns how many bytes they have.
///
/// # Safety
/// The range is guest memory.
unsafe fn discard(start: *mut u8, length: usize) -> io::Result<usize> {
    let page = PAGE as usize;
    let end = (start as usize + length) / page * page;
    let first = (start as usize).next_multiple_of(page);
    if first >= end {
        return Ok(0);
    }
    // SAFETY: whole pages within guest memory, which no Rust reference points into and
    // which stays mapped; only its content changes.
    let result =
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(end - first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const SIZE: u64 = 1 << 20;

    fn filled() -> GuestRam {
        let ram = GuestRam::allocate(SIZE).unwrap();
        ram.put(0, &[7; SIZE as usize]).unwrap();
        ram
    }

    fn byte(ram: GuestRam, address: u64) -> u8 {
        ram.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn whole_pages_alone_are_given_back() {
        let ram = filled();
        ram.discard(0x1800, 0x2000).unwrap();
        let seen = [0x1fff, 0x2000, 0x2fff, 0x3000].map(|address| byte(ram, address));
        assert_eq!(seen, [7, 0, 0, 7]);
        ram.discard(0x5001, 0xffe).unwrap();
        assert_eq!(byte(ram, 0x5800), 7);
    }

    #[test]
    fn nothing_outside_of_guest_memory_is_touched() {
        let ram = filled();
        for (address, length) in [
            (SIZE, PAGE),
            (SIZE - PAGE, 2 * PAGE),
            (u64::MAX, PAGE),
            (0, u64::MAX),
        ] {
            assert!(ram.discard(address, length).is_err());
        }
        assert_eq!(byte(ram, SIZE - 1), 7);
    }

    #[test]
    fn lists_are_given_back_part_by_part() {
        let ram = filled();
        let mut list = IoVec::new();
        for (address, length) in [(0x1000, 0x2000), (0x4001, 0x1000), (0x8000, 0x1000)] {
            list.push(ram, address, length).unwrap();
        }
        assert_eq!(list.discard().unwrap(), 0x3000);
        let seen = [0x1000, 0x2fff, 0x4800, 0x5000, 0x8000].map(|address| byte(ram, address));
        assert_eq!(seen, [0, 0, 7, 7, 0]);
    }
}
