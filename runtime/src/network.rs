//! Network devices: the loopback of a new network namespace, and devices of the host that a
//! container takes over (`linux.netDevices`).

mod netlink;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::plan::{NamespaceKind, NetDevice};
use crate::process::message::{Stage, Step};
use crate::sys;
use netlink::{Address, Socket};

/// Switches the loopback of the caller's network namespace on.
pub(crate) fn raise_loopback() -> io::Result<()> {
    switch_loopback_on(&Socket::new()?)
}

/// Likewise in the network namespace of the process `pid`.
#[cfg(feature = "criu")]
pub(crate) fn raise_loopback_of(pid: u32) -> io::Result<()> {
    let (own, namespace) = (open_own()?, open_of(pid)?);
    switch_loopback_on(&socket_in(namespace.as_fd(), own.as_fd())?)
}

fn switch_loopback_on(socket: &Socket) -> io::Result<()> {
    socket.set_up(socket.link("lo")?.index, true)
}

/// A device that was moved.
#[derive(Debug)]
struct Moved {
    device: NetDevice,
    addresses: Vec<Address>,
    /// Whether it was switched on.
    up: bool,
}

/// Devices of the host in a container's network namespace. Dropping this brings them back: with
/// the namespace the kernel would remove those that have no hardware.
#[derive(Debug)]
pub(crate) struct Devices {
    host: OwnedFd,
    host_socket: Socket,
    namespace: OwnedFd,
    socket: Socket,
    moved: Vec<Moved>,
}

impl Devices {
    /// Moves devices from the caller's network namespace into that of the process `pid`, with the
    /// addresses that they have, and switches them on.
    pub(crate) fn take(devices: &[NetDevice], pid: u32) -> Step<Self> {
        let stage = || "open the network namespaces";
        let host = open_own().stage(stage)?;
        let namespace = open_of(pid).stage(stage)?;
        let host_socket = Socket::new().stage(stage)?;
        let socket = socket_in(namespace.as_fd(), host.as_fd()).stage(stage)?;
        let mut taken = Self {
            host,
            host_socket,
            namespace,
            socket,
            moved: Vec::new(),
        };
        for device in devices {
            taken
                .take_one(device)
                .stage(|| format!("move the network device {}", device.host))?;
        }
        Ok(taken)
    }

    fn take_one(&mut self, device: &NetDevice) -> io::Result<()> {
        let host = &self.host_socket;
        let link = host.link(&device.host)?;
        let addresses = host.addresses(link.index)?;
        // Nobody on the host uses it any more when it changes.
        host.set_up(link.index, false)?;
        let moved = host.transfer(link.index, &device.name, self.namespace.as_fd());
        if let Err(error) = moved {
            let _ = host.set_up(link.index, link.up);
            return Err(error);
        }
        self.moved.push(Moved {
            device: device.clone(),
            addresses: addresses.clone(),
            up: link.up,
        });
        configure(&self.socket, &device.name, &addresses, true)
    }

    /// Leaves them where they are.
    pub(crate) fn keep(mut self) {
        self.moved.clear();
    }

    fn bring_back(&self, moved: &Moved) -> io::Result<()> {
        let index = self.socket.link(&moved.device.name)?.index;
        self.socket.set_up(index, false)?;
        self.socket
            .transfer(index, &moved.device.host, self.host.as_fd())?;
        configure(
            &self.host_socket,
            &moved.device.host,
            &moved.addresses,
            moved.up,
        )
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for moved in self.moved.iter().rev() {
            if let Err(error) = self.bring_back(moved) {
                let name = &moved.device.host;
                tracing::warn!("network device {name} could not be brought back: {error}");
            }
        }
    }
}

/// Gives a device its addresses, and switches it on if it is to be.
fn configure(socket: &Socket, name: &str, addresses: &[Address], up: bool) -> io::Result<()> {
    let index = socket.link(name)?.index;
    for address in addresses {
        socket.add_address(index, address)?;
    }
    if up {
        socket.set_up(index, true)?;
    }
    Ok(())
}

fn open_own() -> io::Result<OwnedFd> {
    open("/proc/self/ns/net")
}

fn open_of(pid: u32) -> io::Result<OwnedFd> {
    open(&format!("/proc/{pid}/ns/net"))
}

fn open(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// A socket of another network namespace than the caller's own.
fn socket_in(namespace: BorrowedFd<'_>, own: BorrowedFd<'_>) -> io::Result<Socket> {
    let flag = NamespaceKind::Network.flag();
    sys::set_namespace(namespace, flag)?;
    let socket = Socket::new();
    // Going back to one's own namespace cannot be refused; were it, the process must not go on as
    // if it were there.
    if let Err(error) = sys::set_namespace(own, flag) {
        panic!("cannot return to the own network namespace: {error}");
    }
    socket
}
