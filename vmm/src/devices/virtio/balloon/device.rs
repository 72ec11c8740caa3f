//! The balloon.

use std::sync::Arc;

use virtio_queue::Queue;

use super::config::{
    self, DEFLATE, FEATURES, INFLATE, MAX_PAGES, QUEUE_SIZE, QUEUE_SIZES, REPORTING,
};
use super::metrics::BalloonCounters;
use super::persist::SavedBalloon;
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::le::u32_at;
use crate::memory::{GuestRam, PAGE};

/// The balloon device.
pub struct Balloon {
    ram: GuestRam,
    config: [u8; 8],
    counters: Arc<BalloonCounters>,
    chain: Chain,
    live: Option<(Vec<Ring>, Arc<Interrupt>)>,
}

impl Balloon {
    /// A balloon without air.
    pub fn new(ram: GuestRam, counters: Arc<BalloonCounters>) -> Self {
        Self {
            ram,
            config: config::space(0),
            counters,
            chain: Chain::default(),
            live: None,
        }
    }

    /// Asks the guest to do without this many pages.
    pub fn set_target(&mut self, pages: u32) {
        self.config = config::space(pages);
        if let Some((_, interrupt)) = &self.live {
            interrupt.signal_config();
        }
    }

    /// What must be known to go on later, in another process.
    pub fn save(&self) -> SavedBalloon {
        SavedBalloon {
            target: u32_at(&self.config, 0),
        }
    }

    /// Goes on from a saved balloon.
    pub fn restore(&mut self, saved: SavedBalloon) {
        self.config = config::space(saved.target);
    }

    /// Carries out the requests in the queues, at most a queue's worth of each; `true`
    /// when there may be more.
    pub fn process(&mut self) -> bool {
        let Some((mut rings, interrupt)) = self.live.take() else {
            return false;
        };
        let mut more = false;
        for (index, ring) in rings.iter_mut().enumerate() {
            more |= self.serve_queue(index, ring);
            ring.notify(&interrupt);
        }
        self.live = Some((rings, interrupt));
        more
    }

    fn serve_queue(&mut self, index: usize, ring: &mut Ring) -> bool {
        let mut chain = std::mem::take(&mut self.chain);
        let more = ring.each(QUEUE_SIZE.into(), &mut chain, |ring, chain| {
            match index {
                INFLATE => self.inflate(chain),
                DEFLATE => self.deflate(chain),
                REPORTING => self.report(chain),
                _ => {}
            }
            // Nothing is written to the guest's buffers.
            ring.push(chain.head, 0);
        });
        self.chain = chain;
        more
    }

    /// Gives the pages back that the guest names by number.
    fn inflate(&self, chain: &Chain) {
        let (bytes, length) = self.page_numbers(chain);
        let mut pages: Vec<u64> = bytes[..length]
            .chunks_exact(4)
            .map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]]).into())
            .collect();
        // A call for each run of pages, whatever order they come in.
        pages.sort_unstable();
        pages.dedup();
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            let length = run.len() as u64 * PAGE;
            match self.ram.discard(run[0] * PAGE, length) {
                Ok(()) => self.counters.inflated_bytes.add(length),
                Err(_) => self.counters.errors.add(1),
            }
        }
    }

    /// The guest takes pages back: they are there when it touches them.
    fn deflate(&self, chain: &Chain) {
        let (_, length) = self.page_numbers(chain);
        self.counters.deflated_bytes.add(length as u64 / 4 * PAGE);
    }

    /// The numbers of a request's pages, as bytes, and how many bytes they are.
    fn page_numbers(&self, chain: &Chain) -> ([u8; 4 * MAX_PAGES], usize) {
        let mut bytes = [0; 4 * MAX_PAGES];
        let length = chain.readable.copy_to(0, &mut bytes);
        if length == 0 || !length.is_multiple_of(4) || length < chain.readable.len() {
            self.counters.errors.add(1);
        }
        (bytes, length)
    }

    /// The request's own buffers are the free pages.
    fn report(&self, chain: &Chain) {
        match chain.writable.discard() {
            Ok(bytes) if bytes > 0 => self.counters.reported_bytes.add(bytes as u64),
            Ok(_) | Err(_) => self.counters.errors.add(1),
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        device_type::BALLOON
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, driver: Driver) {
        let rings = driver.queues.into_iter();
        let rings = rings.map(|queue| Ring::new(queue, self.ram)).collect();
        self.live = Some((rings, driver.interrupt));
    }

    fn reset(&mut self) {
        self.live = None;
    }

    fn park(&mut self) -> Option<Vec<Queue>> {
        let (rings, _) = self.live.take()?;
        Some(rings.into_iter().map(Ring::into_queue).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, RAM_SIZE, TestDriver};

    const MIB: u64 = 1 << 20;

    struct Bench {
        device: Balloon,
        driver: TestDriver,
        counters: Arc<BalloonCounters>,
    }

    impl Bench {
        /// A guest that has written to all memory behind its buffers.
        fn new() -> Self {
            let ram = TestDriver::memory();
            ram.put(2 * MIB, &vec![7; (RAM_SIZE - 2 * MIB) as usize])
                .unwrap();
            let counters = Arc::new(BalloonCounters::default());
            let mut device = Balloon::new(ram, counters.clone());
            let driver = TestDriver::start(ram, &mut device);
            Self {
                device,
                driver,
                counters,
            }
        }

        fn name_pages(&mut self, queue: usize, pages: &[u32]) {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            self.driver.ram.put(BUFFERS, &bytes).unwrap();
            self.driver.queues[queue].add(&[(BUFFERS, bytes.len() as u32)], &[]);
            assert!(!self.device.process());
            assert!(self.driver.queues[queue].used().is_some());
        }

        fn byte(&self, address: u64) -> u8 {
            self.driver.read(address, 1)[0]
        }
    }

    #[test]
    fn pages_in_the_balloon_are_the_hosts() {
        let mut bench = Bench::new();
        bench.name_pages(INFLATE, &[0x303, 0x301, 0x302, 0x400]);
        let seen = [0x30_0fff, 0x30_1000, 0x30_3fff, 0x30_4000, 0x40_0000];
        assert_eq!(seen.map(|address| bench.byte(address)), [7, 0, 0, 7, 0]);
        bench.name_pages(DEFLATE, &[0x303]);
        let stats = bench.counters.stats();
        assert_eq!(
            (stats.inflated_bytes, stats.deflated_bytes, stats.errors),
            (4 * PAGE, PAGE, 0)
        );
    }

    #[test]
    fn reported_ranges_are_the_hosts() {
        let mut bench = Bench::new();
        let ranges = [(4 * MIB, MIB as u32), (6 * MIB, 0x2000)];
        bench.driver.queues[REPORTING].add(&[], &ranges);
        assert!(!bench.device.process());
        assert!(bench.driver.queues[REPORTING].used().is_some());
        let seen = [4 * MIB - 1, 4 * MIB, 5 * MIB - 1, 5 * MIB, 6 * MIB];
        assert_eq!(seen.map(|address| bench.byte(address)), [7, 0, 0, 7, 0]);
        assert_eq!(bench.counters.stats().reported_bytes, MIB + 0x2000);
        assert_eq!(bench.driver.interrupt.status(), 1);
    }

    #[test]
    fn what_is_no_memory_is_counted_and_the_rest_is_taken() {
        let mut bench = Bench::new();
        let end = (RAM_SIZE / PAGE) as u32;
        bench.name_pages(INFLATE, &[u32::MAX, end, end - 1, 0x301, 0x301]);
        assert_eq!(bench.byte(0x30_1000), 0);
        let stats = bench.counters.stats();
        // The last page and the one behind it are one run.
        assert_eq!((stats.inflated_bytes, stats.errors), (PAGE, 2));
        // One range outside of memory: the request is empty.
        let ranges = [(4 * MIB, 0x1000), (RAM_SIZE, 0x1000)];
        bench.driver.queues[REPORTING].add(&[], &ranges);
        bench.driver.queues[REPORTING].add(&[], &[(4 * MIB + 1, 100)]);
        // Page numbers where ranges belong, and nothing at all.
        bench.driver.queues[INFLATE].add(&[], &[(4 * MIB, 0x1000)]);
        bench.driver.queues[INFLATE].add(&[(BUFFERS, 3)], &[]);
        assert!(!bench.device.process());
        assert_eq!(bench.byte(4 * MIB), 7);
        let stats = bench.counters.stats();
        assert_eq!((stats.reported_bytes, stats.errors), (0, 6));
    }

    #[test]
    fn a_target_is_told() {
        let mut bench = Bench::new();
        bench.device.set_target(512);
        assert_eq!(bench.driver.interrupt.status(), 2);
        assert_eq!(bench.device.config()[..4], 512u32.to_le_bytes());
    }
}
