//! Guest memory: made once, shared by every thread, mapped until the process ends.
#![allow(unsafe_code)]

mod arena;
mod changes;
mod discard;
mod hotplug;
mod image;
mod iovec;

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicPtr, Ordering};

use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

pub use arena::Arena;
pub use changes::ranges;
pub use hotplug::{BLOCK, Hotplug, Piece};
pub use iovec::{BadBuffer, IoVec};

/// Page size of host and guest in bytes.
pub const PAGE: u64 = 4096;
/// A huge page of x86-64 in bytes.
const HUGE_PAGE: usize = 2 << 20;
/// Guest memory below this address is contiguous from 0; the rest of the first
/// 4 GiB is for devices and interrupt controllers.
pub const LOW_END: u64 = 3 << 30;
/// Where memory goes on when it does not fit below [`LOW_END`].
pub const HIGH_START: u64 = 4 << 30;

/// Why guest memory cannot be made or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The address space for guest memory cannot be reserved.
    #[error(
        "cannot reserve {bytes} bytes of guest memory: {source}; lower the sandbox's memory or the limits on address space"
    )]
    Reserve {
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// vm-memory refused the layout.
    #[error("guest memory layout: {0}")]
    Layout(String),
    /// A file cannot be mapped or read into guest memory.
    #[error("cannot put a file at guest address {address:#x}: {source}")]
    MapFile {
        /// Where it was to go.
        address: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A range is not wholly guest memory.
    #[error(
        "guest address {address:#x} with {length} bytes is outside of guest memory; give the sandbox more memory"
    )]
    Outside {
        /// Start of the range.
        address: u64,
        /// Its length in bytes.
        length: u64,
    },
}

/// The guest's memory. Copies name the same memory, which stays mapped for ever,
/// so pointers into it never dangle.
#[derive(Clone, Copy, Debug)]
pub struct GuestRam(&'static Ram);

#[derive(Debug)]
struct Ram {
    /// What is guest memory now. Only ever replaced by one that has more, and never freed.
    now: AtomicPtr<GuestMemoryMmap>,
    /// What may become guest memory.
    hotplug: Option<Hotplug>,
}

impl Deref for GuestRam {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        // SAFETY: it comes from a leaked box that nobody changes.
        unsafe { &*self.0.now.load(Ordering::Acquire) }
    }
}

impl GuestRam {
    /// Reserves `bytes` of zeroed guest memory. Nothing is committed until it is touched.
    pub fn allocate(bytes: u64) -> Result<Self, MemoryError> {
        Self::with_hotplug(bytes, 0)
    }

    /// The same, with address space for `hotplug` bytes that may become guest memory later.
    pub fn with_hotplug(bytes: u64, hotplug: u64) -> Result<Self, MemoryError> {
        let low = bytes.min(LOW_END);
        let mut regions = vec![region(0, low)?];
        let mut end = HIGH_START;
        if bytes > low {
            end += bytes - low;
            regions.push(region(HIGH_START, bytes - low)?);
        }
        let hotplug = match hotplug {
            0 => None,
            bytes => Some(Hotplug::reserve(end, bytes)?),
        };
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| MemoryError::Layout(error.to_string()))?;
        Ok(Self(Box::leak(Box::new(Ram {
            now: AtomicPtr::new(Box::into_raw(Box::new(memory))),
            hotplug,
        }))))
    }

    /// End of the memory that starts at address 0.
    pub fn low_end(&self) -> u64 {
        self.iter().next().map_or(0, GuestMemoryRegion::len)
    }

    /// Start address, length in bytes and host address of each region.
    pub fn regions(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.iter().map(|region| {
            let host = region.as_ptr() as u64;
            (region.start_addr().0, region.len(), host)
        })
    }

    /// The same without what was plugged.
    pub fn first_regions(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let plugged = self.hotplug().map_or(u64::MAX, Hotplug::start);
        self.regions().filter(move |(start, ..)| *start != plugged)
    }

    /// Maps `length` bytes of `file` from `offset` over guest memory at `address`:
    /// private, so that the guest's writes stay its own while clean pages are the
    /// page cache's. All three numbers are multiples of the page size, except that
    /// the file may end within the last page, which then reads as zeros.
    pub fn map_file(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        address: u64,
        length: u64,
    ) -> Result<(), MemoryError> {
        let outside = MemoryError::Outside { address, length };
        if length == 0 {
            return Ok(());
        }
        if !offset.is_multiple_of(PAGE) || !address.is_multiple_of(PAGE) {
            return Err(outside);
        }
        let Some(pages) = length.checked_next_multiple_of(PAGE) else {
            return Err(outside);
        };
        let (Ok(offset), Ok(size)) = (i64::try_from(offset), usize::try_from(pages)) else {
            return Err(outside);
        };
        let slice = self
            .get_slice(GuestAddress(address), size)
            .map_err(|_| outside)?;
        // SAFETY: the target is page-aligned and lies wholly within this guest
        // memory, which no Rust reference points into and which is never unmapped;
        // only its content changes.
        let result = unsafe {
            libc::mmap(
                slice.ptr_guard_mut().as_ptr().cast(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        let failed = || MemoryError::MapFile {
            address,
            source: io::Error::last_os_error(),
        };
        if result == libc::MAP_FAILED {
            return Err(failed());
        }
        // SAFETY: sets a flag of the mapping just made; no memory is touched.
        if unsafe { libc::madvise(result, size, libc::MADV_DONTDUMP) } != 0 {
            return Err(failed());
        }
        Ok(())
    }

    /// Copies `length` bytes of `file` from `offset` to guest memory at `address`.
    pub fn read_file(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        address: u64,
        length: u64,
    ) -> Result<(), MemoryError> {
        let mut target = IoVec::new();
        let part = u32::try_from(length).map_err(|_| BadBuffer);
        part.and_then(|length| target.push(*self, address, length))
            .map_err(|_| MemoryError::Outside { address, length })?;
        let whole = 0..target.len();
        target
            .read_exact_at(file, whole, offset)
            .map_err(|source| MemoryError::MapFile { address, source })
    }

    /// Writes `bytes` at `address`.
    pub fn put(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.write_slice(bytes, GuestAddress(address))
            .map_err(|_| MemoryError::Outside {
                address,
                length: bytes.len() as u64,
            })
    }
}

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// One region of anonymous memory that is never unmapped.
fn region(start: u64, bytes: u64) -> Result<GuestRegionMmap, MemoryError> {
    let host = reserve(bytes, PROTECTION)?;
    // SAFETY: just reserved, and never unmapped.
    unsafe { region_at(host, start, bytes) }
}

/// Reserves anonymous memory that is never unmapped.
fn reserve(bytes: u64, protection: i32) -> Result<*mut u8, MemoryError> {
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Layout("too large".into()))?;
    // A huge page serves the guest only where host and guest address agree modulo
    // its size, so a bit more is reserved, which costs nothing.
    let reserved = size + HUGE_PAGE;
    // SAFETY: a new mapping at an address that the kernel chooses aliases nothing.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), reserved, protection, FLAGS, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(MemoryError::Reserve {
            bytes,
            source: io::Error::last_os_error(),
        });
    }
    // A dump of this process must not hold the guest's memory. smaps shows the flag
    // ("dd"), which tells this memory from the VMM's own.
    // SAFETY: sets a flag of the mapping just made; no memory is touched.
    if unsafe { libc::madvise(address, reserved, libc::MADV_DONTDUMP) } != 0 {
        let source = io::Error::last_os_error();
        return Err(MemoryError::Reserve { bytes, source });
    }
    Ok((address as usize).next_multiple_of(HUGE_PAGE) as *mut u8)
}

/// Makes `bytes` at `host` a region of guest memory.
///
/// # Safety
/// They lie within what [`reserve`] has given.
unsafe fn region_at(host: *mut u8, start: u64, bytes: u64) -> Result<GuestRegionMmap, MemoryError> {
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Layout("too large".into()))?;
    // SAFETY: the mapping lives as long as the process; the caller has kept to its bounds.
    let mapping = unsafe { MmapRegion::build_raw(host, size, PROTECTION, FLAGS) }
        .map_err(|error: MmapRegionError| MemoryError::Layout(error.to_string()))?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| MemoryError::Layout("address overflow".into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys;

    #[test]
    fn memory_beyond_the_hole_starts_at_4_gib() {
        let ram = GuestRam::allocate(LOW_END + (1 << 20)).unwrap();
        let layout: Vec<_> = ram.regions().map(|(start, len, _)| (start, len)).collect();
        assert_eq!(layout, [(0, LOW_END), (HIGH_START, 1 << 20)]);
        assert!(ram.put(LOW_END, &[1]).is_err());
        ram.put(HIGH_START, &[1]).unwrap();
    }

    #[test]
    fn a_mapped_file_is_seen_and_never_written() {
        let ram = GuestRam::allocate(1 << 20).unwrap();
        let mut file = std::fs::File::from(sys::memory_file(c"image").unwrap());
        file.write_all(&[7; 5000]).unwrap();
        ram.map_file(file.as_fd(), 0, 0x2000, 5000).unwrap();
        let byte = |address| ram.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!((byte(0x1fff), byte(0x2000)), (0, 7));
        assert_eq!((byte(0x2000 + 4999), byte(0x2000 + 5000)), (7, 0));
        ram.put(0x2000, &[9]).unwrap();
        let mut first = [0];
        std::os::unix::fs::FileExt::read_at(&file, &mut first, 0).unwrap();
        assert_eq!(first, [7]);
    }

    #[test]
    fn refuses_to_map_outside_or_unaligned() {
        let ram = GuestRam::allocate(1 << 20).unwrap();
        let file = sys::memory_file(c"image").unwrap();
        for (offset, address, length) in [
            (0, 1 << 20, 4096),
            (0, (1 << 20) - 4096, 8192),
            (0, 1, 4096),
            (1, 0, 4096),
            (0, 0, u64::MAX),
        ] {
            assert!(ram.map_file(file.as_fd(), offset, address, length).is_err());
        }
    }
}
