//! What a sandbox costs the host in memory.

use std::io;
use std::path::Path;

use shim::host::memory::Memory;
use shim::host::record;

use super::report::Cost;
use crate::install::{GUEST, SHARE};

/// Where shims write down their sandboxes, by default.
const RECORDS: &str = "/run/joey";
/// The CRI's namespace of containerd.
const NAMESPACE: &str = "k8s.io";

/// What a sandbox costs.
pub fn cost_of_sandbox(id: &str) -> io::Result<Cost> {
    let record = record::read(&record::path(Path::new(RECORDS), NAMESPACE, id))?;
    let missing = || io::Error::other(format!("sandbox {id} has no record"));
    let record = record.ok_or_else(missing)?;
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
