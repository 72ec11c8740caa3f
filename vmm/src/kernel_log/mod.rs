//! The guest kernel's log, read out of guest memory: what it says after a panic, while
//! it hangs, or at any time. It costs a boot nothing, unlike a console, where each byte
//! is a trap.
//!
//! [`symbol`] finds the log's address in the kernel's own file, [`ring`] reads the
//! records. Everything in guest memory is the guest's to forge: it can make the log lie,
//! but neither long nor anything but printable text.

pub mod ring;
mod symbol;

use std::fs::File;

use crate::memory::GuestRam;

/// The kernel's pointer to its log (kernel/printk/printk.c).
const POINTER: &[u8] = b"prb";

/// Why there is no log.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    /// The kernel's file cannot be used.
    #[error("the guest kernel's file {0}")]
    File(&'static str),
    /// The log is not where the kernel keeps it, or not in the form of Linux 5.18 and later.
    #[error("the guest kernel's log cannot be read: {0}")]
    Form(&'static str),
}

/// The newest records, one line each, oldest first: at most [`ring::MAX_TEXT`] bytes of
/// printable ASCII.
pub fn read(ram: GuestRam, kernel: &File) -> Result<String, LogError> {
    let pointer = symbol::address(kernel, POINTER)?;
    ring::read(ram, pointer)
}
