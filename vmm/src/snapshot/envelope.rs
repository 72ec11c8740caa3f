//! What a snapshot's state is wrapped in, so that one that was damaged, or made by
//! another version, is found out before anything of it is used.
//!
//! All numbers are little endian: 8 bytes of magic, the format's number (u32), the length
//! of the name of the version that wrote it (u32), that name, the length of the content
//! (u64), the content, and a CRC-32 (u32) of everything before it.

/// The format's number: it changes whenever what is saved changes.
const FORMAT: u32 = 2;
const MAGIC: &[u8; 8] = b"JOEYSNAP";
/// The version that writes and reads here.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Bytes before the version's name.
const START: usize = 16;
const CHECKSUM: usize = 4;

/// Why a file is not opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvelopeError {
    /// It is something else.
    #[error("it is no snapshot of joey-vmm")]
    Alien,
    /// Another version wrote it.
    #[error("joey-vmm {found} wrote it (format {format}), and this is {VERSION} (format {FORMAT})")]
    Version {
        /// That version.
        found: String,
        /// Its format's number.
        format: u32,
    },
    /// It is not as it was written.
    #[error("it is damaged: its checksum is wrong")]
    Damaged,
}

/// Wraps some content.
pub fn seal(content: &[u8]) -> Vec<u8> {
    let mut sealed = MAGIC.to_vec();
    sealed.extend(FORMAT.to_le_bytes());
    sealed.extend((VERSION.len() as u32).to_le_bytes());
    sealed.extend(VERSION.as_bytes());
    sealed.extend((content.len() as u64).to_le_bytes());
    sealed.extend(content);
    let checksum = crc32fast::hash(&sealed);
    sealed.extend(checksum.to_le_bytes());
    sealed
}

/// Checks everything and returns the content.
pub fn open(sealed: &[u8]) -> Result<&[u8], EnvelopeError> {
    if !sealed.starts_with(MAGIC) {
        return Err(EnvelopeError::Alien);
    }
    let (body, checksum) = sealed
        .split_last_chunk::<CHECKSUM>()
        .ok_or(EnvelopeError::Damaged)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(EnvelopeError::Damaged);
    }
    parse(body).unwrap_or(Err(EnvelopeError::Damaged))
}

/// `None`: it is too short for what it says.
fn parse(body: &[u8]) -> Option<Result<&[u8], EnvelopeError>> {
    let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let (format, length) = (word(8)?, usize::try_from(word(12)?).ok()?);
    let (name, rest) = body.get(START..)?.split_at_checked(length)?;
    if format != FORMAT || name != VERSION.as_bytes() {
        let found = name.escape_ascii().to_string();
        return Some(Err(EnvelopeError::Version { found, format }));
    }
    let (length, content) = rest.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*length) == content.len() as u64).then_some(Ok(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_comes_out() {
        for content in [&b""[..], b"content"] {
            assert_eq!(open(&seal(content)), Ok(content));
        }
    }

    #[test]
    fn each_flipped_bit_and_each_cut_is_found() {
        let sealed = seal(b"some content");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(open(&sealed[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn other_versions_are_named() {
        let other = |at: usize, bytes: &[u8]| {
            let mut sealed = seal(b"content");
            sealed.truncate(sealed.len() - CHECKSUM);
            sealed[at..at + bytes.len()].copy_from_slice(bytes);
            let checksum = crc32fast::hash(&sealed);
            sealed.extend(checksum.to_le_bytes());
            open(&sealed).unwrap_err()
        };
        let format = other(8, &77u32.to_le_bytes());
        assert!(format.to_string().contains("format 77"), "{format}");
        let version = other(START, b"9");
        assert!(matches!(version, EnvelopeError::Version { found, .. } if found.starts_with('9')));
        // Lengths that do not fit, with a checksum that does.
        assert_eq!(other(12, &u32::MAX.to_le_bytes()), EnvelopeError::Damaged);
        let content = START + VERSION.len();
        assert_eq!(other(content, &[1]), EnvelopeError::Damaged);
    }
}
