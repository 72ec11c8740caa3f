//! The file system device: copies requests of the guest to the daemon, and answers back.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{ARENA_SIZE, Backend, PLACES};
use super::config::{self, FEATURES, IN_HEADER, OUT_HEADER, QUEUE_SIZES, QUEUES};
use super::handshake::ARENA_ADDRESS;
use super::metrics::FsCounters;
use super::persist::SavedFs;
use super::ring::{Answer, Ring as BackendRing};
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::le::{u32_at, u64_at};
use crate::memory::{Arena, GuestRam, IoVec};
use crate::sys;

/// Requests and answers moved in one go, so that a guest that never stops cannot keep
/// its owner from taking the device's lock.
const BATCH: usize = 64;

/// Requests without an answer: FUSE_FORGET and FUSE_BATCH_FORGET.
const FORGETS: [u32; 2] = [2, 42];
/// What programs in the guest get when there is no daemon.
const EIO: i32 = 5;

/// Why a daemon cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is one.
    #[error("the sandbox has a file system daemon already: detach it first")]
    Taken,
    /// The guest still drives the device.
    #[error("the guest still uses the file system device: unmount and unbind it there first")]
    Bound,
    /// The arena cannot be mapped.
    #[error("cannot map the memory shared with the file system daemon: {0}")]
    Map(#[source] io::Error),
}

/// A request that the daemon works on.
struct Request {
    queue: usize,
    head: u16,
    unique: u64,
    /// Where the answer goes in guest memory.
    writable: IoVec,
    /// Which driver made it: an answer for one that is gone is dropped.
    driver: u64,
}

/// The daemon's queues.
struct Shared {
    arena: Arena,
    rings: [BackendRing<Request>; QUEUES],
}

/// The daemon behind the device.
struct Daemon {
    socket: OwnedFd,
    kicks: [EventFd; QUEUES],
    calls: [EventFd; QUEUES],
    /// `None`: it is lost. The descriptors stay open until it is detached, as they are
    /// waited for until then.
    shared: Option<Shared>,
}

/// What exists only while a driver is there.
struct Live {
    rings: [Ring; QUEUES],
    interrupt: Arc<Interrupt>,
}

/// The file system device.
pub struct Fs {
    ram: GuestRam,
    config: Vec<u8>,
    counters: Arc<FsCounters>,
    chain: Chain,
    daemon: Option<Daemon>,
    /// Counts the daemons, so that a late event of an earlier one is told apart.
    generation: u64,
    live: Option<Live>,
    /// Counts the drivers.
    driver: u64,
    /// Takes no requests, and tells when the daemon has none.
    held: Option<SyncSender<()>>,
    /// Where the daemon's queues stand that was there when the VM was saved.
    saved: SavedFs,
    loss: Option<String>,
    lost: EventFd,
}

impl Fs {
    /// A device without a daemon. `lost` is written when the daemon is lost.
    pub fn new(ram: GuestRam, lost: EventFd, counters: Arc<FsCounters>) -> Self {
        Self {
            ram,
            config: config::space(),
            counters,
            chain: Chain::default(),
            daemon: None,
            generation: 0,
            live: None,
            driver: 0,
            held: None,
            saved: SavedFs::default(),
            loss: None,
            lost,
        }
    }

    /// Whether there is a daemon.
    pub fn attached(&self) -> bool {
        self.daemon.is_some()
    }

    /// Whether there was a daemon and it is not believed any more.
    pub fn is_lost(&self) -> bool {
        self.attached() && self.shared().is_none()
    }

    /// Takes no requests any more; something is sent when the daemon has answered all that it
    /// has.
    pub fn hold(&mut self, idle: SyncSender<()>) {
        self.held = Some(idle);
        self.tell_idle();
    }

    /// Takes requests again.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// What must be known to go on later with the same daemon, in another process: of a device
    /// that is held and whose daemon has no request.
    pub fn save(&self) -> SavedFs {
        let made = |shared: &Shared| shared.rings.each_ref().map(BackendRing::made);
        SavedFs {
            made: self.shared().map(made),
        }
    }

    /// Goes on from a saved device: the next daemon is the one of then.
    pub fn restore(&mut self, saved: SavedFs) {
        self.saved = saved;
    }

    /// Puts a daemon behind the device; returns its generation.
    pub fn attach(&mut self, backend: Backend<OwnedFd>) -> Result<u64, AttachError> {
        if self.daemon.is_some() {
            return Err(AttachError::Taken);
        }
        if self.live.is_some() {
            return Err(AttachError::Bound);
        }
        let arena = Arena::map(backend.arena.as_fd(), ARENA_SIZE as usize);
        let arena = arena.map_err(AttachError::Map)?;
        let made = std::mem::take(&mut self.saved).made.unwrap_or_default();
        let ring = |queue: usize| BackendRing::new(PLACES[queue], ARENA_ADDRESS, made[queue]);
        self.daemon = Some(Daemon {
            socket: backend.socket,
            kicks: backend.kicks.map(sys::to_event),
            calls: backend.calls.map(sys::to_event),
            shared: Some(Shared {
                arena,
                rings: std::array::from_fn(ring),
            }),
        });
        self.generation += 1;
        Ok(self.generation)
    }

    /// Takes the daemon away; `false`: there was none. Requests that it has get EIO, and
    /// so do later ones of a driver that stays.
    pub fn detach(&mut self) -> bool {
        self.abandon();
        self.daemon.take().is_some()
    }

    /// What to wait for while there is a daemon: its socket's end, and its calls.
    pub fn events(&self) -> Option<(RawFd, [RawFd; QUEUES])> {
        let daemon = self.daemon.as_ref()?;
        let calls = [&daemon.calls[0], &daemon.calls[1]];
        Some((daemon.socket.as_raw_fd(), calls.map(AsRawFd::as_raw_fd)))
    }

    /// The daemon of this generation has called on a queue.
    pub fn called(&mut self, generation: u64, queue: usize) -> bool {
        match &self.daemon {
            Some(daemon) if generation == self.generation => {
                // Only the counter's reset matters, not its value.
                let _ = daemon.calls[queue % QUEUES].read();
                self.process()
            }
            _ => false,
        }
    }

    /// The socket of the daemon of this generation has ended.
    pub fn hung_up(&mut self, generation: u64) -> bool {
        if generation == self.generation {
            self.lose("the file system daemon has ended".into());
        }
        self.process()
    }

    /// Why the daemon was lost, once.
    pub fn take_loss(&mut self) -> Option<String> {
        self.loss.take()
    }

    /// Moves answers and requests; `true` when there may be more to move.
    pub fn process(&mut self) -> bool {
        let mut more = false;
        for queue in 0..QUEUES {
            more |= self.answer(queue);
        }
        for queue in 0..QUEUES {
            more |= self.forward(queue);
        }
        self.tell_idle();
        more
    }

    /// Gives the guest the daemon's answers.
    fn answer(&mut self, queue: usize) -> bool {
        for _ in 0..BATCH {
            let Some(shared) = self.daemon.as_mut().and_then(|d| d.shared.as_mut()) else {
                return false;
            };
            match shared.rings[queue].take(&shared.arena) {
                Ok(None) => {
                    self.notify(queue);
                    return false;
                }
                Ok(Some(answer)) => self.deliver(answer),
                Err(broken) => {
                    self.lose(format!("the file system daemon makes no sense: {broken}"));
                    return false;
                }
            }
        }
        self.notify(queue);
        true
    }

    fn deliver(&mut self, answer: Answer<Request>) {
        let Answer {
            what: request,
            offset,
            length,
        } = answer;
        let shared = self.daemon.as_ref().and_then(|d| d.shared.as_ref());
        let (Some(live), Some(shared)) = (&mut self.live, shared) else {
            return;
        };
        if request.driver != self.driver {
            return;
        }
        shared.arena.scatter(offset, length, &request.writable);
        // The ring has checked the length against the guest's descriptors.
        live.rings[request.queue].push(request.head, length as u32);
        self.counters.answer_bytes.add(length as u64);
    }

    /// Takes requests of the guest as long as there are slots for them.
    fn forward(&mut self, queue: usize) -> bool {
        if self.held.is_some() {
            return false;
        }
        let Some(mut live) = self.live.take() else {
            return false;
        };
        let ring = &mut live.rings[queue];
        ring.disable_kicks();
        let mut more = true;
        let mut kick = false;
        for _ in 0..BATCH {
            if !self.has_room(queue) {
                // The daemon's next answer goes on here.
                self.counters.waits.add(1);
                more = false;
                break;
            }
            if !ring.pop(&mut self.chain) {
                more = ring.enable_kicks();
                if !more {
                    break;
                }
                continue;
            }
            if self.hand_over(queue) {
                kick = true;
            } else {
                self.counters.errors.add(1);
                let written = refuse(&self.chain);
                ring.push(self.chain.head, written);
            }
        }
        ring.notify(&live.interrupt);
        self.live = Some(live);
        if let (true, Some(daemon)) = (kick, &self.daemon) {
            // It fails only when it is readable already.
            let _ = daemon.kicks[queue].write(1);
        }
        more
    }

    /// Whether another request can be dealt with; without a daemon all are refused.
    fn has_room(&self, queue: usize) -> bool {
        self.shared()
            .is_none_or(|shared| shared.rings[queue].has_room())
    }

    fn shared(&self) -> Option<&Shared> {
        self.daemon.as_ref()?.shared.as_ref()
    }

    fn tell_idle(&self) {
        let idle = |shared: &Shared| shared.rings.iter().all(BackendRing::is_idle);
        if let Some(held) = &self.held
            && self.shared().is_none_or(idle)
        {
            // Whoever waits needs to hear it once.
            let _ = held.try_send(());
        }
    }

    /// Gives the current chain to the daemon; `false`: it makes no sense or there is none.
    fn hand_over(&mut self, queue: usize) -> bool {
        let Some(shared) = self.daemon.as_mut().and_then(|d| d.shared.as_mut()) else {
            return false;
        };
        let Shared { arena, rings } = shared;
        let (length, room) = (self.chain.readable.len(), self.chain.writable.len());
        if length < IN_HEADER {
            return false;
        }
        let Some(prepared) = rings[queue].add(arena, &self.chain.readable, room) else {
            return false;
        };
        // What the guest changes from now on does not count.
        let header: [u8; 16] = arena.read(prepared.request);
        let opcode = u32_at(&header, 4);
        if room < OUT_HEADER && !(room == 0 && FORGETS.contains(&opcode)) {
            return false;
        }
        let request = Request {
            queue,
            head: self.chain.head,
            unique: unique(&header),
            writable: std::mem::take(&mut self.chain.writable),
            driver: self.driver,
        };
        rings[queue].publish(arena, &prepared, request);
        self.counters.requests.add(1);
        self.counters.request_bytes.add(length as u64);
        true
    }

    /// The daemon is not believed any more: what it has, and what comes, gets EIO.
    fn lose(&mut self, reason: String) {
        if self.abandon() {
            self.loss = Some(reason);
            // It fails only when it is readable already.
            let _ = self.lost.write(1);
        }
    }

    /// Gives back what the daemon has not answered; `false`: it has been done.
    fn abandon(&mut self) -> bool {
        let Some(daemon) = &mut self.daemon else {
            return false;
        };
        let Some(mut shared) = daemon.shared.take() else {
            return false;
        };
        if let Some(live) = &mut self.live {
            for request in shared.rings.iter_mut().flat_map(BackendRing::drain) {
                if request.driver == self.driver {
                    self.counters.errors.add(1);
                    let written = answer_error(&request.writable, request.unique);
                    live.rings[request.queue].push(request.head, written);
                }
            }
        }
        for queue in 0..QUEUES {
            self.notify(queue);
        }
        true
    }

    fn notify(&mut self, queue: usize) {
        if let Some(live) = &mut self.live {
            live.rings[queue].notify(&live.interrupt);
        }
    }
}

/// Answers a chain with EIO, if it has room for an answer; returns the bytes written.
fn refuse(chain: &Chain) -> u32 {
    let mut header = [0; 16];
    if chain.readable.copy_to(0, &mut header) < header.len() {
        return 0;
    }
    answer_error(&chain.writable, unique(&header))
}

/// The name of a request, by its header's start.
fn unique(header: &[u8; 16]) -> u64 {
    u64_at(header, 8)
}

/// Writes `struct fuse_out_header` with EIO; returns the bytes written.
fn answer_error(writable: &IoVec, unique: u64) -> u32 {
    if writable.len() < OUT_HEADER {
        return 0;
    }
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&(OUT_HEADER as u32).to_le_bytes());
    header[4..8].copy_from_slice(&(-EIO).to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    writable.copy_from(0, &header) as u32
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        match self.daemon {
            Some(_) => device_type::FS,
            None => device_type::NONE,
        }
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
        let queues: Option<[_; QUEUES]> = driver.queues.try_into().ok();
        self.driver += 1;
        // A daemon that has not come by now does not come.
        self.saved = SavedFs::default();
        self.live = queues.map(|queues| Live {
            rings: queues.map(|queue| Ring::new(queue, self.ram)),
            interrupt: driver.interrupt,
        });
    }

    fn reset(&mut self) {
        self.driver += 1;
        self.live = None;
    }

    /// Only when the daemon, if there is one, has no request: see [`Fs::hold`].
    fn park(&mut self) -> Option<Vec<Queue>> {
        let live = self.live.take()?;
        Some(live.rings.into_iter().map(Ring::into_queue).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::super::testing::{Seen, TestDaemon};
    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, TestDriver};

    const REQUEST: u64 = BUFFERS;
    const ANSWER: u64 = BUFFERS + 0x20_0000;

    struct Bench {
        device: Fs,
        driver: TestDriver,
        daemon: TestDaemon,
        lost: EventFd,
    }

    impl Bench {
        fn new() -> Self {
            let (daemon, backend) = TestDaemon::new();
            Self::with(daemon, backend)
        }

        fn with(daemon: TestDaemon, backend: Backend<OwnedFd>) -> Self {
            let ram = TestDriver::memory();
            let lost = sys::event().unwrap();
            let mut device = Fs::new(ram, lost.try_clone().unwrap(), Arc::default());
            device.attach(backend).unwrap();
            let driver = TestDriver::start(ram, &mut device);
            Self {
                device,
                driver,
                daemon,
                lost,
            }
        }

        /// Makes a request of these bytes with room for so many; returns its name.
        fn ask(&mut self, queue: usize, bytes: &[u8], room: u32) -> u16 {
            self.driver.ram.put(REQUEST, bytes).unwrap();
            let length = bytes.len() as u32;
            let readable = [(REQUEST, 40), (REQUEST + 40, length - 40)];
            let writable = [(ANSWER, 16), (ANSWER + 0x1000, room.saturating_sub(16))];
            let writable = &writable[..if room == 0 { 0 } else { 2 }];
            self.driver.queues[queue].add(&readable, writable)
        }

        fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
            self.driver.queues[queue].used()
        }

        /// The answer's header as length, error and name.
        fn header(&self) -> (u32, i32, u64) {
            let bytes = self.driver.read(ANSWER, 16);
            (
                u32::from_le_bytes(bytes[..4].try_into().unwrap()),
                i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
                u64::from_le_bytes(bytes[8..].try_into().unwrap()),
            )
        }
    }

    fn request(opcode: u32, unique: u64, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length).map(|index| (index / 5) as u8).collect();
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[8..16].copy_from_slice(&unique.to_le_bytes());
        bytes
    }

    #[test]
    fn requests_go_out_and_answers_come_back() {
        let mut bench = Bench::new();
        let bytes = request(16, 7, 80 + (1 << 20));
        let head = bench.ask(1, &bytes, 24);
        assert!(!bench.device.process());
        let seen = bench.daemon.next(1).unwrap();
        assert!(seen.request == bytes && seen.room == 24);
        assert_eq!(bench.used(1), None);
        let answer: Vec<u8> = (100..124).collect();
        bench.daemon.answer(1, &seen, &answer);
        assert!(!bench.device.called(1, 1));
        assert_eq!(bench.used(1), Some((head, 24)));
        assert_eq!(bench.driver.read(ANSWER, 16), answer[..16]);
        assert_eq!(bench.driver.read(ANSWER + 0x1000, 9)[..8], answer[16..]);
        assert_eq!(bench.driver.interrupt.status(), 1);
        let stats = bench.device.counters.stats();
        assert_eq!(
            (stats.requests, stats.answer_bytes, stats.errors),
            (1, 24, 0)
        );
    }

    #[test]
    fn what_overtakes_needs_no_answer() {
        let mut bench = Bench::new();
        let head = bench.ask(0, &request(2, 1, 48), 0);
        assert!(!bench.device.process());
        let seen = bench.daemon.next(0).unwrap();
        assert_eq!((seen.request.len(), seen.room), (48, 0));
        bench.daemon.answer(0, &seen, &[]);
        assert!(!bench.device.called(1, 0));
        assert_eq!(bench.used(0), Some((head, 0)));
    }

    #[test]
    fn requests_wait_for_slots_and_answers_may_come_in_any_order() {
        let mut bench = Bench::new();
        let count = 100;
        for unique in 0..count {
            bench.ask(1, &request(15, unique, 80), 4096);
            bench.device.process();
        }
        let next = |bench: &mut Bench| -> Vec<Seen> {
            std::iter::from_fn(|| bench.daemon.next(1)).collect()
        };
        let mut waiting = next(&mut bench);
        assert_eq!(waiting.len(), usize::from(PLACES[1].count));
        let mut answered = 0;
        while let Some(seen) = waiting.pop() {
            bench.daemon.answer(1, &seen, &[0; 16]);
            assert!(!bench.device.called(1, 1));
            assert!(bench.used(1).is_some());
            answered += 1;
            waiting.extend(next(&mut bench));
        }
        assert_eq!(answered, count);
        assert!(bench.device.counters.stats().waits > 0);
    }

    #[test]
    fn requests_that_make_no_sense_never_reach_the_daemon() {
        let mut bench = Bench::new();
        let ram = bench.driver.ram;
        ram.put(REQUEST, &request(26, 9, 40)).unwrap();
        let queue = &mut bench.driver.queues[1];
        queue.add(&[(REQUEST, 39)], &[(ANSWER, 100)]);
        queue.add(&[(REQUEST, 40)], &[(ANSWER, 15)]);
        queue.add(&[(REQUEST, 40)], &[]);
        queue.add(&[(REQUEST, 0x11_0000)], &[(ANSWER, 100)]);
        queue.add(&[(u64::MAX, 40)], &[(ANSWER, 100)]);
        assert!(!bench.device.process());
        assert_eq!(bench.daemon.next(1), None);
        let lengths: Vec<u32> = std::iter::from_fn(|| bench.used(1))
            .map(|(_, length)| length)
            .collect();
        assert_eq!(lengths, [16, 0, 0, 16, 0]);
        assert_eq!(bench.header(), (16, -5, 9));
        assert_eq!(bench.device.counters.stats().errors, 5);
    }

    #[test]
    fn a_daemon_that_dies_leaves_errors_and_no_waiting() {
        let mut bench = Bench::new();
        let head = bench.ask(1, &request(15, 77, 80), 4096);
        bench.device.process();
        drop(bench.daemon.socket.take());
        assert!(!bench.device.hung_up(1));
        assert_eq!(bench.used(1), Some((head, 16)));
        assert_eq!(bench.header(), (16, -5, 77));
        assert!(bench.lost.read().is_ok());
        assert!(bench.device.take_loss().unwrap().contains("ended"));
        let head = bench.ask(1, &request(15, 78, 80), 4096);
        bench.device.process();
        assert_eq!(bench.used(1), Some((head, 16)));
        assert_eq!(bench.header(), (16, -5, 78));
        // It is told once.
        assert!(!bench.device.hung_up(1));
        assert_eq!(bench.device.take_loss(), None);
    }

    #[test]
    fn a_daemon_that_makes_no_sense_is_not_believed() {
        type Deed = fn(&mut TestDaemon, &Seen);
        let cases: [(Deed, &str); 5] = [
            (|daemon, _| daemon.give_back(1, 1000, 0), "1000"),
            (|daemon, _| daemon.give_back(1, 1, 0), "(1)"),
            (|daemon, _| daemon.give_back(1, 2, 0), "(2)"),
            (
                |daemon, seen| daemon.give_back(1, seen.head.into(), 4097),
                "4097 bytes",
            ),
            (
                |daemon, seen| {
                    daemon.give_back(1, seen.head.into(), 16);
                    daemon.give_back(1, seen.head.into(), 16);
                },
                "more requests",
            ),
        ];
        for (deed, word) in cases {
            let mut bench = Bench::new();
            let head = bench.ask(1, &request(15, 5, 80), 4096);
            bench.device.process();
            let seen = bench.daemon.next(1).unwrap();
            deed(&mut bench.daemon, &seen);
            bench.device.called(1, 1);
            let reason = bench.device.take_loss().unwrap();
            assert!(reason.contains(word), "{reason}");
            assert_eq!(bench.used(1), Some((head, 16)), "{word}");
            assert_eq!(bench.header(), (16, -5, 5));
        }
    }

    #[test]
    fn answers_for_a_driver_that_is_gone_are_dropped() {
        let mut bench = Bench::new();
        bench.ask(1, &request(15, 5, 80), 4096);
        bench.device.process();
        let seen = bench.daemon.next(1).unwrap();
        bench.device.reset();
        bench.driver = TestDriver::start(bench.driver.ram, &mut bench.device);
        bench.daemon.answer(1, &seen, &[1; 16]);
        bench.device.called(1, 1);
        assert_eq!(bench.used(1), None);
        let head = bench.ask(1, &request(15, 6, 80), 4096);
        bench.device.process();
        let seen = bench.daemon.next(1).unwrap();
        bench.daemon.answer(1, &seen, &[1; 16]);
        bench.device.called(1, 1);
        assert_eq!(bench.used(1), Some((head, 16)));
    }

    #[test]
    fn a_daemon_goes_on_behind_another_device() {
        let (daemon, backend) = TestDaemon::new();
        let files = backend.borrow().into_list().into_iter();
        let kept = files.map(|file| file.try_clone_to_owned().unwrap());
        let kept = Backend::from_list(kept.collect()).unwrap();
        let mut bench = Bench::with(daemon, backend);
        let first = bench.ask(1, &request(15, 1, 80), 4096);
        bench.device.process();
        let (sender, idle) = sync_channel(1);
        bench.device.hold(sender);
        let second = bench.ask(1, &request(15, 2, 80), 4096);
        assert!(!bench.device.process());
        assert!(idle.try_recv().is_err(), "the daemon has a request");
        let seen = bench.daemon.next(1).unwrap();
        assert_eq!(bench.daemon.next(1), None, "it takes no more of them");
        bench.daemon.answer(1, &seen, &[1; 16]);
        assert!(!bench.device.called(1, 1));
        assert_eq!(bench.used(1), Some((first, 16)));
        idle.try_recv().unwrap();

        let saved = bench.device.save();
        assert_eq!(saved.made, Some([0, 1]));
        let queues = bench.device.park().unwrap();
        let lost = sys::event().unwrap();
        let mut device = Fs::new(bench.driver.ram, lost, Arc::default());
        device.restore(saved);
        device.attach(kept).unwrap();
        device.activate(Driver {
            queues,
            features: FEATURES,
            interrupt: Arc::clone(&bench.driver.interrupt),
        });
        bench.device = device;
        assert!(!bench.device.process());
        let seen = bench.daemon.next(1).unwrap();
        bench.daemon.answer(1, &seen, &[2; 16]);
        assert!(!bench.device.called(1, 1));
        assert_eq!(bench.used(1), Some((second, 16)));
        assert_eq!(bench.device.take_loss(), None);
        assert_eq!(bench.device.save().made, Some([0, 2]));
    }

    #[test]
    fn who_waits_for_a_daemon_that_dies_is_told() {
        let mut bench = Bench::new();
        bench.ask(1, &request(15, 1, 80), 4096);
        bench.device.process();
        let (sender, idle) = sync_channel(1);
        bench.device.hold(sender);
        assert!(idle.try_recv().is_err());
        bench.device.hung_up(1);
        idle.try_recv().unwrap();
        assert!(bench.device.is_lost());
        // Later requests are refused when it is released.
        let head = bench.ask(1, &request(15, 2, 80), 4096);
        bench.used(1);
        bench.device.process();
        assert_eq!(bench.used(1), None);
        bench.device.release();
        bench.device.process();
        assert_eq!(bench.used(1), Some((head, 16)));
    }

    #[test]
    fn one_daemon_at_a_time_and_none_under_a_driver() {
        let mut bench = Bench::new();
        let attach = |device: &mut Fs| device.attach(TestDaemon::new().1);
        assert_eq!(bench.device.device_type(), device_type::FS);
        let taken = attach(&mut bench.device);
        assert!(matches!(taken, Err(AttachError::Taken)));
        assert!(bench.device.detach() && !bench.device.detach());
        assert_eq!(bench.device.device_type(), device_type::NONE);
        let bound = attach(&mut bench.device);
        assert!(matches!(bound, Err(AttachError::Bound)));
        bench.device.reset();
        assert_eq!(attach(&mut bench.device).unwrap(), 2);
        // An event of the daemon before.
        bench.device.hung_up(1);
        assert_eq!(bench.device.take_loss(), None);
    }
}
