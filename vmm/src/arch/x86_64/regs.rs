//! Processor state at the kernel's first instruction (Linux's 64-bit boot protocol):
//! long mode, flat segments, the first GiB mapped one to one.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout::{BOOT_PARAMS, GDT, PAGE_TABLES};
use crate::kvm::{KvmError, failed};
use crate::memory::{GuestRam, MemoryError, PAGE};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_LARGE: u64 = 1 << 7;

/// Segment selectors that the boot protocol asks for: `__BOOT_CS` and `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Null, unused, 64-bit code, data.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes the descriptor table and page tables that [`set`] points to.
pub fn write_tables(ram: GuestRam) -> Result<(), MemoryError> {
    let bytes: Vec<u8> = DESCRIPTORS.iter().flat_map(|d| d.to_le_bytes()).collect();
    ram.put(GDT, &bytes)?;
    let (pointers, directory) = (PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    ram.put(
        PAGE_TABLES,
        &(pointers | PAGE_PRESENT_WRITABLE).to_le_bytes(),
    )?;
    ram.put(pointers, &(directory | PAGE_PRESENT_WRITABLE).to_le_bytes())?;
    let entries: Vec<u8> = (0..512u64)
        .flat_map(|i| (i << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE).to_le_bytes())
        .collect();
    ram.put(directory, &entries)
}

/// Sets the boot CPU's registers, so that it starts at `entry`.
pub fn set(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read segment registers"))?;
    let code = segment(CODE, 0xb, true);
    let data = segment(DATA, 0x3, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = size_of_val(&DESCRIPTORS) as u16 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(failed("set segment registers"))?;
    let regs = kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS,
        // Bit 1 is always set.
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("set registers"))
}

/// A flat segment.
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}
