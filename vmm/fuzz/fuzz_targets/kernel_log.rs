//! A kernel log that a hostile guest has forged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::kernel_log::ring::{self, MAX_TEXT};
use vmm_fuzz::memory;

/// Where the kernel's image is in its address space.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

fuzz_target!(|writes: Vec<(u16, [u8; 8])>| {
    let ram = memory();
    ram.put(0, &(KERNEL_MAP + 8).to_le_bytes()).expect("memory");
    for (at, bytes) in &writes {
        // All that a log is made of lies within the first pages.
        ram.put(u64::from(*at & 0xff8), bytes).expect("memory");
    }
    if let Ok(text) = ring::read(ram, KERNEL_MAP) {
        assert!(text.len() <= MAX_TEXT);
        assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
    }
});
