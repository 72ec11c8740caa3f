//! Puts kernel, initramfs and command line into guest memory. The initramfs and what
//! the kernel does not write to are mapped, not copied: all VMs of the node share
//! those pages. The kernel's writable segments are copied, since each of their pages
//! would be copied anyway when the guest writes to it, at the price of two faults.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::arch::x86_64::layout::{
    CMDLINE, CMDLINE_SIZE, DEVICE_SIZE, DEVICES, FIRST_IRQ, HIGH_MEMORY,
};
use crate::arch::x86_64::{linux_boot, mptable, regs};
use crate::le::{u16_at, u32_at, u64_at};
use crate::memory::{GuestRam, MemoryError, PAGE};
use crate::spec::VmSpec;

/// Why a guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file cannot be read.
    #[error("cannot read the guest kernel: {0}")]
    Read(#[source] io::Error),
    /// The kernel is something else.
    #[error(
        "the guest kernel is {found}, not an uncompressed 64-bit x86 ELF image (vmlinux): build one with scripts/kernel/build.sh"
    )]
    NotAKernel {
        /// What the file looks like.
        found: String,
    },
    /// A field of the kernel's program headers is out of bounds.
    #[error("the guest kernel is damaged: {0}; build it anew with scripts/kernel/build.sh")]
    Damaged(&'static str),
    /// The initramfs is unusable.
    #[error("the initramfs is {0}")]
    Initramfs(&'static str),
    /// Guest memory is too small, or mapping failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// Segment flag: writable.
const PF_W: u32 = 2;
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// More than any kernel has; bounds what is read.
const MAX_PROGRAM_HEADERS: u16 = 64;

/// Loads everything; returns the address of the kernel's first instruction.
pub fn load(
    ram: GuestRam,
    spec: &VmSpec,
    kernel: &File,
    initramfs: &File,
    devices: usize,
) -> Result<u64, BootError> {
    let kernel = load_kernel(ram, kernel)?;
    let initramfs = load_initramfs(ram, initramfs, kernel.end)?;
    let cmdline = command_line(spec, devices);
    ram.put(CMDLINE, cmdline.as_bytes())?;
    linux_boot::write(ram, cmdline.len(), initramfs)?;
    mptable::write(ram, spec.vcpus)?;
    regs::write_tables(ram)?;
    Ok(kernel.entry)
}

/// Where the kernel is.
#[derive(Debug, PartialEq, Eq)]
struct Kernel {
    entry: u64,
    /// First address behind its last segment.
    end: u64,
}

/// Puts the kernel's segments at the physical addresses they were linked for.
fn load_kernel(ram: GuestRam, file: &File) -> Result<Kernel, BootError> {
    let mut header = [0; HEADER_SIZE];
    let length = read_start(file, &mut header).map_err(BootError::Read)?;
    let header = &header[..length];
    if length < HEADER_SIZE || !header.starts_with(b"\x7fELF") {
        let found = describe(header).to_string();
        return Err(BootError::NotAKernel { found });
    }
    let (class, order) = (header[4], header[5]);
    let machine = u16_at(header, 18);
    if class != 2 || order != 1 || machine != EM_X86_64 {
        let bits = if class == 2 { 64 } else { 32 };
        let found = format!("a {bits}-bit ELF image for machine {machine}");
        return Err(BootError::NotAKernel { found });
    }
    let (entry, table) = (u64_at(header, 24), u64_at(header, 32));
    let count = u16_at(header, 56);
    if usize::from(u16_at(header, 54)) != PROGRAM_HEADER_SIZE || count > MAX_PROGRAM_HEADERS {
        return Err(BootError::Damaged(
            "its program headers have an unknown form",
        ));
    }
    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_SIZE];
    file.read_exact_at(&mut headers, table)
        .map_err(BootError::Read)?;
    let file_size = file.metadata().map_err(BootError::Read)?.len();
    let mut end = 0;
    for header in headers.chunks_exact(PROGRAM_HEADER_SIZE) {
        if u32_at(header, 0) == PT_LOAD {
            end = end.max(load_segment(ram, file, file_size, header)?);
        }
    }
    if !(HIGH_MEMORY..end).contains(&entry) {
        return Err(BootError::Damaged(
            "its entry point is outside of its segments",
        ));
    }
    Ok(Kernel { entry, end })
}

/// Maps or copies one segment; returns the first address behind it.
fn load_segment(
    ram: GuestRam,
    file: &File,
    file_size: u64,
    header: &[u8],
) -> Result<u64, BootError> {
    let (offset, address) = (u64_at(header, 8), u64_at(header, 24));
    let (in_file, in_memory) = (u64_at(header, 32), u64_at(header, 40));
    let outside = BootError::Damaged("a segment reaches beyond the file or its own size");
    let end = address.checked_add(in_memory);
    let (Some(end), true) = (end, in_file <= in_memory) else {
        return Err(outside);
    };
    if offset
        .checked_add(in_file)
        .is_none_or(|end| end > file_size)
    {
        return Err(outside);
    }
    if address < HIGH_MEMORY {
        return Err(BootError::Damaged("a segment lies in the first MiB"));
    }
    if !offset.is_multiple_of(PAGE) || !address.is_multiple_of(PAGE) {
        return Err(BootError::Damaged("a segment does not start on a page"));
    }
    if end > ram.low_end() {
        return Err(MemoryError::Outside {
            address,
            length: in_memory,
        }
        .into());
    }
    if u32_at(header, 4) & PF_W != 0 {
        ram.read_file(file.as_fd(), offset, address, in_file)?;
    } else if in_file > 0 {
        ram.map_file(file.as_fd(), offset, address, in_file)?;
        // The last page holds what follows the segment in the file, where the kernel
        // expects zeros.
        let tail = (address + in_file).next_multiple_of(PAGE) - (address + in_file);
        ram.put(address + in_file, &[0; PAGE as usize][..tail as usize])?;
    }
    Ok(end)
}

/// Maps the initramfs to the end of low memory; returns its address and size.
fn load_initramfs(ram: GuestRam, file: &File, kernel_end: u64) -> Result<(u32, u32), BootError> {
    let mut magic = [0; 6];
    read_start(file, &mut magic).map_err(BootError::Read)?;
    if &magic != b"070701" {
        return Err(BootError::Initramfs(
            "not an uncompressed cpio archive (newc): build one with scripts/build.sh",
        ));
    }
    let size = file.metadata().map_err(BootError::Read)?.len();
    let no_room = BootError::Initramfs("too large for the guest's memory: give it more");
    let Some(address) = ram.low_end().checked_sub(size.next_multiple_of(PAGE)) else {
        return Err(no_room);
    };
    if address < kernel_end {
        return Err(no_room);
    }
    ram.map_file(file.as_fd(), 0, address, size)?;
    // Both are below 3 GiB, where low memory ends.
    Ok((address as u32, size as u32))
}

/// The kernel command line, shortest boot first. The VMM's own alone: nothing of it
/// comes from outside.
fn command_line(spec: &VmSpec, devices: usize) -> String {
    let mut line = String::from(
        // A panic or reboot is a triple fault, which ends the VM at once; `panic_warm`
        // leaves a mark in memory by which the VMM tells a panic from a reboot.
        // `noreplace-smp`: else the kernel rewrites its locks for one CPU, and each
        // page of its code that it writes to costs two faults and is shared no more.
        // `retain_initrd`: a freed initramfs is overwritten, so each of its pages, which
        // are the node's page cache, would become the guest's own.
        // `rcu_expedited`: few CPUs, mostly idle: not worth waiting for ticks.
        "panic=-1 reboot=t,panic_warm \
         maxcpus=1 cpu_init_udelay=0 \
         noreplace-smp retain_initrd rcupdate.rcu_expedited=1 \
         tsc=reliable no_timer_check \
         random.trust_cpu=on \
         rootfstype=ramfs",
    );
    if spec.console {
        line.push_str(" console=ttyS0,115200 printk.time=1");
    } else {
        line.push_str(" quiet loglevel=0");
    }
    for index in 0..devices {
        let address = DEVICES + index as u64 * DEVICE_SIZE;
        let irq = FIRST_IRQ + index as u32;
        line.push_str(&format!(" virtio_mmio.device=4K@{address:#x}:{irq}"));
    }
    debug_assert!(line.len() < CMDLINE_SIZE);
    line
}

/// Says what a file that is no ELF image looks like.
fn describe(start: &[u8]) -> &'static str {
    match start {
        [] => "an empty file",
        [0x1f, 0x8b, ..] => "gzip data",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd data",
        [b'M', b'Z', ..] => "a bzImage or EFI image",
        [b'#', b'!', ..] => "a script",
        _ => "a file without an ELF header",
    }
}

/// Reads the beginning of a file; returns how much there was.
fn read_start(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::sys;

    fn file(bytes: &[u8]) -> File {
        let mut file = File::from(sys::memory_file(c"kernel").unwrap());
        file.write_all(bytes).unwrap();
        file
    }

    /// An ELF image with one segment: a page and a bit of 0xaa at 2 MiB, then more
    /// bytes in the file that are not the segment's.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18..20].copy_from_slice(&62u16.to_le_bytes());
        image[24..32].copy_from_slice(&0x20_0123u64.to_le_bytes());
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[56..58].copy_from_slice(&1u16.to_le_bytes());
        image[64..68].copy_from_slice(&1u32.to_le_bytes());
        for (at, value) in [(72, 4096u64), (88, 0x20_0000), (96, 5000), (104, 0x4000)] {
            image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image.extend_from_slice(&[0xaa; 5000]);
        image.extend_from_slice(&[0xbb; 5000]);
        image
    }

    #[test]
    fn segments_are_mapped_and_their_tail_is_zero() {
        let ram = GuestRam::allocate(4 << 20).unwrap();
        let kernel = load_kernel(ram, &file(&image())).unwrap();
        assert_eq!(
            kernel,
            Kernel {
                entry: 0x20_0123,
                end: 0x20_4000
            }
        );
        let byte = |at: u64| ram.read_obj::<u8>(GuestAddress(0x20_0000 + at)).unwrap();
        assert_eq!(
            (byte(0), byte(4999), byte(5000), byte(8191)),
            (0xaa, 0xaa, 0, 0)
        );
    }

    #[test]
    fn writable_segments_are_copied() {
        let ram = GuestRam::allocate(4 << 20).unwrap();
        let mut image = image();
        image[68] = PF_W as u8;
        let kernel = file(&image);
        load_kernel(ram, &kernel).unwrap();
        kernel.write_all_at(&[0xcc; 5000], 4096).unwrap();
        let byte = |at: u64| ram.read_obj::<u8>(GuestAddress(0x20_0000 + at)).unwrap();
        assert_eq!((byte(0), byte(4999), byte(5000)), (0xaa, 0xaa, 0));
    }

    #[test]
    fn says_what_it_was_given_instead_of_a_kernel() {
        let ram = GuestRam::allocate(4 << 20).unwrap();
        let mut arm = image();
        arm[18] = 183;
        for (bytes, word) in [
            (Vec::new(), "empty"),
            (b"MZ\0\0".to_vec(), "bzImage"),
            (vec![0x1f, 0x8b, 8], "gzip"),
            (vec![0; 100], "without an ELF header"),
            (arm, "machine 183"),
        ] {
            let error = load_kernel(ram, &file(&bytes)).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("vmlinux"), "{error}");
        }
    }

    #[test]
    fn refuses_segments_out_of_bounds() {
        let ram = GuestRam::allocate(4 << 20).unwrap();
        for (at, value) in [
            (72, u64::MAX),  // offset
            (72, 4097),      // not on a page
            (88, 0x1000),    // in the first MiB
            (88, 0x3f_f000), // beyond memory
            (88, u64::MAX - 4095),
            (96, 0x4001), // more in the file than in memory
            (96, 1 << 40),
            (104, u64::MAX),
            (24, 0x10), // entry
        ] {
            let mut image = image();
            image[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert!(load_kernel(ram, &file(&image)).is_err(), "{at} {value:#x}");
        }
    }

    #[test]
    fn initramfs_must_be_a_plain_cpio_that_fits() {
        let ram = GuestRam::allocate(4 << 20).unwrap();
        let mut cpio = b"070701".to_vec();
        cpio.resize(5000, 1);
        let place = load_initramfs(ram, &file(&cpio), 0x20_0000).unwrap();
        assert_eq!(place, ((4 << 20) - 8192, 5000));
        assert!(load_initramfs(ram, &file(&[0x1f, 0x8b]), 0).is_err());
        assert!(load_initramfs(ram, &file(&cpio), (4 << 20) - 4096).is_err());
    }

    #[test]
    fn command_line_fits_with_room_to_spare() {
        let spec = VmSpec {
            vcpus: 32,
            memory_mib: 128,
            hotplug_mib: 0,
            offloads: crate::Offloads::Tcp,
            uid: 1,
            gid: 1,
            console: true,
        };
        let line = command_line(&spec, 5);
        assert!(line.len() < CMDLINE_SIZE / 2, "{line}");
        assert!(line.ends_with("virtio_mmio.device=4K@0xd0004000:9"));
    }
}
