//! A variable's address, by the symbol table of the kernel's file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::LogError;
use crate::le::{u16_at, u32_at, u64_at};

/// Bytes of an ELF header, of a section's and of a symbol.
const HEADER: usize = 64;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
/// Section type: the symbol table.
const SYMTAB: u32 = 2;
/// Symbol type: a variable.
const OBJECT: u8 = 1;
/// More than any kernel has; bounds what is read.
const MAX_SECTIONS: u16 = 1024;
const MAX_TABLE: u64 = 64 << 20;
/// Symbols looked at in one go.
const BATCH: usize = 4096;

/// The virtual address of the variable `name`, which is a pointer.
pub fn address(file: &File, name: &[u8]) -> Result<u64, LogError> {
    let mut header = [0; HEADER];
    read(file, &mut header, 0)?;
    let (table, size, count) = (
        u64_at(&header, 40),
        u16_at(&header, 58),
        u16_at(&header, 60),
    );
    if usize::from(size) != SECTION || count > MAX_SECTIONS {
        return Err(LogError::File("has no sections: do not strip it"));
    }
    let mut sections = vec![0; usize::from(count) * SECTION];
    read(file, &mut sections, table)?;
    let mut sections = sections.chunks_exact(SECTION);
    let symbols = sections
        .clone()
        .find(|section| u32_at(section, 4) == SYMTAB);
    let none = LogError::File("has no symbol table: do not strip it");
    let symbols = symbols.ok_or(none.clone())?;
    let names = sections.nth(u32_at(symbols, 40) as usize).ok_or(none)?;
    find(file, symbols, names, name)
}

fn find(file: &File, symbols: &[u8], names: &[u8], name: &[u8]) -> Result<u64, LogError> {
    let (start, length) = (u64_at(symbols, 24), u64_at(symbols, 32));
    let (names, names_length) = (u64_at(names, 24), u64_at(names, 32));
    if length > MAX_TABLE || names_length > MAX_TABLE {
        return Err(LogError::File("has a symbol table of absurd size"));
    }
    let mut table = vec![0; names_length as usize];
    read(file, &mut table, names)?;
    let mut batch = vec![0; BATCH * SYMBOL];
    let mut done = 0;
    while done < length {
        let part = (length - done).min(batch.len() as u64) as usize;
        read(file, &mut batch[..part], start.saturating_add(done))?;
        for symbol in batch[..part].chunks_exact(SYMBOL) {
            let its_name = table.get(u32_at(symbol, 0) as usize..).unwrap_or_default();
            let pointer = symbol[4] & 0xf == OBJECT && u64_at(symbol, 16) == 8;
            if pointer && its_name.strip_prefix(name).and_then(<[u8]>::first) == Some(&0) {
                return Ok(u64_at(symbol, 8));
            }
        }
        done += part as u64;
    }
    Err(LogError::File("names no log in its symbol table"))
}

fn read(file: &File, buffer: &mut [u8], at: u64) -> Result<(), LogError> {
    file.read_exact_at(buffer, at)
        .map_err(|_| LogError::File("cannot be read as ELF"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    /// An ELF file with a symbol table: `symbols` are name offset, type, size, value.
    fn image(names: &[u8], symbols: &[(u32, u8, u64, u64)]) -> File {
        let mut header = vec![0; HEADER];
        header[40..48].copy_from_slice(&64u64.to_le_bytes());
        header[58..60].copy_from_slice(&(SECTION as u16).to_le_bytes());
        header[60..62].copy_from_slice(&2u16.to_le_bytes());
        let start = HEADER + 2 * SECTION;
        let bytes = symbols.len() * SYMBOL;
        let mut section = |kind: u32, link: u32, at: usize, length: usize| {
            let mut section = [0; SECTION];
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            section[40..44].copy_from_slice(&link.to_le_bytes());
            header.extend_from_slice(&section);
        };
        section(SYMTAB, 1, start, bytes);
        section(3, 0, start + bytes, names.len());
        for (name, kind, size, value) in symbols {
            let mut symbol = [0; SYMBOL];
            symbol[..4].copy_from_slice(&name.to_le_bytes());
            symbol[4] = *kind;
            symbol[8..16].copy_from_slice(&value.to_le_bytes());
            symbol[16..].copy_from_slice(&size.to_le_bytes());
            header.extend_from_slice(&symbol);
        }
        header.extend_from_slice(names);
        let file = File::from(sys::memory_file(c"kernel").unwrap());
        file.write_all_at(&header, 0).unwrap();
        file
    }

    #[test]
    fn the_pointer_of_that_name_is_found() {
        let names = b"\0prb_size\0prb\0";
        let file = image(
            names,
            &[
                (1, 1, 8, 1),
                (10, 2, 8, 2),
                (10, 1, 4, 3),
                (10, 1, 8, 4),
                (99, 1, 8, 5),
            ],
        );
        assert_eq!(address(&file, b"prb"), Ok(4));
        assert!(address(&file, b"none").is_err());
    }

    #[test]
    fn damaged_files_are_refused() {
        for damage in [
            (40, u64::MAX),
            (58, 0x400_0040),
            (64 + 24, u64::MAX),
            (64 + 32, u64::MAX),
        ] {
            let file = image(b"\0prb\0", &[(1, 1, 8, 4)]);
            file.write_all_at(&u64::to_le_bytes(damage.1)[..4], damage.0)
                .unwrap();
            file.write_all_at(&u64::to_le_bytes(damage.1)[4..], damage.0 + 4)
                .unwrap();
            assert!(address(&file, b"prb").is_err(), "{damage:?}");
        }
        let empty = File::from(sys::memory_file(c"kernel").unwrap());
        assert!(address(&empty, b"prb").is_err());
    }
}
