//! The records of the kernel's log (kernel/printk/printk_ringbuffer.h): a ring of
//! descriptors, one of infos beside it, and one of texts.

use std::fmt::Write;

use vm_memory::{Bytes, GuestAddress};

use super::LogError;
use crate::le::{u16_at, u64_at};
use crate::memory::GuestRam;

/// Most text that is returned, in bytes.
pub const MAX_TEXT: usize = 48 << 10;
/// Most records that are looked at.
const MAX_RECORDS: u64 = 4096;
/// Longest text of one record; the kernel itself makes none beyond a kilobyte.
const MAX_RECORD: usize = 2048;
/// Largest rings that a kernel is believed to have, as powers of two.
const MAX_COUNT_BITS: u32 = 24;
const MAX_SIZE_BITS: u32 = 30;

/// Where the kernel's image and all of memory are in its address space: neither is
/// moved, since the kernel is built without randomization.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const DIRECT_MAP_SIZE: u64 = 64 << 40;

/// `struct printk_ringbuffer`, which starts with its `struct prb_desc_ring`.
const RING_SIZE: usize = 88;
const COUNT_BITS: usize = 0;
const DESCRIPTORS: usize = 8;
const INFOS: usize = 16;
const HEAD_ID: usize = 24;
const SIZE_BITS: usize = 48;
const DATA: usize = 56;
/// `struct prb_desc`: state and id, begin, next.
const DESCRIPTOR_SIZE: usize = 24;
/// `struct printk_info`.
const INFO_SIZE: usize = 88;
const TIME: usize = 8;
const TEXT_LENGTH: usize = 16;
/// Before each text stands its record's id.
const BLOCK_ID: u64 = 8;
/// The two upper bits of a descriptor's state; the others are the id.
const STATE_SHIFT: u32 = 62;
const ID_MASK: u64 = (1 << STATE_SHIFT) - 1;
/// States in which a record has its text.
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;

/// Reads the log to which the kernel's variable at `pointer` points.
pub fn read(ram: GuestRam, pointer: u64) -> Result<String, LogError> {
    let outside = LogError::Form("its pointers lead out of guest memory");
    let mut address = [0; 8];
    load(ram, pointer, &mut address).ok_or(outside.clone())?;
    let mut ring = [0; RING_SIZE];
    load(ram, u64::from_le_bytes(address), &mut ring).ok_or(outside)?;
    let ring = Ring {
        ram,
        count_bits: u64_at(&ring, COUNT_BITS) as u32,
        descriptors: u64_at(&ring, DESCRIPTORS),
        infos: u64_at(&ring, INFOS),
        size_bits: u64_at(&ring, SIZE_BITS) as u32,
        data: u64_at(&ring, DATA),
    };
    if ring.count_bits > MAX_COUNT_BITS || !(3..=MAX_SIZE_BITS).contains(&ring.size_bits) {
        return Err(LogError::Form("its size is absurd"));
    }
    let mut head = [0; 8];
    // Not from the copy above: the guest may be logging.
    load(
        ram,
        u64::from_le_bytes(address).wrapping_add(HEAD_ID as u64),
        &mut head,
    )
    .ok_or(LogError::Form("it vanished"))?;
    Ok(ring.newest(u64::from_le_bytes(head)))
}

struct Ring {
    ram: GuestRam,
    count_bits: u32,
    descriptors: u64,
    infos: u64,
    size_bits: u32,
    data: u64,
}

impl Ring {
    /// The newest records before and at `head` that fit.
    fn newest(&self, head: u64) -> String {
        let mut records = Vec::new();
        let mut room = MAX_TEXT;
        for back in 0..(1 << self.count_bits).min(MAX_RECORDS) {
            let Some(record) = self.record(head.wrapping_sub(back) & ID_MASK) else {
                continue;
            };
            if record.len() > room {
                break;
            }
            room -= record.len();
            records.push(record);
        }
        records.reverse();
        records.concat()
    }

    /// A record's lines; `None`: it is being written, was overwritten or never was.
    fn record(&self, id: u64) -> Option<String> {
        let index = id & ((1 << self.count_bits) - 1);
        let mut descriptor = [0; DESCRIPTOR_SIZE];
        let place = self
            .descriptors
            .checked_add(index * DESCRIPTOR_SIZE as u64)?;
        load(self.ram, place, &mut descriptor)?;
        let state = u64_at(&descriptor, 0);
        if state & ID_MASK != id || !matches!(state >> STATE_SHIFT, COMMITTED | FINALIZED) {
            return None;
        }
        let mut info = [0; INFO_SIZE];
        let place = self.infos.checked_add(index * INFO_SIZE as u64)?;
        load(self.ram, place, &mut info)?;
        let length = usize::from(u16_at(&info, TEXT_LENGTH));
        let text = self.text(u64_at(&descriptor, 8), u64_at(&descriptor, 16), length)?;
        Some(lines(u64_at(&info, TIME), &text))
    }

    /// The text between two logical positions.
    fn text(&self, begin: u64, next: u64, length: usize) -> Option<Vec<u8>> {
        let size = 1u64 << self.size_bits;
        let wraps = |position: u64| position >> self.size_bits;
        let (start, room) = if begin & next & 1 == 1 {
            // A record without text.
            return Some(Vec::new());
        } else if wraps(begin) == wraps(next) && begin < next {
            (begin & (size - 1), next - begin)
        } else if wraps(begin.wrapping_add(size)) == wraps(next) {
            // One that does not fit before the end is at the start.
            (0, next & (size - 1))
        } else {
            return None;
        };
        let room = usize::try_from(room.checked_sub(BLOCK_ID)?).ok()?;
        let mut text = vec![0; length.min(room).min(MAX_RECORD)];
        let place = self.data.checked_add(start)?.checked_add(BLOCK_ID)?;
        load(self.ram, place, &mut text)?;
        Some(text)
    }
}

/// A record as the kernel prints it, made printable.
fn lines(nanoseconds: u64, text: &[u8]) -> String {
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let mut lines = String::with_capacity(text.len() + 24);
    for line in text.split(|byte| *byte == b'\n') {
        // Writing to a string does not fail.
        let _ = write!(lines, "[{seconds:5}.{:06}] ", rest / 1000);
        for byte in line {
            match byte {
                b'\t' => lines.push(' '),
                b' '..=b'~' => lines.push(char::from(*byte)),
                other => {
                    let _ = write!(lines, "\\x{other:02x}");
                }
            }
        }
        lines.push('\n');
    }
    lines
}

/// Copies from a virtual address of the kernel's.
fn load(ram: GuestRam, address: u64, to: &mut [u8]) -> Option<()> {
    let physical = if address >= KERNEL_MAP {
        address - KERNEL_MAP
    } else {
        address
            .checked_sub(DIRECT_MAP)
            .filter(|offset| *offset < DIRECT_MAP_SIZE)?
    };
    ram.read_slice(to, GuestAddress(physical)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: u64 = 0x1000;
    const RING: u64 = 0x2000;
    const DESCRIPTORS_AT: u64 = 0x3000;
    const INFOS_AT: u64 = 0x4000;
    const DATA_AT: u64 = 0x8000;

    /// A log of 8 records and 256 bytes of text.
    struct Log {
        ram: GuestRam,
    }

    impl Log {
        fn new() -> Self {
            let log = Self {
                ram: GuestRam::allocate(1 << 20).unwrap(),
            };
            log.put(POINTER, KERNEL_MAP + RING);
            log.put(RING, 3);
            log.put(RING + 8, DIRECT_MAP + DESCRIPTORS_AT);
            log.put(RING + 16, DIRECT_MAP + INFOS_AT);
            log.put(RING + 48, 8);
            log.put(RING + 56, DIRECT_MAP + DATA_AT);
            log
        }

        fn put(&self, at: u64, value: u64) {
            self.ram.put(at, &value.to_le_bytes()).unwrap();
        }

        /// Writes record `id` with its text between two positions.
        fn record(&self, id: u64, state: u64, begin: u64, next: u64, text: &[u8]) {
            let index = id & 7;
            let descriptor = DESCRIPTORS_AT + index * 24;
            self.put(descriptor, state << STATE_SHIFT | id);
            self.put(descriptor + 8, begin);
            self.put(descriptor + 16, next);
            self.put(INFOS_AT + index * 88 + 8, id * 1_000_000_500);
            self.put(INFOS_AT + index * 88 + 16, text.len() as u64);
            let block = if begin >> 8 == next >> 8 {
                begin & 255
            } else {
                0
            };
            self.ram.put(DATA_AT + block + 8, text).unwrap();
            self.put(RING + 24, id);
        }

        fn read(&self) -> Result<String, LogError> {
            read(self.ram, KERNEL_MAP + POINTER)
        }
    }

    #[test]
    fn the_newest_records_come_in_order() {
        let log = Log::new();
        log.record(6, COMMITTED, 0x340, 0x358, b"first");
        log.record(7, FINALIZED, 1, 1, b"");
        // Wraps: its text is at the start of the ring.
        log.record(8, FINALIZED, 0x3f0, 0x418, b"two\nlines");
        log.record(9, 0, 0x418, 0x430, b"unfinished");
        assert_eq!(
            log.read().unwrap(),
            "[    6.000003] first\n[    7.000003] \n[    8.000004] two\n[    8.000004] lines\n"
        );
    }

    #[test]
    fn texts_are_made_printable_and_bounded() {
        let log = Log::new();
        log.record(1, FINALIZED, 0x100, 0x120, b"\x1b[31mred\t\xff");
        assert_eq!(log.read().unwrap(), "[    1.000000] \\x1b[31mred \\xff\n");
        // It claims more than its block holds.
        log.record(1, FINALIZED, 0x100, 0x110, b"12345678 beyond");
        assert_eq!(log.read().unwrap(), "[    1.000000] 12345678\n");
    }

    #[test]
    fn a_forged_log_is_refused_or_empty() {
        for (at, value) in [
            (POINTER, 0),
            (POINTER, u64::MAX),
            (POINTER, DIRECT_MAP + (1 << 40)),
            (RING, 60),
            (RING + 8, u64::MAX),
            (RING + 16, 0),
            (RING + 48, 64),
            (RING + 48, 2),
            (RING + 56, u64::MAX - 100),
            (DESCRIPTORS_AT + 24 + 8, u64::MAX - 1),
            (DESCRIPTORS_AT + 24 + 16, 0x101),
            (DESCRIPTORS_AT + 24 + 16, u64::MAX - 1),
        ] {
            let log = Log::new();
            log.record(1, FINALIZED, 0x100, 0x120, b"text");
            log.put(at, value);
            let text = log.read().unwrap_or_default();
            assert!(!text.contains("text\n"), "{at:#x} {value:#x}: {text}");
        }
    }

    #[test]
    fn much_text_is_cut_at_its_start() {
        let log = Log::new();
        log.put(RING, 12);
        log.put(RING + 8, DIRECT_MAP + 0x2_0000);
        log.put(RING + 16, DIRECT_MAP + 0x4_0000);
        log.put(RING + 48, 16);
        for id in 0..2000 {
            log.put(0x2_0000 + id * 24, FINALIZED << STATE_SHIFT | id);
            log.put(0x2_0000 + id * 24 + 8, 0x100);
            log.put(0x2_0000 + id * 24 + 16, 0x180);
            log.put(0x4_0000 + id * 88 + 8, id * 1_000_000_000);
            log.put(0x4_0000 + id * 88 + 16, 100);
        }
        log.ram.put(DATA_AT + 0x108, &[b'x'; 100]).unwrap();
        log.put(RING + 24, 1999);
        let text = log.read().unwrap();
        assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT - 200);
        assert!(text.lines().last().unwrap().starts_with("[ 1999."));
    }
}
