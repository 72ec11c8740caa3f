//! The MultiProcessor table (Intel MP specification 1.4): tells a kernel without
//! ACPI which CPUs exist and how interrupt lines reach them.

use super::layout::{IO_APIC, IO_APIC_LINES, LOCAL_APIC, MP_TABLE, MP_TABLE_SIZE};
use crate::memory::{GuestRam, MemoryError};

/// Version 1.4 of the specification.
const SPEC: u8 = 4;
/// Version of the APICs as KVM emulates them.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const BUS_ID: u8 = 0;

/// Entry types of the configuration table.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the table for `vcpus` CPUs, whose APIC ids are their indices.
pub fn write(ram: GuestRam, vcpus: u8) -> Result<(), MemoryError> {
    let table = build(vcpus);
    debug_assert!(table.len() <= MP_TABLE_SIZE);
    ram.put(MP_TABLE, &table)
}

/// The floating pointer structure with the configuration table behind it.
fn build(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for cpu in 0..vcpus {
        let flags = ENABLED | if cpu == 0 { BOOT_PROCESSOR } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, cpu, APIC_VERSION, flags]);
        // Signature and features: family 6, FPU and APIC. Linux reads CPUID instead.
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        add(&entry);
    }
    add(&[BUS, BUS_ID, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    add(&[
        IO_APIC_ENTRY,
        io_apic_id,
        IO_APIC_VERSION,
        ENABLED,
        a,
        b,
        c,
        d,
    ]);
    for line in 0..IO_APIC_LINES {
        add(&[INTERRUPT, VECTORED, 0, 0, BUS_ID, line, io_apic_id, line]);
    }
    add(&[LOCAL_INTERRUPT, EXTERNAL, 0, 0, BUS_ID, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, BUS_ID, 0, ALL_LOCAL_APICS, 1]);

    let mut config = Vec::with_capacity(44 + entries.len());
    config.extend_from_slice(b"PCMP");
    config.extend_from_slice(&(44 + entries.len() as u16).to_le_bytes());
    config.extend_from_slice(&[SPEC, 0]);
    config.extend_from_slice(b"JOEY    ");
    config.extend_from_slice(b"SANDBOX     ");
    config.extend_from_slice(&[0; 6]);
    config.extend_from_slice(&count.to_le_bytes());
    config.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    config.extend_from_slice(&[0; 4]);
    config.extend_from_slice(&entries);
    config[7] = checksum(&config);

    let mut table = Vec::with_capacity(16 + config.len());
    table.extend_from_slice(b"_MP_");
    table.extend_from_slice(&(MP_TABLE as u32 + 16).to_le_bytes());
    table.extend_from_slice(&[1, SPEC, 0, 0, 0, 0, 0, 0]);
    table[10] = checksum(&table);
    table.extend_from_slice(&config);
    table
}

/// The byte that makes all bytes add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    #[test]
    fn largest_table_fits_and_adds_up() {
        for vcpus in 1..=32 {
            let table = build(vcpus);
            assert!(table.len() <= MP_TABLE_SIZE, "{vcpus}");
            assert_eq!(sum(&table[..16]), 0);
            assert_eq!(sum(&table[16..]), 0);
            let length = u16::from_le_bytes([table[20], table[21]]);
            assert_eq!(usize::from(length), table.len() - 16);
        }
    }

    #[test]
    fn only_the_first_cpu_boots() {
        let table = build(3);
        let flags: Vec<u8> = (0..3).map(|cpu| table[16 + 44 + cpu * 20 + 3]).collect();
        assert_eq!(flags, [3, 1, 1]);
    }
}
