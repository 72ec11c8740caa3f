//! The block device: takes requests off its queue and carries them out, one by one.

use std::io;
use std::sync::Arc;

use super::config::{self, QUEUE_SIZE};
use super::metrics::BlockCounters;
use super::request::{Refusal, Request};
use super::Disk;
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::memory::GuestRam;

/// Status byte of a request.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Length of a disk's serial number.
const SERIAL_SIZE: usize = 20;

/// A block device over some [`Disk`].
pub struct Block {
    ram: GuestRam,
    disk: Box<dyn Disk>,
    features: u64,
    config: Vec<u8>,
    counters: Arc<BlockCounters>,
    chain: Chain,
    live: Option<(Ring, Arc<Interrupt>)>,
}

impl Block {
    /// Puts a disk behind a device.
    pub fn new(ram: GuestRam, disk: Box<dyn Disk>, counters: Arc<BlockCounters>) -> Self {
        Self {
            ram,
            features: config::features(&*disk),
            config: config::space(&*disk),
            disk,
            counters,
            chain: Chain::default(),
            live: None,
        }
    }

    /// Carries out all requests in the queue. At most one queue's worth, so that the
    /// other disk gets its turn; `true` when there may be more.
    pub fn process(&mut self) -> bool {
        let Some((mut ring, interrupt)) = self.live.take() else {
            return false;
        };
        let mut chain = std::mem::take(&mut self.chain);
        let mut more = true;
        ring.disable_kicks();
        for _ in 0..QUEUE_SIZE {
            if !ring.pop(&mut chain) {
                more = ring.enable_kicks();
                if !more {
                    break;
                }
                continue;
            }
            let written = self.serve(&mut chain);
            ring.push(chain.head, written);
            ring.notify(&interrupt);
        }
        self.chain = chain;
        self.live = Some((ring, interrupt));
        more
    }

    /// Carries out one request; returns the bytes written to the guest's buffers.
    fn serve(&self, chain: &mut Chain) -> u32 {
        let (status, data) = match Request::parse(chain, self.disk.capacity()) {
            Ok(request) => match self.carry_out(request, chain) {
                Ok(data) => (OK, data),
                Err(error) => (status_of(&error), 0),
            },
            Err(Refusal::NoStatus) => {
                self.counters.errors.add(1);
                return 0;
            }
            Err(Refusal::Invalid) => (IO_ERROR, 0),
            Err(Refusal::Unsupported) => (UNSUPPORTED, 0),
        };
        if status != OK {
            self.counters.errors.add(1);
        }
        chain.writable.copy_from(chain.writable.len() - 1, &[status]);
        // A chain is shorter than 4 GiB.
        data as u32 + 1
    }

    /// Returns the data bytes written to the guest.
    fn carry_out(&self, request: Request, chain: &mut Chain) -> io::Result<usize> {
        let counters = &self.counters;
        match request {
            Request::Read { offset, length } => {
                self.disk.read(&mut chain.writable, 0..length, offset)?;
                counters.reads.add(1);
                counters.read_bytes.add(length as u64);
                return Ok(length);
            }
            Request::GetId => {
                let mut serial = [0; SERIAL_SIZE];
                let name = self.disk.serial().as_bytes();
                serial[..name.len()].copy_from_slice(name);
                let room = (chain.writable.len() - 1).min(SERIAL_SIZE);
                return Ok(chain.writable.copy_from(0, &serial[..room]));
            }
            _ if self.disk.read_only() => {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            Request::Write {
                offset,
                start,
                length,
            } => {
                let range = start..start + length;
                self.disk.write(&mut chain.readable, range, offset)?;
                counters.writes.add(1);
                counters.written_bytes.add(length as u64);
            }
            Request::Flush => {
                self.disk.flush()?;
                counters.flushes.add(1);
            }
            Request::Discard(ranges) => {
                for (offset, length) in ranges {
                    self.disk.discard(offset, length)?;
                }
                counters.discards.add(1);
            }
        }
        Ok(0)
    }
}

/// The status that tells the driver of an error.
fn status_of(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::Unsupported => UNSUPPORTED,
        _ => IO_ERROR,
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_type::BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, driver: Driver) {
        let ring = driver.queues.into_iter().next();
        self.live = ring.map(|queue| (Ring::new(queue, self.ram), driver.interrupt));
    }

    fn reset(&mut self) {
        self.live = None;
    }
}
