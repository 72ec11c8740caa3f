//! What a sandbox costs the host in memory.

use std::io;
use std::path::Path;

use shim::host::memory::Memory;

use super::report::Cost;
use crate::install::{GUEST, SHARE};
use crate::records;

/// What a sandbox costs.
pub fn cost_of_sandbox(id: &str) -> io::Result<Cost> {
    let record = records::of_pod(id)?;
    let files = GUEST.map(|name| Path::new(SHARE).join(name));
    let files = files.each_ref().map(|file| file.as_path());
    let memory = Memory::of(Some(record.vmm_pid), Some(record.shim_pid), &files);
    Ok(Cost {
        vmm: memory.vmm,
        shim: memory.shim,
        guest_private: memory.guest_private,
        shared: memory.shared,
    })
}
