//! As much of rtnetlink as it takes to move network devices.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

// Attributes of links and addresses.
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// An address of a device: what to say to give it to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    family: u8,
    prefix: u8,
    /// Attributes: type and value.
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub index: i32,
    pub up: bool,
}

/// A socket to the network namespace that it was made in.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// One in the caller's namespace.
    pub(super) fn new() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is 0.
            None,
        )?;
        Ok(Self {
            socket,
            sequence: Cell::new(0),
        })
    }

    /// Finds a device by its name.
    pub(super) fn link(&self, name: &str) -> io::Result<Link> {
        let mut body = link_header(0, 0, 0);
        attribute(&mut body, IFLA_IFNAME, &terminated(name));
        let answers = self.request(libc::RTM_GETLINK, 0, &body)?;
        answers
            .iter()
            .find_map(|answer| {
                Some(Link {
                    index: i32::from_ne_bytes(bytes(answer, 4)?),
                    up: u32::from_ne_bytes(bytes(answer, 8)?) & libc::IFF_UP as u32 != 0,
                })
            })
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Switches a device on or off.
    pub(super) fn set_up(&self, index: i32, up: bool) -> io::Result<()> {
        let flag = libc::IFF_UP as u32;
        let body = link_header(index, if up { flag } else { 0 }, flag);
        self.request(libc::RTM_NEWLINK, 0, &body).map(|_| ())
    }

    /// Moves a device into another network namespace under a name there.
    pub(super) fn transfer(
        &self,
        index: i32,
        name: &str,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut body = link_header(index, 0, 0);
        attribute(&mut body, IFLA_IFNAME, &terminated(name));
        let fd = namespace.as_raw_fd() as u32;
        attribute(&mut body, IFLA_NET_NS_FD, &fd.to_ne_bytes());
        self.request(libc::RTM_NEWLINK, 0, &body).map(|_| ())
    }

    /// The addresses of a device that somebody has given it for good and for everywhere: others
    /// come from the network that it is in, or from its own number.
    pub(super) fn addresses(&self, index: i32) -> io::Result<Vec<Address>> {
        let answers = self.request(
            libc::RTM_GETADDR,
            libc::NLM_F_DUMP as u16,
            &[0; ADDRESS_HEADER],
        )?;
        Ok(answers
            .iter()
            .filter_map(|answer| kept_address(answer, index))
            .collect())
    }

    /// Gives a device an address.
    pub(super) fn add_address(&self, index: i32, address: &Address) -> io::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        for (kind, value) in &address.attributes {
            attribute(&mut body, *kind, value);
        }
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.request(libc::RTM_NEWADDR, flags, &body).map(|_| ())
    }

    /// Sends a request and returns the bodies of the answers.
    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut message = Vec::new();
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;

        let mut answers = Vec::new();
        // The kernel fills no more than this into one packet.
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let (length, _) = rustix::io::retry_on_intr(|| {
                recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())
            })?;
            if take(&buffer[..length], sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes the messages of a packet; true when the last one is among them.
fn take(mut packet: &[u8], sequence: u32, answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    const ERROR: u16 = libc::NLMSG_ERROR as u16;
    const DONE: u16 = libc::NLMSG_DONE as u16;
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    while !packet.is_empty() {
        let length = u32::from_ne_bytes(bytes(packet, 0).ok_or_else(broken)?) as usize;
        let kind = u16::from_ne_bytes(bytes(packet, 4).ok_or_else(broken)?);
        let answers_to = u32::from_ne_bytes(bytes(packet, 8).ok_or_else(broken)?);
        let body = packet.get(HEADER..length).ok_or_else(broken)?;
        packet = packet.get(aligned(length)..).unwrap_or_default();
        if answers_to != sequence {
            continue;
        }
        match kind {
            ERROR | DONE => {
                // A dump that ends well may say nothing.
                return match i32::from_ne_bytes(bytes(body, 0).unwrap_or_default()) {
                    0 => Ok(true),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            _ => answers.push(body.to_vec()),
        }
    }
    Ok(false)
}

/// The address of a message, if it is one of the device and to be kept.
fn kept_address(message: &[u8], index: i32) -> Option<Address> {
    let [family, prefix, flags, scope] = bytes(message, 0)?;
    if i32::from_ne_bytes(bytes(message, 4)?) != index || scope != libc::RT_SCOPE_UNIVERSE {
        return None;
    }
    let mut attributes = attributes(message.get(ADDRESS_HEADER..)?);
    let all_flags = attributes
        .iter()
        .find(|(kind, _)| *kind == IFA_FLAGS)
        .and_then(|(_, value)| Some(u32::from_ne_bytes(bytes(value, 0)?)))
        .unwrap_or(flags.into());
    attributes.retain(|(kind, _)| matches!(*kind, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST));
    (all_flags & libc::IFA_F_PERMANENT != 0).then_some(Address {
        family,
        prefix,
        attributes,
    })
}

fn link_header(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(LINK_HEADER);
    header.extend([0u8; 4]);
    header.extend(index.to_ne_bytes());
    header.extend(flags.to_ne_bytes());
    header.extend(change.to_ne_bytes());
    header
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(aligned(message.len()), 0);
}

fn attributes(mut list: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut attributes = Vec::new();
    while let (Some(length), Some(kind)) = (bytes(list, 0), bytes(list, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let Some(value) = list.get(4..length) else {
            break;
        };
        attributes.push((u16::from_ne_bytes(kind), value.to_vec()));
        list = list.get(aligned(length)..).unwrap_or_default();
    }
    attributes
}

fn terminated(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    name
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn bytes<const N: usize>(list: &[u8], at: usize) -> Option<[u8; N]> {
    list.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_written() {
        let mut list = Vec::new();
        attribute(&mut list, 3, b"eth0\0");
        attribute(&mut list, 28, &7u32.to_ne_bytes());
        assert_eq!(list.len(), 12 + 8);
        assert_eq!(
            attributes(&list),
            [(3, b"eth0\0".to_vec()), (28, 7u32.to_ne_bytes().to_vec())]
        );
        // What is cut off is left out.
        assert_eq!(attributes(&list[..14]).len(), 1);
    }

    #[test]
    fn the_loopback_is_found_and_others_are_not() {
        let socket = Socket::new().unwrap();
        let link = socket.link("lo").unwrap();
        assert_eq!(link.index, 1);
        let error = socket.link("none0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
