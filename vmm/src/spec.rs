//! What a VM is made of: plain data, serialisable, no descriptors.

use serde::{Deserialize, Serialize};

/// Everything the VMM must know before it boots, sent with [`crate::Action::Boot`].
/// Files travel beside it as descriptors, in the order of [`crate::BootFiles`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name in logs and metrics: the sandbox id.
    pub id: String,
    /// vCPUs that the guest may bring online, 1 to 32. Only CPU 0 runs at boot.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u32,
    /// The NIC, when the sandbox has a network of its own.
    pub net: Option<NetSpec>,
    /// User and group that the VMM becomes before the guest runs; never 0.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Kernel messages to the serial file; slow (a trap per byte), for debugging.
    pub console: bool,
}

/// The guest's NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// The MAC that the CNI gave the pod's interface.
    pub mac: [u8; 6],
    /// The interface's MTU in bytes.
    pub mtu: u16,
}
