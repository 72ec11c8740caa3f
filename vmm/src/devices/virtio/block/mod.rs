//! virtio-blk (specification 5.2): vda, the image window, vdb, scratch, and the spare
//! disks, behind which a volume is put while the VM runs.

mod config;
mod device;
mod file;
mod metrics;
mod request;
mod window;

pub use device::{AttachError, Block};
pub use file::{BadSize, FileDisk};
pub use metrics::{BlockCounters, BlockStats};
pub use window::{MapError, WINDOW_SIZE, Window};

use std::io;
use std::ops::Range;

use crate::memory::IoVec;

/// Unit of addresses in virtio-blk, in bytes.
pub const SECTOR: u64 = 512;

/// What stands behind a block device. Offsets are in bytes; the caller has checked
/// that offset and length are within the capacity.
pub trait Disk: Send {
    /// Name that the guest sees as the disk's serial number, at most 20 bytes.
    fn serial(&self) -> &'static str;
    /// Size in bytes.
    fn capacity(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Fills a range of `buffer` from `offset`.
    fn read(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()>;
    /// Writes a range of `buffer` to `offset`.
    fn write(&self, buffer: &mut IoVec, range: Range<usize>, offset: u64) -> io::Result<()>;
    /// Makes all writes durable.
    fn flush(&self) -> io::Result<()>;
    /// Makes a range read as zeros and gives its space back.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
}
