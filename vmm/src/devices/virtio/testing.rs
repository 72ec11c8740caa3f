//! A driver in place of a guest: sets a device's queues up in guest memory, adds
//! requests and takes back what was used. For tests and fuzz targets.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Driver, Interrupt, VirtioDevice};
use crate::memory::{GuestRam, PAGE};
use crate::sys;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Memory of a test guest in bytes.
pub const RAM_SIZE: u64 = 8 << 20;
/// Queues are in the first MiB; the rest is for buffers.
pub const BUFFERS: u64 = 1 << 20;

/// The driver's side of one queue.
pub struct TestQueue {
    ram: GuestRam,
    base: u64,
    size: u16,
    next_descriptor: u16,
    next_used: u16,
}

impl TestQueue {
    const AVAILABLE: u64 = 0x4000;
    const USED: u64 = 0x6000;
    const SPACE: u64 = 0x8000;

    fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.put(address, bytes).expect("within test memory");
    }

    fn word(&self, address: u64) -> u16 {
        self.ram
            .read_obj(GuestAddress(address))
            .expect("within test memory")
    }

    /// Makes a request of these buffers (address, length), first those to read. The
    /// name that the device gives it back under is returned.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let head = self.next_descriptor;
        let count = readable.len() + writable.len();
        let buffers = readable
            .iter()
            .map(|buffer| (buffer, 0))
            .chain(writable.iter().map(|buffer| (buffer, WRITE)));
        for (index, ((address, length), flag)) in buffers.enumerate() {
            let this = self.next_descriptor;
            self.next_descriptor = (this + 1) % self.size;
            let more = if index + 1 < count { NEXT } else { 0 };
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend_from_slice(&length.to_le_bytes());
            descriptor.extend_from_slice(&(flag | more).to_le_bytes());
            descriptor.extend_from_slice(&self.next_descriptor.to_le_bytes());
            self.put(self.base + u64::from(this) * 16, &descriptor);
        }
        self.offer(head);
        head
    }

    /// Makes the request that starts at a descriptor available.
    pub fn offer(&mut self, head: u16) {
        let ring = self.base + Self::AVAILABLE;
        let index = self.word(ring + 2);
        self.put(
            ring + 4 + u64::from(index % self.size) * 2,
            &head.to_le_bytes(),
        );
        self.put(ring + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Writes bytes over the queue's own structures, as a hostile guest may.
    pub fn scribble(&mut self, offset: u64, bytes: &[u8]) {
        let offset = offset % Self::SPACE;
        let room = (Self::SPACE - offset) as usize;
        self.put(self.base + offset, &bytes[..bytes.len().min(room)]);
    }

    /// Takes back the next request: its name and the bytes written to it.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let ring = self.base + Self::USED;
        if self.word(ring + 2) == self.next_used {
            return None;
        }
        let element = ring + 4 + u64::from(self.next_used % self.size) * 8;
        self.next_used = self.next_used.wrapping_add(1);
        let length = self
            .ram
            .read_obj(GuestAddress(element + 4))
            .expect("within test memory");
        Some((self.word(element), length))
    }
}

/// A driver that has taken a device into use.
pub struct TestDriver {
    /// The guest's memory.
    pub ram: GuestRam,
    /// One for each queue of the device.
    pub queues: Vec<TestQueue>,
    /// Where the device's interrupts come.
    pub interrupt: Arc<Interrupt>,
}

impl TestDriver {
    /// Memory for a device and its driver.
    pub fn memory() -> GuestRam {
        GuestRam::allocate(RAM_SIZE).expect("memory for a test")
    }

    /// Takes a device into use, with all features that it offers.
    pub fn start(ram: GuestRam, device: &mut dyn VirtioDevice) -> Self {
        let sizes = device.queue_sizes();
        let mut queues = Vec::new();
        let mut given = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let base = PAGE + index as u64 * TestQueue::SPACE;
            ram.put(base, &[0; TestQueue::SPACE as usize])
                .expect("within test memory");
            let mut queue = Queue::new(*size).expect("a power of two");
            queue.set_desc_table_address(Some(base as u32), None);
            queue.set_avail_ring_address(Some((base + TestQueue::AVAILABLE) as u32), None);
            queue.set_used_ring_address(Some((base + TestQueue::USED) as u32), None);
            queue.set_event_idx(true);
            queue.set_ready(true);
            assert!(queue.is_valid(&*ram));
            given.push(queue);
            queues.push(TestQueue {
                ram,
                base,
                size: *size,
                next_descriptor: 0,
                next_used: 0,
            });
        }
        let line = sys::event().expect("an eventfd");
        let interrupt = Arc::new(Interrupt::new(line));
        device.activate(Driver {
            queues: given,
            features: device.features(),
            interrupt: Arc::clone(&interrupt),
        });
        Self {
            ram,
            queues,
            interrupt,
        }
    }

    /// Bytes of guest memory.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("within test memory");
        bytes
    }
}
