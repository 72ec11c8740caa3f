//! Scratch: the writable disk, a plain file of fixed length.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use super::{Disk, SECTOR};
use crate::memory::IoVec;
use crate::sys;

/// The file behind vdb.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    capacity: u64,
}

impl Scratch {
    /// Takes a file; its length, in whole sectors, is the disk's capacity.
    pub fn new(file: File) -> io::Result<Self> {
        let capacity = file.metadata()?.len() / SECTOR * SECTOR;
        Ok(Self { file, capacity })
    }
}

impl Disk for Scratch {
    fn serial(&self) -> &'static str {
        "scratch"
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()> {
        buffer.read_exact_at(self.file.as_fd(), range, offset)
    }

    fn write(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while range.start + done < range.end {
            let rest = range.start + done..range.end;
            match buffer.write_at(self.file.as_fd(), rest, offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        Ok(())
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
