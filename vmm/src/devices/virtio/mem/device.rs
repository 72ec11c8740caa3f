//! The device that memory is plugged by.

use std::ops::Range;
use std::sync::Arc;

use virtio_queue::Queue;

use super::blocks::{Blocks, State};
use super::config::{BLOCK_SIZE, FEATURES, Numbers, QUEUE_SIZE, REQUIRED};
use super::metrics::MemCounters;
use super::persist::{Misfit, SavedMem};
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::kvm::KvmError;
use crate::le::{u16_at, u64_at};
use crate::memory::{BLOCK, GuestRam, MemoryError, Piece};

/// Types of requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Types of answers.
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// Sizes of `struct virtio_mem_req` and `struct virtio_mem_resp`.
const REQUEST_SIZE: usize = 24;
const ANSWER_SIZE: usize = 10;

/// Why the guest cannot have as much memory as it is to have.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// More than there is address space for.
    #[error("the VM cannot grow by {wanted} MiB: it was made to grow by {most} MiB at most")]
    TooMuch {
        /// MiB asked for.
        wanted: u64,
        /// MiB reserved.
        most: u64,
    },
    /// It cannot be made the guest's.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The same.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// What was saved is not this VM's.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

/// The device; without address space for its memory, the place of one.
pub struct Mem {
    ram: GuestRam,
    numbers: Numbers,
    config: [u8; 56],
    blocks: Blocks,
    /// Nobody was told yet that the guest has what was asked for last.
    awaited: bool,
    counters: Arc<MemCounters>,
    chain: Chain,
    live: Option<(Ring, Arc<Interrupt>)>,
}

impl Mem {
    /// A device over the address space that guest memory may grow into.
    pub fn new(ram: GuestRam, counters: Arc<MemCounters>) -> Self {
        let numbers = ram
            .hotplug()
            .map_or_else(Numbers::default, |hotplug| Numbers {
                start: hotplug.start(),
                region: hotplug.bytes(),
                ..Numbers::default()
            });
        Self {
            ram,
            numbers,
            config: numbers.space(),
            blocks: Blocks::new(numbers.region / BLOCK_SIZE),
            awaited: false,
            counters,
            chain: Chain::default(),
            live: None,
        }
    }

    /// Asks the guest to have this many bytes, whole blocks, beyond what it booted with.
    /// `show` makes memory the guest's that it could not reach before.
    pub fn resize(
        &mut self,
        bytes: u64,
        show: impl FnOnce(Piece) -> Result<(), KvmError>,
    ) -> Result<(), ResizeError> {
        let Numbers { region, usable, .. } = self.numbers;
        if bytes > region {
            return Err(ResizeError::TooMuch {
                wanted: bytes >> 20,
                most: region >> 20,
            });
        }
        // It never shrinks: the guest may have plugged any of it.
        let usable = usable.max(bytes.next_multiple_of(BLOCK).min(region));
        if usable > self.numbers.usable {
            self.ram
                .grow(usable, |piece| show(piece).map_err(ResizeError::from))?;
        }
        self.numbers.usable = usable;
        self.numbers.requested = bytes / BLOCK_SIZE * BLOCK_SIZE;
        self.counters.requested_bytes.set(self.numbers.requested);
        self.config = self.numbers.space();
        self.awaited = true;
        if let Some((_, interrupt)) = &self.live {
            interrupt.signal_config();
        }
        Ok(())
    }

    /// What must be known to go on later, in another process.
    pub fn save(&self) -> SavedMem {
        let blocks = self.numbers.usable / BLOCK_SIZE;
        SavedMem {
            usable: self.numbers.usable,
            requested: self.numbers.requested,
            plugged: self.blocks.words(blocks).to_vec(),
        }
    }

    /// Goes on from a saved device. `show`: as in [`Self::resize`].
    pub fn restore(
        &mut self,
        saved: &SavedMem,
        show: impl FnOnce(Piece) -> Result<(), KvmError>,
    ) -> Result<(), ResizeError> {
        let whole = saved.usable.is_multiple_of(BLOCK) && saved.usable <= self.numbers.region;
        let blocks = Blocks::of_words(&saved.plugged, self.numbers.region / BLOCK_SIZE);
        let blocks = blocks.filter(|blocks| {
            let beyond = saved.usable / BLOCK_SIZE..self.numbers.region / BLOCK_SIZE;
            whole && (beyond.is_empty() || blocks.state(beyond) == State::Unplugged)
        });
        self.blocks = blocks.ok_or(Misfit)?;
        self.numbers.usable = saved.usable;
        self.ram
            .grow(saved.usable, |piece| show(piece).map_err(ResizeError::from))?;
        self.numbers.requested = saved.requested;
        self.counters.requested_bytes.set(self.numbers.requested);
        self.count();
        Ok(())
    }

    /// Whether the guest has what was asked for, once for each [`Self::resize`].
    pub fn take_reached(&mut self) -> bool {
        let reached = self.awaited && self.numbers.plugged == self.numbers.requested;
        self.awaited &= !reached;
        reached
    }

    /// Carries out the requests in the queue, at most a queue's worth; `true` when there
    /// may be more.
    pub fn process(&mut self) -> bool {
        let Some((mut ring, interrupt)) = self.live.take() else {
            return false;
        };
        let mut chain = std::mem::take(&mut self.chain);
        let more = ring.each(QUEUE_SIZE.into(), &mut chain, |ring, chain| {
            let written = self.serve(chain);
            ring.push(chain.head, written);
            ring.notify(&interrupt);
        });
        self.chain = chain;
        self.live = Some((ring, interrupt));
        more
    }

    /// Carries out one request; returns the bytes written to the guest's buffers.
    fn serve(&mut self, chain: &Chain) -> u32 {
        let mut request = [0; REQUEST_SIZE];
        let mut answer = [0; ANSWER_SIZE];
        let whole = chain.readable.copy_to(0, &mut request) == REQUEST_SIZE;
        if !whole || chain.writable.len() < ANSWER_SIZE {
            self.counters.refused.add(1);
            return 0;
        }
        let said = self.carry_out(&request, &mut answer);
        if said == ACK {
            self.counters.requests.add(1);
        } else {
            self.counters.refused.add(1);
        }
        answer[..2].copy_from_slice(&said.to_le_bytes());
        chain.writable.copy_from(0, &answer) as u32
    }

    fn carry_out(&mut self, request: &[u8; REQUEST_SIZE], answer: &mut [u8; ANSWER_SIZE]) -> u16 {
        let kind = u16_at(request, 0);
        if kind == UNPLUG_ALL {
            return self.unplug_all();
        }
        let Some(range) = self.range(u64_at(request, 8), u16_at(request, 16)) else {
            return ERROR;
        };
        let state = self.blocks.state(range.clone());
        match (kind, state) {
            (PLUG, State::Unplugged) => self.plug(range),
            (UNPLUG, State::Plugged) => self.unplug(range),
            (STATE, state) => {
                let state: u16 = match state {
                    State::Plugged => 0,
                    State::Unplugged => 1,
                    State::Mixed => 2,
                };
                answer[8..].copy_from_slice(&state.to_le_bytes());
                ACK
            }
            _ => ERROR,
        }
    }

    /// Blocks by their guest address; `None`: they are none that can be plugged.
    fn range(&self, address: u64, count: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.numbers.start)?;
        if count == 0 || !offset.is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        let first = offset / BLOCK_SIZE;
        let end = first.checked_add(count.into())?;
        (end <= self.numbers.usable / BLOCK_SIZE).then_some(first..end)
    }

    fn plug(&mut self, range: Range<u64>) -> u16 {
        let bytes = (range.end - range.start) * BLOCK_SIZE;
        if self.numbers.plugged + bytes > self.numbers.requested {
            return NACK;
        }
        self.blocks.set(range, true);
        self.count();
        ACK
    }

    fn unplug(&mut self, range: Range<u64>) -> u16 {
        let start = self.numbers.start + range.start * BLOCK_SIZE;
        let length = (range.end - range.start) * BLOCK_SIZE;
        if self.ram.discard(start, length).is_err() {
            return BUSY;
        }
        self.blocks.set(range, false);
        self.count();
        ACK
    }

    fn unplug_all(&mut self) -> u16 {
        let Numbers { start, usable, .. } = self.numbers;
        if usable > 0 && self.ram.discard(start, usable).is_err() {
            return BUSY;
        }
        self.blocks.clear();
        self.count();
        ACK
    }

    /// Says how much is plugged. The driver knows: it is not told.
    fn count(&mut self) {
        self.numbers.plugged = self.blocks.plugged() * BLOCK_SIZE;
        self.counters.plugged_bytes.set(self.numbers.plugged);
        self.config = self.numbers.space();
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        match self.numbers.region {
            0 => device_type::NONE,
            _ => device_type::MEM,
        }
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn required_features(&self) -> u64 {
        REQUIRED
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

    /// What is plugged stays so: a driver that comes anew unplugs it.
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
    use crate::devices::virtio::testing::{BUFFERS, RAM_SIZE, TestDriver};
    use crate::memory::HIGH_START;

    const REGION: u64 = 4 * BLOCK;
    const ANSWER: u64 = BUFFERS + 0x1000;

    struct Bench {
        device: Mem,
        driver: TestDriver,
        counters: Arc<MemCounters>,
    }

    impl Bench {
        fn new() -> Self {
            let ram = GuestRam::with_hotplug(RAM_SIZE, REGION).unwrap();
            let counters = Arc::new(MemCounters::default());
            let mut device = Mem::new(ram, counters.clone());
            let driver = TestDriver::start(ram, &mut device);
            Self {
                device,
                driver,
                counters,
            }
        }

        fn resize(&mut self, bytes: u64) -> Vec<(u64, u64)> {
            let mut shown = Vec::new();
            let show = |piece: Piece| {
                shown.push((piece.start, piece.length));
                Ok(())
            };
            self.device.resize(bytes, show).unwrap();
            shown
        }

        /// The type of the answer, and the state in it.
        fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
            let mut request = [0; REQUEST_SIZE];
            request[..2].copy_from_slice(&kind.to_le_bytes());
            request[8..16].copy_from_slice(&address.to_le_bytes());
            request[16..18].copy_from_slice(&count.to_le_bytes());
            self.driver.ram.put(BUFFERS, &request).unwrap();
            self.driver.queues[0].add(
                &[(BUFFERS, REQUEST_SIZE as u32)],
                &[(ANSWER, ANSWER_SIZE as u32)],
            );
            assert!(!self.device.process());
            let used = self.driver.queues[0].used();
            assert_eq!(used.map(|(_, written)| written as usize), Some(ANSWER_SIZE));
            let answer = self.driver.read(ANSWER, ANSWER_SIZE);
            (u16_at(&answer, 0), u16_at(&answer, 8))
        }

        fn number(&self, offset: usize) -> u64 {
            u64_at(self.device.config(), offset)
        }
    }

    fn block(index: u64) -> u64 {
        HIGH_START + index * BLOCK_SIZE
    }

    #[test]
    fn memory_comes_and_goes() {
        let mut bench = Bench::new();
        assert_eq!(bench.device.device_type(), device_type::MEM);
        assert_eq!((bench.number(16), bench.number(24)), (HIGH_START, REGION));
        assert_eq!(bench.ask(PLUG, block(0), 1).0, ERROR);
        assert_eq!(bench.resize(6 * BLOCK_SIZE), [(HIGH_START, BLOCK)]);
        assert_eq!(bench.driver.interrupt.status() & 2, 2);
        assert_eq!(
            (bench.number(32), bench.number(48)),
            (BLOCK, 6 * BLOCK_SIZE)
        );
        assert_eq!(bench.ask(PLUG, block(0), 4).0, ACK);
        assert!(!bench.device.take_reached());
        assert_eq!(bench.ask(PLUG, block(10), 2).0, ACK);
        assert!(bench.device.take_reached() && !bench.device.take_reached());
        assert_eq!(bench.ask(PLUG, block(20), 1).0, NACK);
        assert_eq!(bench.ask(STATE, block(0), 4), (ACK, 0));
        assert_eq!(bench.ask(STATE, block(4), 6), (ACK, 1));
        assert_eq!(bench.ask(STATE, block(0), 12), (ACK, 2));

        bench.driver.ram.put(block(11), &[7]).unwrap();
        assert_eq!(bench.resize(4 * BLOCK_SIZE), []);
        assert_eq!(bench.ask(UNPLUG, block(10), 2).0, ACK);
        assert!(bench.device.take_reached());
        assert_eq!(bench.driver.read(block(11), 1), [0]);
        assert_eq!(bench.number(40), 4 * BLOCK_SIZE);
        assert_eq!(bench.ask(UNPLUG_ALL, 0, 0).0, ACK);
        let stats = bench.counters.stats();
        assert_eq!(
            (stats.plugged_bytes, stats.requested_bytes),
            (0, 4 * BLOCK_SIZE)
        );
    }

    #[test]
    fn what_the_guest_can_reach_grows_step_by_step() {
        let mut bench = Bench::new();
        bench.resize(BLOCK);
        assert_eq!(
            bench.resize(BLOCK + BLOCK_SIZE),
            [(HIGH_START + BLOCK, BLOCK)]
        );
        assert_eq!(bench.resize(0), []);
        let too_much = bench.device.resize(REGION + 1, |_| Ok(()));
        assert!(matches!(too_much, Err(ResizeError::TooMuch { .. })));
        let refused = bench
            .device
            .resize(REGION, |_| Err(KvmError::Missing("room")));
        assert!(matches!(refused, Err(ResizeError::Kvm(_))));
        assert_eq!((bench.number(32), bench.number(48)), (2 * BLOCK, 0));
    }

    #[test]
    fn requests_that_make_no_sense_change_nothing() {
        let mut bench = Bench::new();
        bench.resize(BLOCK);
        assert_eq!(bench.ask(PLUG, block(3), 2).0, ACK);
        let last = BLOCK / BLOCK_SIZE;
        for (kind, address, count) in [
            (PLUG, block(0), 0),
            (PLUG, block(0) + 1, 1),
            (PLUG, block(0) - BLOCK_SIZE, 1),
            (PLUG, 0, 1),
            (PLUG, u64::MAX, u16::MAX),
            (PLUG, block(last), 1),
            (PLUG, block(last - 1), 2),
            (PLUG, block(4), 2),
            (UNPLUG, block(2), 2),
            (UNPLUG, block(0), u16::MAX),
            (STATE, block(last), 1),
            (4, block(0), 1),
            (u16::MAX, block(0), 1),
        ] {
            let said = bench.ask(kind, address, count);
            assert_eq!(said, (ERROR, 0), "{kind} {address:#x} {count}");
        }
        assert_eq!(bench.number(40), 2 * BLOCK_SIZE);
        // Too short, both ways.
        bench.driver.queues[0].add(&[(BUFFERS, 23)], &[(ANSWER, 10)]);
        bench.driver.queues[0].add(&[(BUFFERS, 24)], &[(ANSWER, 9)]);
        assert!(!bench.device.process());
        for _ in 0..2 {
            assert_eq!(
                bench.driver.queues[0].used().map(|(_, length)| length),
                Some(0)
            );
        }
        assert_eq!(bench.counters.stats().refused, 15);
    }

    #[test]
    fn without_address_space_there_is_no_device() {
        let device = Mem::new(TestDriver::memory(), Arc::default());
        assert_eq!(device.device_type(), device_type::NONE);
    }

    #[test]
    fn what_was_plugged_is_so_in_another_vm() {
        let mut bench = Bench::new();
        bench.resize(BLOCK);
        assert_eq!(bench.ask(PLUG, HIGH_START + 2 * BLOCK_SIZE, 3).0, ACK);
        let saved = bench.device.save();
        let mut other = Bench::new();
        let mut shown = 0;
        let show = |piece: Piece| {
            shown += piece.length;
            Ok(())
        };
        other.device.restore(&saved, show).unwrap();
        assert_eq!(shown, BLOCK);
        assert_eq!(other.device.config(), bench.device.config());
        assert_eq!(other.device.save(), saved);
        assert_eq!(other.ask(STATE, HIGH_START + BLOCK_SIZE, 1), (ACK, 1));
        assert_eq!(other.ask(STATE, HIGH_START + 4 * BLOCK_SIZE, 1), (ACK, 0));

        for wrong in [
            SavedMem {
                usable: REGION + BLOCK,
                ..saved.clone()
            },
            SavedMem {
                usable: BLOCK - 1,
                ..saved.clone()
            },
            // Blocks beyond what is usable, and beyond all.
            SavedMem {
                usable: 0,
                ..saved.clone()
            },
            SavedMem {
                plugged: vec![u64::MAX; 100],
                ..saved.clone()
            },
        ] {
            let result = Bench::new().device.restore(&wrong, |_| Ok(()));
            assert!(matches!(result, Err(ResizeError::Misfit(_))), "{wrong:?}");
        }
    }
}
