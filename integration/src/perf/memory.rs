//! What a sandbox costs the host in memory.

use std::io;
use std::path::Path;

use shim::host::memory::Memory;

use super::report::Cost;
use crate::install::{GUEST, SHARE};

/// What the sandbox whose VMM is `vmm` costs. Its shim is the VMM's parent.
pub fn cost_of_sandbox(vmm: u32) -> io::Result<Cost> {
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status"))?;
    let shim = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no PPid in a process's status"))?;
    let vmm = i32::try_from(vmm).map_err(io::Error::other)?;
    let files = GUEST.map(|name| Path::new(SHARE).join(name));
    let files = files.each_ref().map(|file| file.as_path());
    let memory = Memory::of(Some(vmm), Some(shim), &files);
    Ok(Cost {
        vmm: memory.vmm,
        shim: memory.shim,
        guest_private: memory.guest_private,
        shared: memory.shared,
    })
}
