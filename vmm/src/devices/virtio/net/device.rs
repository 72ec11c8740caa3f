//! The NIC: packets go between TAP and guest buffers without a copy in between.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::config::{
    self, HEADER_SIZE, MAX_PACKET, MIN_PACKET, NUM_BUFFERS, Offloads, QUEUE_SIZE,
};
use super::metrics::NetCounters;
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::memory::{GuestRam, IoVec};
use crate::spec::NetSpec;
use crate::sys;

/// Packets moved in one go in one direction, so that other devices get their turn.
const BATCH: usize = 128;

/// A receive buffer of the driver that waits for a packet.
struct Buffer {
    head: u16,
    length: usize,
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
    /// A NIC. Without a TAP it is there all the same, with its link down, so that
    /// all VMs have one shape.
    pub fn new(
        ram: GuestRam,
        tap: Option<(File, NetSpec)>,
        counters: Arc<NetCounters>,
    ) -> io::Result<Self> {
        let offloads = match &tap {
            Some((tap, _)) => set_up_tap(tap.as_fd())?,
            None => Offloads::TcpAndUdp,
        };
        Ok(Self {
            ram,
            features: config::features(offloads),
            config: config::space(tap.as_ref().map(|(_, spec)| spec)),
            tap: tap.map(|(tap, _)| tap),
            readable: false,
            counters,
            chain: Chain::default(),
            live: None,
        })
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
        let mut more = true;
        for _ in 0..BATCH {
            if !live.transmit.pop(&mut self.chain) {
                more = live.transmit.enable_kicks();
                if !more {
                    break;
                }
                continue;
            }
            let sent = self.send();
            live.transmit.push(self.chain.head, 0);
            match sent {
                Some(bytes) => {
                    self.counters.sent_packets.add(1);
                    self.counters.sent_bytes.add(bytes as u64);
                }
                None => self.counters.dropped.add(1),
            }
        }
        live.transmit.notify(&live.interrupt);
        more
    }

    /// Sends the packet of the current chain; `None` when it is dropped, as a wire does.
    fn send(&mut self) -> Option<usize> {
        let packet = &mut self.chain.readable;
        let length = packet.len();
        if !(MIN_PACKET..=MAX_PACKET).contains(&length) {
            return None;
        }
        packet.write(self.tap.as_ref()?.as_fd(), 0..length).ok()
    }

    fn receive(&mut self, live: &mut Live) -> bool {
        for _ in 0..BATCH {
            if !self.readable || !self.take_buffers(live) {
                live.receive.notify(&live.interrupt);
                return false;
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

    /// Takes buffers off the receive queue until the largest packet fits; `false`
    /// when the driver has not given enough yet.
    fn take_buffers(&mut self, live: &mut Live) -> bool {
        while live.space.len() < MAX_PACKET {
            if !live.receive.pop(&mut self.chain) {
                if live.receive.enable_kicks() {
                    continue;
                }
                return false;
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
        live.receive.disable_kicks();
        true
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

/// Makes the TAP speak the header that the guest does, with what it can offload.
fn set_up_tap(tap: BorrowedFd<'_>) -> io::Result<Offloads> {
    sys::tap_set_header_length(tap, HEADER_SIZE as i32)?;
    if sys::tap_set_offload(tap, config::TAP_OFFLOADS | config::TAP_UDP_OFFLOADS).is_ok() {
        return Ok(Offloads::TcpAndUdp);
    }
    sys::tap_set_offload(tap, config::TAP_OFFLOADS)?;
    Ok(Offloads::Tcp)
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
}
