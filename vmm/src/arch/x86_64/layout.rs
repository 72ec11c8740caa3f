//! Where things are in guest physical memory.

/// Global descriptor table for the first instructions.
pub const GDT: u64 = 0x500;
/// Linux's `boot_params`.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Page tables for the first instructions: PML4, page directory pointers, page directory.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Most bytes of the command line with its terminating zero (Linux's own limit).
pub const CMDLINE_SIZE: usize = 2048;
/// The last KiB of base memory: where Linux looks for the MP table; memory ends here for it.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Bytes there.
pub const MP_TABLE_SIZE: usize = 0x400;
/// Above the legacy hole: from here on all memory is free for kernel and initramfs.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// The first device's registers; the others follow, [`DEVICE_SIZE`] apart.
pub const DEVICES: u64 = 0xd000_0000;
/// Bytes of a device's register window.
pub const DEVICE_SIZE: u64 = 0x1000;
/// The first device's interrupt line; the others follow.
pub const FIRST_IRQ: u32 = 5;
/// Interrupt line of the serial port.
pub const SERIAL_IRQ: u32 = 4;

/// Local APIC of each CPU.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Lines of the I/O APIC.
pub const IO_APIC_LINES: u8 = 24;
/// Three pages that VMX needs below 4 GiB and outside of guest memory.
pub const TSS: usize = 0xfffb_d000;
