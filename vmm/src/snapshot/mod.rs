//! A VM that stands still, as two files: its memory, and everything else.
//!
//! What runs on the host is not in it: the files behind the disks, the TAP, the clients
//! of vsock, the file system daemon. A VM that goes on from a snapshot gets them anew.

mod envelope;

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

pub use envelope::EnvelopeError;

use crate::arch::x86_64::state::{SavedChips, SavedCpu};
use crate::devices::virtio::balloon::SavedBalloon;
use crate::devices::virtio::fs::SavedFs;
use crate::devices::virtio::mem::SavedMem;
use crate::devices::virtio::persist::{RestoreError, SavedTransport};
use crate::devices::virtio::vsock::SavedVsock;
use crate::spec::VmSpec;

/// Longest state file in bytes; 32 vCPUs take a tenth of it. The rest is for what the guest
/// has sent to clients that do not read.
const MAX_STATE: u64 = 4 << 20;

/// Why there is no VM from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file cannot be read or written.
    #[error("a file of the snapshot cannot be used: {0}")]
    Io(#[from] io::Error),
    /// The state file cannot be trusted.
    #[error("the snapshot's state cannot be used: {0}; make it anew")]
    Envelope(#[from] EnvelopeError),
    /// It would not be read again.
    #[error("the guest has sent more to clients that do not read than a snapshot takes: try later")]
    Large,
    /// The content is not what this version writes, though the envelope says so.
    #[error("the snapshot's state makes no sense: {0}; make it anew")]
    Content(#[from] postcard::Error),
    /// It is of a VM of another shape.
    #[error("the snapshot is of another VM, with {0:?}")]
    Spec(Box<VmSpec>),
    /// The processors of this host differ from those where it was made.
    #[error("the snapshot was made on other processors, or with another KVM")]
    Processor,
    /// The memory's file is smaller than the VM's memory.
    #[error("the snapshot's memory has {found} bytes, not the VM's {expected}; make it anew")]
    Memory {
        /// Bytes there.
        found: u64,
        /// Bytes of the VM.
        expected: u64,
    },
    /// The list of what the guest writes first is none.
    #[error("the snapshot's list of changes makes no sense: {0}; make it anew")]
    Changes(#[from] serde_json::Error),
    /// Its devices are not those of this VM.
    #[error(transparent)]
    Devices(#[from] RestoreError),
}

/// Everything but the memory.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    /// The VM's shape.
    pub spec: VmSpec,
    /// What CPU 0 can do.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// The vCPUs that there are, by number.
    pub cpus: Vec<(u8, SavedCpu)>,
    /// Interrupt controllers and clock.
    pub chips: SavedChips,
    /// All devices, in their order.
    pub devices: Vec<SavedTransport>,
    /// What the socket device has beside its queues.
    pub vsock: SavedVsock,
    /// The same of the file system device.
    pub fs: SavedFs,
    /// The same of the balloon.
    pub balloon: SavedBalloon,
    /// The same of plugged memory.
    pub mem: SavedMem,
}

impl Snapshot {
    /// Writes it to an empty file.
    pub fn write(&self, mut file: File) -> Result<(), SnapshotError> {
        let sealed = envelope::seal(&postcard::to_allocvec(self)?);
        if sealed.len() as u64 > MAX_STATE {
            return Err(SnapshotError::Large);
        }
        Ok(file.write_all(&sealed)?)
    }

    /// Reads it, if it is whole and of this version.
    pub fn read(file: &File) -> Result<Self, SnapshotError> {
        let length = file.metadata()?.len().min(MAX_STATE);
        let mut sealed = vec![0; length as usize];
        // Not from where it stands: it may have been read for another VM.
        file.read_exact_at(&mut sealed, 0)?;
        Ok(postcard::from_bytes(envelope::open(&sealed)?)?)
    }

    /// Whether a VM of this shape can go on from it. As whom the VMM runs is no part of
    /// the shape.
    pub fn check(&self, spec: &VmSpec) -> Result<(), SnapshotError> {
        let theirs = VmSpec {
            uid: spec.uid,
            gid: spec.gid,
            ..self.spec.clone()
        };
        if theirs != *spec {
            return Err(SnapshotError::Spec(Box::new(theirs)));
        }
        Ok(())
    }

    /// Whether a file can be this VM's memory by its size: pages beyond a file's end would
    /// kill the process. More than there is memory means that it may grow.
    pub fn check_memory(&self, file: &File) -> Result<(), SnapshotError> {
        let found = file.metadata()?.len();
        let expected = (u64::from(self.spec.memory_mib) << 20) + self.mem.usable;
        if found < expected {
            return Err(SnapshotError::Memory { found, expected });
        }
        Ok(())
    }

    /// Whether vCPUs of this CPUID can go on from it.
    pub fn check_cpu(&self, cpuid: &CpuId) -> Result<(), SnapshotError> {
        if self.cpuid != cpuid.as_slice() {
            return Err(SnapshotError::Processor);
        }
        Ok(())
    }
}

/// Writes down which ranges of guest memory have changed since it was saved.
pub fn write_changes(changes: &[Range<u64>], mut file: File) -> io::Result<()> {
    file.write_all(&serde_json::to_vec(changes)?)
}

/// The reverse, from the file's start, whoever has read it before.
pub fn read_changes(file: &File) -> Result<Vec<Range<u64>>, SnapshotError> {
    let size = file.metadata()?.len().min(MAX_STATE);
    let mut text = vec![0; size as usize];
    file.read_exact_at(&mut text, 0)?;
    Ok(serde_json::from_slice(&text)?)
}
