//! The superblock of an EROFS image, as far as it tells a whole image from a
//! broken one (Linux, `fs/erofs/erofs_fs.h`).

use std::fs::File;
use std::os::unix::fs::FileExt;

const OFFSET: u64 = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Byte positions in the superblock.
const CHECKSUM: usize = 4;
const FEATURES: usize = 8;
const BLOCK_BITS: usize = 12;
/// The superblock carries a checksum.
const HAS_CHECKSUM: u32 = 1;
/// Block sizes from 512 bytes to 64 KiB.
const BLOCK_BITS_RANGE: std::ops::RangeInclusive<u8> = 9..=16;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// The file cannot be read that far.
    #[error("its superblock cannot be read")]
    Read(#[from] std::io::Error),
    /// Not an EROFS image.
    #[error("it is not an EROFS image")]
    Magic,
    /// The superblock is damaged.
    #[error("the checksum of its superblock is wrong")]
    Checksum,
}

/// Checks magic and checksum of the superblock.
///
/// # Errors
/// When the file is no EROFS image, or a damaged one.
pub fn check(file: &File) -> Result<(), SuperblockError> {
    let mut head = [0u8; 16];
    file.read_exact_at(&mut head, OFFSET)?;
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    if word(&head, 0) != MAGIC || !BLOCK_BITS_RANGE.contains(&head[BLOCK_BITS]) {
        return Err(SuperblockError::Magic);
    }
    if word(&head, FEATURES) & HAS_CHECKSUM == 0 {
        return Ok(());
    }
    let block = 1usize << head[BLOCK_BITS];
    // The checksum covers the rest of the block that holds the superblock.
    let mut covered = vec![0u8; block - OFFSET as usize % block];
    file.read_exact_at(&mut covered, OFFSET)?;
    let expected = word(&covered, CHECKSUM);
    covered[CHECKSUM..CHECKSUM + 4].fill(0);
    if crc32c(&covered) != expected {
        return Err(SuperblockError::Checksum);
    }
    Ok(())
}

/// CRC-32C as the kernel computes it here: all ones to start with, not inverted
/// at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        // The catalogue's value for "123456789" is inverted at the end.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn an_empty_or_foreign_file_is_not_an_image() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(check(&file), Err(SuperblockError::Read(_))));
        file.set_len(8192).unwrap();
        assert!(matches!(check(&file), Err(SuperblockError::Magic)));
    }
}
