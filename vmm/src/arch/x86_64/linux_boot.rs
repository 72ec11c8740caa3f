//! Linux's `boot_params` ("zero page"), for the 64-bit boot protocol. Only the
//! fields that a kernel without firmware reads are set; offsets are those of
//! Documentation/arch/x86/boot.rst and zero-page.rst.

use super::layout::{BOOT_PARAMS, CMDLINE, HIGH_MEMORY, MP_TABLE};
use crate::memory::{GuestRam, MemoryError, PAGE};

const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_RAM: u32 = 1;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;

/// Writes `boot_params`. `initramfs`: its address and size in bytes, below 4 GiB.
pub fn write(ram: GuestRam, cmdline_size: usize, initramfs: (u32, u32)) -> Result<(), MemoryError> {
    let mut page = [0u8; PAGE as usize];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(HEADER, b"HdrS");
    put(VERSION, &0x20cu16.to_le_bytes());
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(LOADFLAGS, &[LOADED_HIGH]);
    put(RAMDISK_IMAGE, &initramfs.0.to_le_bytes());
    put(RAMDISK_SIZE, &initramfs.1.to_le_bytes());
    put(CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    put(CMDLINE_SIZE, &(cmdline_size as u32).to_le_bytes());
    let map = memory_map(ram);
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, (start, length)) in map.into_iter().enumerate() {
        let entry = E820_TABLE + index * 20;
        put(entry, &start.to_le_bytes());
        put(entry + 8, &length.to_le_bytes());
        put(entry + 16, &E820_RAM.to_le_bytes());
    }
    ram.put(BOOT_PARAMS, &page)
}

/// Usable memory as the kernel shall see it: start and length in bytes.
fn memory_map(ram: GuestRam) -> Vec<(u64, u64)> {
    let mut map = vec![(0, MP_TABLE)];
    map.extend(ram.regions().map(|(start, length, _)| {
        let usable = start.max(HIGH_MEMORY);
        (usable, start + length - usable)
    }));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HIGH_START, LOW_END};

    #[test]
    fn memory_map_leaves_out_the_holes() {
        let ram = GuestRam::allocate(LOW_END + (64 << 20)).unwrap();
        assert_eq!(
            memory_map(ram),
            [
                (0, MP_TABLE),
                (HIGH_MEMORY, LOW_END - HIGH_MEMORY),
                (HIGH_START, 64 << 20)
            ]
        );
    }
}
