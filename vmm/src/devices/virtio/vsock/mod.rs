//! virtio-vsock (specification 5.10), stream sockets, in user space.
//!
//! The host side is one listening Unix socket. A client connects, sends
//! `CONNECT <port>\n`, and after `OK <host port>\n` it has a stream to that port of
//! the guest. The guest may dial one port of the host, which says that it is ready.
//! Connections made before that wait for it.

mod config;
mod connection;
mod device;
mod metrics;
mod packet;
mod persist;

pub use config::{GUEST_CID, MAX_CONNECTIONS, READY_PORT};
pub use device::Vsock;
pub use metrics::{VsockCounters, VsockStats};
pub use packet::{HEADER_SIZE, Header};
pub use persist::SavedVsock;
