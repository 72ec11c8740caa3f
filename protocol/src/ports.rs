//! Vsock ports of a sandbox.

/// The guest's vsock address. Each VM has a vsock of its own, so it never varies.
pub const GUEST_CID: u32 = 3;
/// The agent's ttrpc server: containerd's Task service and `joey.guest.Guest`.
pub const RPC: u32 = 1024;
/// The agent's stream port. A connection starts with the stream's id (u64,
/// little endian) and carries that stream's bytes from then on.
pub const STREAM: u32 = 1025;
/// The agent's port for connections to the pod's loopback; see [`crate::forward`].
pub const FORWARD: u32 = 1026;
/// The one port that a guest may dial on the host (CID 2): its agent does so once
/// it listens on all of the above, and the VMM reports the sandbox ready.
pub const READY: u32 = 1;
