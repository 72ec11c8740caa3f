//! A disk that is a plain file or a block device of the host: scratch and volumes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use super::{Disk, SECTOR};
use crate::memory::IoVec;
use crate::sys;

/// The file behind a disk.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    serial: &'static str,
    capacity: u64,
    read_only: bool,
}

/// A size that no disk has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a disk of {0} bytes: the size must be a multiple of 512 and not 0")]
pub struct BadSize(u64);

impl FileDisk {
    /// Takes the file behind vdb, of which `size` bytes are shown.
    pub fn scratch(file: File, size: u64) -> Result<Self, BadSize> {
        Self::new(file, "scratch", size, false)
    }

    /// Takes the file or block device of a volume, of which `size` bytes are shown.
    pub fn volume(file: File, size: u64, read_only: bool) -> Result<Self, BadSize> {
        Self::new(file, "volume", size, read_only)
    }

    fn new(file: File, serial: &'static str, size: u64, read_only: bool) -> Result<Self, BadSize> {
        if size == 0 || !size.is_multiple_of(SECTOR) || i64::try_from(size).is_err() {
            return Err(BadSize(size));
        }
        Ok(Self {
            file,
            serial,
            capacity: size,
            read_only,
        })
    }
}

impl Disk for FileDisk {
    fn serial(&self) -> &'static str {
        self.serial
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()> {
        buffer.read_exact_at(self.file.as_fd(), range, offset)
    }

    fn write(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()> {
        buffer.write_all_at(self.file.as_fd(), range, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        sys::punch_hole(&self.file, offset, length)
    }
}
