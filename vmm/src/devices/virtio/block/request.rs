//! What the driver asks of a block device, taken apart and checked.

use super::SECTOR;
use super::config::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS};
use crate::devices::virtio::queue::Chain;
use crate::le::{u32_at, u64_at};

const HEADER_SIZE: usize = 16;
const SEGMENT_SIZE: usize = 16;
/// Flag of a write-zeroes segment: the space may be given back.
const FLAG_UNMAP: u32 = 1;

/// Request types of the specification.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A request with its data where the driver put it: for reads the writable bytes
/// but the last, for writes the readable bytes after the header.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill `length` writable bytes from `offset`.
    Read {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Write `length` readable bytes, which start at `start` of the chain, to `offset`.
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// First data byte among the readable ones.
        start: usize,
        /// Bytes.
        length: usize,
    },
    /// Make writes durable.
    Flush,
    /// Say the serial number.
    GetId,
    /// Ranges (offset and length in bytes) that shall read as zeros.
    Discard(Vec<(u64, u64)>),
}

/// Why a request is not carried out; the driver gets the matching status.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no room for a status: given back untouched.
    NoStatus,
    /// It is malformed or out of bounds.
    Invalid,
    /// The device does not do that.
    Unsupported,
}

impl Request {
    /// Reads a chain for a disk of `capacity` bytes.
    pub fn parse(chain: &Chain, capacity: u64) -> Result<Self, Refusal> {
        if chain.writable.is_empty() {
            return Err(Refusal::NoStatus);
        }
        let mut header = [0; HEADER_SIZE];
        if chain.readable.copy_to(0, &mut header) != HEADER_SIZE {
            return Err(Refusal::Invalid);
        }
        let sector = u64_at(&header, 8);
        let room = chain.writable.len() - 1;
        let payload = chain.readable.len() - HEADER_SIZE;
        match u32_at(&header, 0) {
            IN => Ok(Self::Read {
                offset: offset(sector, room as u64, capacity)?,
                length: room,
            }),
            OUT => Ok(Self::Write {
                offset: offset(sector, payload as u64, capacity)?,
                start: HEADER_SIZE,
                length: payload,
            }),
            FLUSH => Ok(Self::Flush),
            GET_ID => Ok(Self::GetId),
            kind @ (DISCARD | WRITE_ZEROES) => {
                let allowed = if kind == WRITE_ZEROES { FLAG_UNMAP } else { 0 };
                segments(chain, payload, capacity, allowed).map(Self::Discard)
            }
            _ => Err(Refusal::Unsupported),
        }
    }
}

/// Byte offset of a sector, if whole sectors of `length` bytes fit there.
fn offset(sector: u64, length: u64, capacity: u64) -> Result<u64, Refusal> {
    let start = sector.checked_mul(SECTOR).ok_or(Refusal::Invalid)?;
    let end = start.checked_add(length).ok_or(Refusal::Invalid)?;
    if end > capacity || !length.is_multiple_of(SECTOR) {
        return Err(Refusal::Invalid);
    }
    Ok(start)
}

/// The ranges of a discard or write-zeroes request.
fn segments(
    chain: &Chain,
    payload: usize,
    capacity: u64,
    allowed_flags: u32,
) -> Result<Vec<(u64, u64)>, Refusal> {
    let count = payload / SEGMENT_SIZE;
    if count == 0 || !payload.is_multiple_of(SEGMENT_SIZE) || count > MAX_DISCARD_SEGMENTS as usize
    {
        return Err(Refusal::Invalid);
    }
    (0..count)
        .map(|index| {
            let mut segment = [0; SEGMENT_SIZE];
            chain
                .readable
                .copy_to(HEADER_SIZE + index * SEGMENT_SIZE, &mut segment);
            let (sectors, flags) = (u32_at(&segment, 8), u32_at(&segment, 12));
            if flags & !allowed_flags != 0 {
                return Err(Refusal::Unsupported);
            }
            if sectors > MAX_DISCARD_SECTORS {
                return Err(Refusal::Invalid);
            }
            let length = u64::from(sectors) * SECTOR;
            Ok((offset(u64_at(&segment, 0), length, capacity)?, length))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    const CAPACITY: u64 = 1 << 20;

    /// A chain with these readable bytes and room for so many.
    fn chain(readable: &[u8], writable: u32) -> Chain {
        let ram = GuestRam::allocate(1 << 20).unwrap();
        let mut chain = Chain::default();
        chain
            .readable
            .push(ram, 0x1000, readable.len() as u32)
            .unwrap();
        chain.readable.copy_from(0, readable);
        chain.writable.push(ram, 0x8_0000, writable).unwrap();
        chain
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn parse(readable: &[u8], writable: u32) -> Result<Request, Refusal> {
        Request::parse(&chain(readable, writable), CAPACITY)
    }

    #[test]
    fn reads_and_writes_up_to_the_last_sector() {
        let last = CAPACITY / SECTOR - 1;
        assert_eq!(
            parse(&header(IN, last), 513),
            Ok(Request::Read {
                offset: CAPACITY - 512,
                length: 512
            })
        );
        let mut write = header(OUT, 2);
        write.extend_from_slice(&[1; 1024]);
        assert_eq!(
            parse(&write, 1),
            Ok(Request::Write {
                offset: 1024,
                start: 16,
                length: 1024
            })
        );
    }

    #[test]
    fn refuses_what_is_out_of_bounds_or_no_whole_sectors() {
        for (sector, room) in [
            (CAPACITY / SECTOR, 513),
            (CAPACITY / SECTOR - 1, 1025),
            (0, 512),
            (u64::MAX, 513),
            (u64::MAX / 512, 513),
        ] {
            assert_eq!(parse(&header(IN, sector), room), Err(Refusal::Invalid));
        }
    }

    #[test]
    fn refuses_what_is_too_short() {
        assert_eq!(parse(&header(IN, 0)[..15], 1), Err(Refusal::Invalid));
        assert_eq!(parse(&header(IN, 0), 0), Err(Refusal::NoStatus));
        assert_eq!(parse(&[], 0), Err(Refusal::NoStatus));
        assert_eq!(parse(&header(99, 0), 1), Err(Refusal::Unsupported));
    }

    #[test]
    fn discards_whole_segments_within_the_disk() {
        let segment = |sector: u64, sectors: u32, flags: u32| {
            let mut bytes = sector.to_le_bytes().to_vec();
            bytes.extend_from_slice(&sectors.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes
        };
        let request = |kind: u32, segments: &[Vec<u8>]| {
            let mut bytes = header(kind, 0);
            bytes.extend(segments.concat());
            parse(&bytes, 1)
        };
        assert_eq!(
            request(DISCARD, &[segment(8, 8, 0), segment(16, 1, 0)]),
            Ok(Request::Discard(vec![(4096, 4096), (8192, 512)]))
        );
        assert!(request(WRITE_ZEROES, &[segment(0, 1, 1)]).is_ok());
        assert_eq!(
            request(DISCARD, &[segment(0, 1, 1)]),
            Err(Refusal::Unsupported)
        );
        assert_eq!(request(DISCARD, &[]), Err(Refusal::Invalid));
        assert_eq!(
            request(DISCARD, &[segment(0, u32::MAX, 0)]),
            Err(Refusal::Invalid)
        );
        assert_eq!(
            request(DISCARD, &[segment(2048, 1, 0)]),
            Err(Refusal::Invalid)
        );
        assert_eq!(
            request(DISCARD, &vec![segment(0, 1, 0); 17]),
            Err(Refusal::Invalid)
        );
    }
}
