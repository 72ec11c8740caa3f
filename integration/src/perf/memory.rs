//! What a sandbox costs the host in memory.

use std::fs;
use std::io;
use std::path::Path;

use shim::host::memory::Memory;

use super::report::Cost;
use crate::install::{GUEST, SHARE};

/// The shim's program.
const SHIM: &[u8] = b"containerd-shim-joey-v2";

/// What a sandbox costs whose VMM is `vmm`.
pub fn cost_of_sandbox(id: &str, vmm: u32) -> io::Result<Cost> {
    let shim = shim_of(id)?;
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

/// By its arguments: it need not be the parent of a VMM that waited for a pod.
fn shim_of(id: &str) -> io::Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let mut words = line.split(|byte| *byte == 0);
        let is_shim = words.next().is_some_and(|name| name.ends_with(SHIM));
        if is_shim && words.any(|word| word == id.as_bytes()) {
            return Ok(pid);
        }
    }
    Err(io::Error::other(format!("sandbox {id} has no shim")))
}
