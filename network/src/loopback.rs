//! Taking the TCP connections to the loopback of a pod's namespace, of any port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind,
    listen, setsockopt, socket, sockopt,
};

use crate::error::Error;
use crate::loader::{self, LOOPBACK, ListenerMap};
use crate::namespace::Namespace;

/// Connections that wait to be accepted; more are kept waiting by their own kernel.
const BACKLOG: i32 = 128;

/// What takes a namespace's loopback connections. Nothing is pinned: all of it ends
/// with these two, or with the process.
#[derive(Debug)]
pub struct Loopback {
    /// Leads connections to the listener. Without it, or when the listener is closed,
    /// the namespace refuses them by itself.
    pub steering: OwnedFd,
    /// The listener; it does not block. What is accepted from it has the address and
    /// port that were dialled as its own address, IPv4 ones mapped into IPv6.
    pub listener: TcpListener,
}

/// Takes every new TCP connection to 127.0.0.0/8 or ::1 in the namespace at `netns`,
/// whatever the port. The calling thread's namespace does not change.
///
/// # Errors
///
/// Leaves the namespace as it was. See [`Error`] for the reasons.
pub fn listen_on_loopback(netns: &Path) -> Result<Loopback, Error> {
    let namespace = Namespace::open(netns)?;
    let listener = namespace.run(|| {
        open_listener().map_err(|errno| Error::Listen {
            netns: netns.to_owned(),
            source: errno.into(),
        })
    })?;
    let steer = || {
        let map = ListenerMap::create(listener.as_fd())?;
        let program = LOOPBACK.load(map.as_fd(), 0)?;
        loader::attach_sk_lookup(program.as_fd(), namespace.fd())
    };
    let steering = steer().map_err(|source| Error::Steer {
        netns: netns.to_owned(),
        source,
    })?;
    Ok(Loopback {
        steering,
        listener: TcpListener::from(listener),
    })
}

/// A listener for both families, or for IPv4 where the kernel has no IPv6. Its own
/// port does not matter.
fn open_listener() -> nix::Result<OwnedFd> {
    let any_v6 = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));
    let any_v4 = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    match listen_at(AddressFamily::Inet6, &any_v6) {
        Err(Errno::EAFNOSUPPORT) => listen_at(AddressFamily::Inet, &any_v4),
        result => result,
    }
}

fn listen_at(family: AddressFamily, address: &impl SockaddrLike) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(family, SockType::Stream, flags, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&listener, sockopt::Ipv6V6Only, &false)?;
    }
    bind(listener.as_raw_fd(), address)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}
