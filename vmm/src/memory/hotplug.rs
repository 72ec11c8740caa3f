//! Guest memory that is not there at boot: its address space is reserved, and it becomes
//! guest memory from its start on, as the guest needs it. Neither the guest nor a device
//! on its behalf reaches the rest.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{GuestAddress, GuestRegionCollectionError};

use super::{GuestRam, MemoryError, PROTECTION, region_at, reserve};

/// Guest memory grows in these steps: Linux adds memory in blocks of this size, and only
/// whole ones.
pub const BLOCK: u64 = 128 << 20;

/// Reserved address space.
#[derive(Debug)]
pub struct Hotplug {
    start: u64,
    bytes: u64,
    host: *mut u8,
    /// Bytes from its start that are guest memory.
    grown: Mutex<u64>,
}

// SAFETY: the pointer names memory that is never unmapped and that no Rust object is in.
unsafe impl Send for Hotplug {}
// SAFETY: the same; `grown` is behind a lock.
unsafe impl Sync for Hotplug {}

/// A piece of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest address.
    pub start: u64,
    /// In bytes.
    pub length: u64,
    /// Address in this process.
    pub host: u64,
}

impl Hotplug {
    /// Reserves `bytes` for addresses behind `end`, where other memory ends.
    pub(super) fn reserve(end: u64, bytes: u64) -> Result<Self, MemoryError> {
        // Never next to other memory: a buffer that the guest makes of both would be two
        // regions to the VMM.
        let start = if end.is_multiple_of(BLOCK) && end > super::HIGH_START {
            end + BLOCK
        } else {
            end.next_multiple_of(BLOCK)
        };
        Ok(Self {
            start,
            bytes,
            // Not readable: hosts that count what they promise count only what is used.
            host: reserve(bytes, libc::PROT_NONE)?,
            grown: Mutex::new(0),
        })
    }

    /// Makes the first `bytes` readable and writable.
    fn allow(&self, bytes: u64) -> Result<(), MemoryError> {
        // It was reserved, so that its size fits.
        let size = bytes as usize;
        // SAFETY: no more than was reserved; its content does not change.
        if unsafe { libc::mprotect(self.host.cast(), size, PROTECTION) } != 0 {
            let source = std::io::Error::last_os_error();
            return Err(MemoryError::Reserve { bytes, source });
        }
        Ok(())
    }

    /// Guest address of its start.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl GuestRam {
    /// What may become guest memory.
    pub fn hotplug(&self) -> Option<&'static Hotplug> {
        self.0.hotplug.as_ref()
    }

    /// Makes the first `bytes` of the reserved address space guest memory, of which there
    /// is never less. `show` makes what is added the guest's.
    pub fn grow<E: From<MemoryError>>(
        &self,
        bytes: u64,
        show: impl FnOnce(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        if bytes == 0 {
            return Ok(());
        }
        let beyond = MemoryError::Outside {
            address: 0,
            length: bytes,
        };
        let Some(hotplug) = self.hotplug().filter(|hotplug| bytes <= hotplug.bytes) else {
            return Err(beyond.into());
        };
        // A panic ends the process, so no lock is ever poisoned.
        let mut grown = hotplug.grown.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes <= *grown {
            return Ok(());
        }
        hotplug.allow(bytes)?;
        // SAFETY: `bytes` are no more than were reserved.
        let region = unsafe { region_at(hotplug.host, hotplug.start, bytes) }?;
        // One region however often it grows: a buffer may lie across two steps.
        let layout = |error: GuestRegionCollectionError| MemoryError::Layout(error.to_string());
        let memory = if *grown == 0 {
            self.insert_region(Arc::new(region)).map_err(layout)?
        } else {
            let (rest, _) = self
                .remove_region(GuestAddress(hotplug.start), *grown)
                .map_err(layout)?;
            rest.insert_region(Arc::new(region)).map_err(layout)?
        };
        show(Piece {
            start: hotplug.start + *grown,
            length: bytes - *grown,
            host: hotplug.host as u64 + *grown,
        })?;
        // What was there before is leaked: somebody may be looking at it.
        let memory = Box::into_raw(Box::new(memory));
        self.0.now.store(memory, Ordering::Release);
        *grown = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;
    use crate::memory::{HIGH_START, LOW_END};

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_grows_and_what_was_there_stays() {
        let ram = GuestRam::with_hotplug(8 * MIB, 4 * BLOCK).unwrap();
        let before = ram;
        assert!(ram.put(HIGH_START, &[1]).is_err());
        let mut pieces = Vec::new();
        let mut grow = |bytes| {
            ram.grow(bytes, |piece| {
                pieces.push((piece.start, piece.length));
                Ok::<_, MemoryError>(())
            })
        };
        grow(BLOCK).unwrap();
        ram.put(HIGH_START, &[7]).unwrap();
        assert!(ram.put(HIGH_START + BLOCK, &[1]).is_err());
        grow(3 * BLOCK).unwrap();
        grow(BLOCK).unwrap();
        assert!(grow(5 * BLOCK).is_err());
        let added = [(HIGH_START, BLOCK), (HIGH_START + BLOCK, 2 * BLOCK)];
        assert_eq!(pieces, added);
        // A buffer across both steps is one.
        assert!(
            before
                .get_slice(GuestAddress(HIGH_START + BLOCK - 1), 2)
                .is_ok()
        );
        let layout: Vec<_> = before.regions().map(|(at, len, _)| (at, len)).collect();
        assert_eq!(layout, [(0, 8 * MIB), (HIGH_START, 3 * BLOCK)]);
        assert_eq!(before.read_obj::<u8>(GuestAddress(HIGH_START)).unwrap(), 7);
    }

    #[test]
    fn memory_that_cannot_grow_takes_no_more() {
        let ram = GuestRam::allocate(8 * MIB).unwrap();
        let grow = |bytes| ram.grow(bytes, |_| Ok::<_, MemoryError>(()));
        grow(0).unwrap();
        assert!(grow(BLOCK).is_err());
    }

    #[test]
    fn memory_that_is_not_shown_to_the_guest_is_not_there() {
        let ram = GuestRam::with_hotplug(8 * MIB, BLOCK).unwrap();
        let refused = || MemoryError::Layout("no".into());
        assert!(ram.grow(BLOCK, |_| Err(refused())).is_err());
        assert!(ram.put(HIGH_START, &[1]).is_err());
        ram.grow(BLOCK, |_| Ok::<_, MemoryError>(())).unwrap();
        ram.put(HIGH_START, &[1]).unwrap();
    }

    #[test]
    fn it_starts_behind_all_other_memory_and_apart_from_it() {
        let start = |bytes| {
            let ram = GuestRam::with_hotplug(bytes, BLOCK).unwrap();
            ram.hotplug().unwrap().start()
        };
        assert_eq!(start(8 * MIB), HIGH_START);
        assert_eq!(start(LOW_END), HIGH_START);
        assert_eq!(start(LOW_END + MIB), HIGH_START + BLOCK);
        assert_eq!(start(LOW_END + BLOCK), HIGH_START + 2 * BLOCK);
    }
}
