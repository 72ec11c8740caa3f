//! What a VM is made of: plain data, serialisable, no descriptors.

use serde::{Deserialize, Serialize};

use crate::devices::virtio::net::Offloads;

/// The shape of a VM, sent with [`crate::Action::Boot`] and [`crate::Action::Restore`].
/// A snapshot fits VMs of its own shape only; nothing of one pod is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// vCPUs that the guest may bring online, 1 to 32. Only CPU 0 runs at boot.
    pub vcpus: u8,
    /// Guest memory at boot in MiB, at least 64.
    pub memory_mib: u32,
    /// MiB by which it may grow while the VM runs, a multiple of [`HOTPLUG_STEP_MIB`];
    /// 0: not at all. Only what it grows by costs anything.
    pub hotplug_mib: u32,
    /// What the NIC's TAP takes and gives: of the host's kernel, see
    /// [`crate::client::offloads`].
    pub offloads: Offloads,
    /// User and group that the VMM becomes before the guest runs; never 0.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Kernel messages to the serial file; slow (a trap per byte), for debugging.
    pub console: bool,
}

/// Most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 32;
/// Least guest memory: below it the kernel cannot unpack the agent.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Most guest memory: what 40 physical address bits hold, less the device hole.
pub const MAX_MEMORY_MIB: u32 = 1_000_000;

/// What Linux adds memory in.
pub const HOTPLUG_STEP_MIB: u32 = 128;

/// Why a [`VmSpec`] cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// `vcpus` is out of range.
    #[error("{0} vCPUs asked for; a sandbox has 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// `memory_mib` is out of range.
    #[error(
        "{0} MiB of guest memory asked for; a sandbox has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}"
    )]
    Memory(u32),
    /// `hotplug_mib` is out of range.
    #[error(
        "a sandbox cannot grow by {0} MiB: it is a multiple of {HOTPLUG_STEP_MIB}, and with \
         memory_mib at most {MAX_MEMORY_MIB}"
    )]
    Hotplug(u32),
    /// The VMM would stay root.
    #[error("uid {0}, gid {1}: the VMM must run as a user and group of its own, not 0")]
    Root(u32, u32),
}

impl VmSpec {
    /// Checks every bound that the rest of the VMM takes for granted.
    pub fn validate(&self) -> Result<(), SpecError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        let most = self.memory_mib.checked_add(self.hotplug_mib);
        if !self.hotplug_mib.is_multiple_of(HOTPLUG_STEP_MIB)
            || most.is_none_or(|most| most > MAX_MEMORY_MIB)
        {
            return Err(SpecError::Hotplug(self.hotplug_mib));
        }
        if self.uid == 0 || self.gid == 0 {
            return Err(SpecError::Root(self.uid, self.gid));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            vcpus: 1,
            memory_mib: 128,
            hotplug_mib: 256,
            offloads: Offloads::Tcp,
            uid: 1000,
            gid: 1000,
            console: false,
        }
    }

    #[test]
    fn accepts_a_plain_spec() {
        assert_eq!(spec().validate(), Ok(()));
    }

    #[test]
    fn refuses_what_the_vmm_cannot_run() {
        let broken: [fn(&mut VmSpec); 8] = [
            |s| s.vcpus = 0,
            |s| s.vcpus = 33,
            |s| s.memory_mib = 63,
            |s| s.hotplug_mib = 64,
            |s| s.hotplug_mib = 1_000_064,
            |s| s.hotplug_mib = u32::MAX - 127,
            |s| s.uid = 0,
            |s| s.gid = 0,
        ];
        for (index, change) in broken.iter().enumerate() {
            let mut spec = spec();
            change(&mut spec);
            assert!(spec.validate().is_err(), "case {index}");
        }
    }
}
