//! The NIC: packets go between TAP and guest buffers without a copy in between.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_queue::Queue;

use super::config::{self, HEADER_SIZE, MAX_PACKET, MIN_PACKET, NUM_BUFFERS, Offloads, QUEUE_SIZE};
use super::metrics::NetCounters;
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::memory::{GuestRam, IoVec};
use crate::sys;

/// Packets moved in one go in one direction, so that other devices get their turn.
const BATCH: usize = 128;

/// A receive buffer of the driver that waits for a packet.
struct Buffer {
    head: u16,
    length: usize,
}

/// Whether the largest packet fits into the buffers that the driver gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// The driver will kick when it gives more.
    Missing,
    /// There may be more to take.
    Unknown,
}

/// What exists only while a driver is there.
struct Live {
    receive: Ring,
    transmit: Ring,
    interrupt: Arc<Interrupt>,
    /// Buffers taken off the receive queue, as their packets may fill several.
    buffers: VecDeque<Buffer>,
    /// The same buffers as one list.
    space: IoVec,
}

/// The NIC.
pub struct Net {
    ram: GuestRam,
    tap: Option<File>,
    /// The TAP may have a packet: nobody tells again until it was read empty.
    readable: bool,
    features: u64,
    config: Vec<u8>,
    counters: Arc<NetCounters>,
    chain: Chain,
    live: Option<Live>,
}

impl Net {
    /// A NIC without a TAP: it loses what the guest sends.
    pub fn new(ram: GuestRam, offloads: Offloads, counters: Arc<NetCounters>) -> Self {
        Self {
            ram,
            tap: None,
            readable: false,
            features: config::features(offloads),
            config: config::space(),
            counters,
            chain: Chain::default(),
            live: None,
        }
    }

    /// A NIC over anything that gives and takes packets, as a TAP does.
    #[cfg(any(test, feature = "testing"))]
    pub fn over(ram: GuestRam, wire: File) -> Self {
        let mut nic = Self::new(ram, Offloads::TcpAndUdp, Arc::default());
        nic.set_tap(wire);
        nic
    }

    /// Connects the NIC to a TAP that was set up for these offloads ([`super::set_up_tap`]).
    pub fn set_tap(&mut self, tap: File) {
        self.tap = Some(tap);
    }

    /// The TAP, to wait for (edge-triggered).
    pub fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.tap.as_ref().map(AsFd::as_fd)
    }

    /// The TAP has become readable.
    pub fn tap_readable(&mut self) -> bool {
        self.readable = true;
        self.process()
    }

    /// Moves packets both ways; `true` when there may be more to move.
    pub fn process(&mut self) -> bool {
        let Some(mut live) = self.live.take() else {
            return false;
        };
        let more = self.transmit(&mut live) | self.receive(&mut live);
        self.live = Some(live);
        more
    }

    fn transmit(&mut self, live: &mut Live) -> bool {
        live.transmit.disable_kicks();
        let mut chain = std::mem::take(&mut self.chain);
        let more = live.transmit.each(BATCH, &mut chain, |ring, chain| {
            let sent = self.send(&mut chain.readable);
            ring.push(chain.head, 0);
            match sent {
                Some(bytes) => {
                    self.counters.sent_packets.add(1);
                    self.counters.sent_bytes.add(bytes as u64);
                }
                None => self.counters.dropped.add(1),
            }
        });
        self.chain = chain;
        live.transmit.notify(&live.interrupt);
        more
    }

    /// Sends a packet; `None` when it is dropped, as a wire does.
    fn send(&self, packet: &mut IoVec) -> Option<usize> {
        let length = packet.len();
        if !(MIN_PACKET..=MAX_PACKET).contains(&length) {
            return None;
        }
        packet.write(self.tap.as_ref()?.as_fd(), 0..length).ok()
    }

    fn receive(&mut self, live: &mut Live) -> bool {
        for _ in 0..BATCH {
            if !self.readable {
                break;
            }
            let room = self.take_buffers(live);
            if room != Room::Enough {
                live.receive.notify(&live.interrupt);
                return room == Room::Unknown;
            }
            let Some(tap) = &self.tap else {
                return false;
            };
            let room = live.space.len();
            match live.space.read(tap.as_fd(), 0..room) {
                Ok(length) => self.deliver(live, length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Anything but "no packet now" means that the TAP is gone or down;
                    // a later event says when it is back.
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.counters.dropped.add(1);
                    }
                    self.readable = false;
                }
            }
        }
        live.receive.notify(&live.interrupt);
        self.readable
    }

    /// Takes buffers off the receive queue until the largest packet fits.
    fn take_buffers(&mut self, live: &mut Live) -> Room {
        for _ in 0..=QUEUE_SIZE {
            if live.space.len() >= MAX_PACKET {
                live.receive.disable_kicks();
                return Room::Enough;
            }
            if !live.receive.pop(&mut self.chain) {
                if live.receive.enable_kicks() {
                    continue;
                }
                return Room::Missing;
            }
            let buffer = &self.chain.writable;
            if buffer.len() < HEADER_SIZE || live.space.append(buffer).is_err() {
                live.receive.push(self.chain.head, 0);
                continue;
            }
            live.buffers.push_back(Buffer {
                head: self.chain.head,
                length: buffer.len(),
            });
        }
        Room::Unknown
    }

    /// Gives the driver the packet of `length` bytes at the start of the buffers.
    fn deliver(&self, live: &mut Live, length: usize) {
        if !(MIN_PACKET..=live.space.len()).contains(&length) {
            self.counters.dropped.add(1);
            return;
        }
        let mut left = length;
        let mut used = 0u16;
        for buffer in &live.buffers {
            if left == 0 {
                break;
            }
            left -= left.min(buffer.length);
            used += 1;
        }
        live.space.copy_from(NUM_BUFFERS, &used.to_le_bytes());
        left = length;
        for buffer in live.buffers.drain(..usize::from(used)) {
            let filled = left.min(buffer.length);
            left -= filled;
            live.receive.push(buffer.head, filled as u32);
            live.space.advance(buffer.length);
        }
        self.counters.received_packets.add(1);
        self.counters.received_bytes.add(length as u64);
    }
}

/// Makes a TAP speak the header that the guest does, and take what the NIC offers it.
///
/// # Errors
/// When it is no TAP, or does not know these offloads.
pub fn set_up_tap(tap: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    sys::tap_set_header_length(tap, HEADER_SIZE as i32)?;
    sys::tap_set_offload(tap, config::tap_offloads(offloads))
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        device_type::NET
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn required_features(&self) -> u64 {
        config::REQUIRED
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, driver: Driver) {
        let mut queues = driver.queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return;
        };
        self.live = Some(Live {
            receive: Ring::new(receive, self.ram),
            transmit: Ring::new(transmit, self.ram),
            interrupt: driver.interrupt,
            buffers: VecDeque::new(),
            space: IoVec::new(),
        });
    }

    fn reset(&mut self) {
        self.live = None;
    }

    fn park(&mut self) -> Option<Vec<Queue>> {
        let mut live = self.live.take()?;
        // No packet is in them yet.
        for _ in live.buffers.drain(..) {
            live.receive.unpop();
        }
        Some(vec![live.receive.into_queue(), live.transmit.into_queue()])
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use virtio_queue::QueueT;

    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, TestDriver};

    /// A NIC whose TAP is one end of a packet socket pair; the other end is the wire.
    struct Bench {
        device: Net,
        driver: TestDriver,
        wire: File,
    }

    impl Bench {
        fn new() -> Self {
            let pair = || -> nix::Result<(OwnedFd, OwnedFd)> {
                let flags = SockFlag::SOCK_NONBLOCK;
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            };
            let (tap, wire) = pair().unwrap();
            let ram = TestDriver::memory();
            let mut device = Net::over(ram, File::from(tap));
            let driver = TestDriver::start(ram, &mut device);
            Self {
                device,
                driver,
                wire: File::from(wire),
            }
        }

        /// Gives the device receive buffers of these sizes, one after the other.
        fn offer(&mut self, count: usize, size: u32) {
            for index in 0..count {
                let address = BUFFERS + index as u64 * u64::from(size);
                self.driver.queues[0].add(&[], &[(address, size)]);
            }
        }
    }

    fn packet(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i / 3) as u8).collect()
    }

    #[test]
    fn sends_whole_packets_with_their_header() {
        let mut bench = Bench::new();
        let bytes = packet(1000);
        bench.driver.ram.put(BUFFERS, &bytes).unwrap();
        let parts = [(BUFFERS, 12), (BUFFERS + 12, 500), (BUFFERS + 512, 488)];
        bench.driver.queues[1].add(&parts, &[]);
        assert!(!bench.device.process());
        let mut got = vec![0; 2000];
        assert_eq!(bench.wire.read(&mut got).unwrap(), 1000);
        assert_eq!(got[..1000], bytes);
        assert!(bench.driver.queues[1].used().is_some());
        assert_eq!(bench.device.counters.stats().sent_bytes, 1000);
    }

    #[test]
    fn drops_packets_that_are_none() {
        let mut bench = Bench::new();
        for length in [0, 25, 66_000] {
            bench.driver.queues[1].add(&[(BUFFERS, length)], &[]);
        }
        assert!(!bench.device.process());
        assert_eq!(bench.device.counters.stats().dropped, 3);
        assert!(bench.wire.read(&mut [0; 10]).is_err());
    }

    #[test]
    fn a_large_packet_fills_several_buffers() {
        let mut bench = Bench::new();
        bench.offer(40, 2048);
        let bytes = packet(5000);
        bench.wire.write_all(&bytes).unwrap();
        bench.wire.write_all(&packet(100)).unwrap();
        assert!(!bench.device.tap_readable());
        let lengths: Vec<u32> = std::iter::from_fn(|| bench.driver.queues[0].used())
            .map(|(_, written)| written)
            .collect();
        assert_eq!(lengths, [2048, 2048, 904, 100]);
        let mut expected = bytes;
        expected[10..12].copy_from_slice(&3u16.to_le_bytes());
        assert_eq!(bench.driver.read(BUFFERS, 5000), expected);
        let second = bench.driver.read(BUFFERS + 3 * 2048, 12);
        assert_eq!(second[10..], [1, 0]);
        assert_eq!(bench.device.counters.stats().received_packets, 2);
    }

    #[test]
    fn packets_wait_on_the_wire_until_the_driver_has_room() {
        let mut bench = Bench::new();
        bench.wire.write_all(&packet(100)).unwrap();
        bench.offer(3, 2048);
        assert!(!bench.device.tap_readable());
        assert!(bench.driver.queues[0].used().is_none());
        bench.offer(40, 2048);
        assert!(!bench.device.process());
        assert_eq!(
            bench.driver.queues[0].used().map(|(_, written)| written),
            Some(100)
        );
    }

    #[test]
    fn receive_buffers_without_room_for_a_header_come_back() {
        let mut bench = Bench::new();
        bench.offer(1, 11);
        bench.driver.queues[0].add(&[], &[(u64::MAX, 4096)]);
        bench.wire.write_all(&packet(100)).unwrap();
        assert!(!bench.device.tap_readable());
        let back: Vec<u32> = std::iter::from_fn(|| bench.driver.queues[0].used())
            .map(|(_, written)| written)
            .collect();
        assert_eq!(back, [0, 0]);
    }

    #[test]
    fn a_parked_nic_goes_on_with_the_same_buffers() {
        let mut bench = Bench::new();
        // Taken off the queue, but not enough for a packet.
        bench.offer(3, 2048);
        bench.wire.write_all(&packet(100)).unwrap();
        assert!(!bench.device.tap_readable());
        let queues = bench.device.park().unwrap();
        assert!(bench.device.park().is_none());
        assert_eq!(queues[0].next_avail(), 0);
        let features = bench.device.features();
        bench.device.activate(Driver {
            queues,
            features,
            interrupt: Arc::clone(&bench.driver.interrupt),
        });
        bench.offer(40, 2048);
        assert!(!bench.device.process());
        assert_eq!(bench.driver.queues[0].used(), Some((0, 100)));
        assert_eq!(bench.driver.read(BUFFERS + 12, 88), packet(100)[12..]);
    }
}
