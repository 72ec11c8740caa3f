//! The guest's side of a TAP, by hand: just enough of ARP, neighbour
//! discovery and echo to be pinged.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use network::VNET_HEADER_BYTES;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A frame as it is read from the TAP.
pub struct Frame {
    /// `gso_type` of the virtio-net header: 0 is none.
    pub gso_type: u8,
    pub bytes: Vec<u8>,
}

/// The largest frame a TAP yields, with its header.
pub const FRAME_BYTES: usize = VNET_HEADER_BYTES + 14 + (64 << 10);

pub struct Guest {
    tap: File,
    mac: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Guest {
    pub fn new(tap: OwnedFd, mac: [u8; 6], v4: &str, v6: &str) -> Self {
        Self {
            tap: tap.into(),
            mac,
            v4: v4.parse().unwrap(),
            v6: v6.parse().unwrap(),
        }
    }

    /// The next frame, or none within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Option<Frame> {
        let timeout = PollTimeout::try_from(patience).unwrap();
        let mut fds = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout).unwrap() == 0 {
            return None;
        }
        let mut buffer = vec![0; FRAME_BYTES];
        let length = self.tap.read(&mut buffer).unwrap();
        Some(Frame {
            gso_type: buffer[1],
            bytes: buffer[VNET_HEADER_BYTES..length].to_vec(),
        })
    }

    /// Sends a frame without offloads.
    pub fn send(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; VNET_HEADER_BYTES];
        bytes.extend(frame);
        assert_eq!(self.tap.write(&bytes).unwrap(), bytes.len());
    }

    /// Answers what asks for the guest until an echo request is answered.
    pub fn answer_ping(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.receive(left).expect("an echo request reaches the TAP");
            let Some((answer, echo)) = self.answer(&frame.bytes) else {
                continue;
            };
            self.send(&answer);
            if echo {
                return;
            }
        }
    }

    /// The answer to a frame, and whether it answers an echo request.
    fn answer(&self, frame: &[u8]) -> Option<(Vec<u8>, bool)> {
        let payload = &frame[14..];
        match frame[12..14] {
            [0x08, 0x06] => self.answer_arp(payload).map(|arp| (arp, false)),
            [0x08, 0x00] => self.answer_v4(frame).map(|echo| (echo, true)),
            [0x86, 0xdd] if payload[6] == 58 && payload[24..40] == self.v6.octets() => {
                (payload[40] == 128).then(|| (self.answer_v6(frame), true))
            }
            [0x86, 0xdd] if payload[6] == 58 => self.answer_nd(frame).map(|nd| (nd, false)),
            _ => None,
        }
    }

    fn ethernet(&self, to: &[u8], protocol: [u8; 2]) -> Vec<u8> {
        [to, &self.mac, &protocol].concat()
    }

    fn answer_arp(&self, arp: &[u8]) -> Option<Vec<u8>> {
        let asked = arp[6..8] == [0, 1] && arp[24..28] == self.v4.octets();
        let (mac, ip) = (&arp[8..14], &arp[14..18]);
        asked.then(|| {
            let mut reply = self.ethernet(mac, [0x08, 0x06]);
            reply.extend(&arp[..6]);
            reply.extend([0, 2]);
            reply.extend(self.mac);
            reply.extend(self.v4.octets());
            reply.extend(mac);
            reply.extend(ip);
            reply
        })
    }

    /// The answer to a neighbour solicitation for the guest's address.
    fn answer_nd(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = &frame[14..];
        if packet[40] != 135 || packet[48..64] != self.v6.octets() {
            return None;
        }
        let asker: [u8; 16] = packet[8..24].try_into().unwrap();
        // Advertisement, solicited and overriding, with the link-layer address.
        let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
        message.extend(self.v6.octets());
        message.extend([2, 1]);
        message.extend(self.mac);
        Some(self.icmp_v6(&frame[6..12], asker, message))
    }

    fn answer_v4(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = &frame[14..];
        let header = usize::from(packet[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        if packet[9] != 1 || packet[16..20] != self.v4.octets() || packet[header] != 8 {
            return None;
        }
        let mut reply = self.ethernet(&frame[6..12], [0x08, 0x00]);
        reply.extend(&packet[..total]);
        let packet = &mut reply[14..];
        // The header's checksum does not mind the addresses' order.
        let (source, destination) = packet[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        let icmp = &mut packet[header..];
        icmp[0] = 0;
        icmp[2..4].fill(0);
        let sum = checksum(icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        Some(reply)
    }

    fn answer_v6(&self, frame: &[u8]) -> Vec<u8> {
        let packet = &frame[14..];
        let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        let asker: [u8; 16] = packet[8..24].try_into().unwrap();
        let mut message = packet[40..40 + length].to_vec();
        message[0] = 129;
        message[2..4].fill(0);
        self.icmp_v6(&frame[6..12], asker, message)
    }

    /// A frame with an ICMPv6 `message`, whose checksum is filled in.
    fn icmp_v6(&self, mac: &[u8], to: [u8; 16], mut message: Vec<u8>) -> Vec<u8> {
        let length = message.len() as u16;
        let mut pseudo = [self.v6.octets(), to].concat();
        pseudo.extend(u32::from(length).to_be_bytes());
        pseudo.extend([0, 0, 0, 58]);
        pseudo.extend(&message);
        message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        let mut frame = self.ethernet(mac, [0x86, 0xdd]);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([58, 255]);
        frame.extend(self.v6.octets());
        frame.extend(to);
        frame.extend(message);
        frame
    }
}

/// The Internet checksum of RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
