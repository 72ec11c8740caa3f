//! The entropy source.

use std::sync::Arc;
use std::time::Duration;

use virtio_queue::Queue;

use super::config::{BURST, FEATURES, MAX_REQUEST, QUEUE_SIZE, REFILL_MILLIS};
use super::metrics::RngCounters;
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::memory::GuestRam;
use crate::sys;

/// The entropy device.
pub struct Rng {
    ram: GuestRam,
    budget: usize,
    counters: Arc<RngCounters>,
    chain: Chain,
    live: Option<(Ring, Arc<Interrupt>)>,
}

impl Rng {
    /// A device that gives bytes of the host's random number generator.
    pub fn new(ram: GuestRam, counters: Arc<RngCounters>) -> Self {
        Self {
            ram,
            budget: BURST,
            counters,
            chain: Chain::default(),
            live: None,
        }
    }

    /// Fills the requests in the queue. `Some`: the guest has taken its share; call
    /// [`Self::refill`] after that time.
    pub fn process(&mut self) -> Option<Duration> {
        let (ring, interrupt) = self.live.as_mut()?;
        let mut wait = None;
        loop {
            if self.budget == 0 {
                self.counters.throttled.add(1);
                wait = Some(Duration::from_millis(REFILL_MILLIS));
                break;
            }
            if !ring.pop(&mut self.chain) {
                if ring.enable_kicks() {
                    continue;
                }
                break;
            }
            // A malformed request costs as much as a byte, so that the loop ends.
            let length = self.chain.writable.len().min(MAX_REQUEST).min(self.budget);
            let mut bytes = [0; MAX_REQUEST];
            let given = match sys::random(&mut bytes[..length]) {
                Ok(()) => self.chain.writable.copy_from(0, &bytes[..length]),
                Err(_) => 0,
            };
            self.budget -= length.max(1);
            self.counters.bytes.add(given as u64);
            ring.push(self.chain.head, given as u32);
        }
        ring.notify(interrupt);
        wait
    }

    /// Gives the guest its share anew and goes on.
    pub fn refill(&mut self) -> Option<Duration> {
        self.budget = BURST;
        self.process()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        device_type::RNG
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn activate(&mut self, driver: Driver) {
        let ring = driver.queues.into_iter().next();
        self.live = ring.map(|queue| (Ring::new(queue, self.ram), driver.interrupt));
    }

    fn reset(&mut self) {
        self.live = None;
    }

    fn park(&mut self) -> Option<Vec<Queue>> {
        let (ring, _) = self.live.take()?;
        Some(vec![ring.into_queue()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, TestDriver};

    #[test]
    fn gives_entropy_up_to_its_limits() {
        let ram = TestDriver::memory();
        let mut device = Rng::new(ram, Arc::default());
        let mut driver = TestDriver::start(ram, &mut device);
        driver.queues[0].add(&[], &[(BUFFERS, 16), (BUFFERS + 100, 1000)]);
        assert_eq!(device.process(), None);
        assert_eq!(
            driver.queues[0].used().map(|(_, written)| written as usize),
            Some(MAX_REQUEST)
        );
        assert_ne!(driver.read(BUFFERS, 16), [0; 16]);
        assert_eq!(driver.read(BUFFERS + 100 + 240, 10), [0; 10]);
        assert_eq!(driver.interrupt.status(), 1);
    }

    #[test]
    fn a_guest_that_takes_too_much_waits() {
        let ram = TestDriver::memory();
        let mut device = Rng::new(ram, Arc::default());
        let mut driver = TestDriver::start(ram, &mut device);
        let mut given = 0;
        let wait = loop {
            driver.queues[0].add(&[], &[(BUFFERS, 4096)]);
            let wait = device.process();
            given += driver.queues[0].used().map_or(0, |(_, written)| written);
            if wait.is_some() {
                break wait;
            }
        };
        assert_eq!(given as usize, BURST);
        assert_eq!(wait, Some(Duration::from_millis(REFILL_MILLIS)));
        driver.queues[0].add(&[], &[(BUFFERS, 4096)]);
        assert!(device.process().is_some());
        assert!(driver.queues[0].used().is_none());
        assert_eq!(device.refill(), None);
        assert!(driver.queues[0].used().is_some());
    }
}
