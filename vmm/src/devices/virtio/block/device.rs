//! The block device: takes requests off its queue and carries them out, one by one.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;

use super::Disk;
use super::config::{self, QUEUE_SIZE};
use super::metrics::BlockCounters;
use super::request::{Refusal, Request};
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::memory::GuestRam;

/// Status byte of a request.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Length of a disk's serial number.
const SERIAL_SIZE: usize = 20;

/// Why a disk cannot be put behind a device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AttachError {
    /// There is one.
    #[error("the device has a disk already")]
    Taken,
    /// The guest still drives the device.
    #[error("the guest has not released the device: unbind it there first")]
    Bound,
}

/// A block device over some [`Disk`], or a place for one.
pub struct Block {
    ram: GuestRam,
    disk: Option<Box<dyn Disk>>,
    features: u64,
    config: Vec<u8>,
    counters: Arc<BlockCounters>,
    chain: Chain,
    live: Option<(Ring, Arc<Interrupt>)>,
}

impl Block {
    /// Puts a disk behind a device.
    pub fn new(ram: GuestRam, disk: Box<dyn Disk>, counters: Arc<BlockCounters>) -> Self {
        let mut device = Self::spare(ram, counters);
        device.set_disk(Some(disk));
        device
    }

    /// A place for a disk: not there for a driver until one is attached.
    pub fn spare(ram: GuestRam, counters: Arc<BlockCounters>) -> Self {
        Self {
            ram,
            features: config::features(None),
            config: config::space(None),
            disk: None,
            counters,
            chain: Chain::default(),
            live: None,
        }
    }

    /// Puts a disk behind a device that has none and that no driver uses.
    pub fn attach(&mut self, disk: Box<dyn Disk>) -> Result<(), AttachError> {
        self.check_free()?;
        self.set_disk(Some(disk));
        Ok(())
    }

    /// Whether there is a disk.
    pub fn attached(&self) -> bool {
        self.disk.is_some()
    }

    /// Whether a disk can be attached.
    pub fn check_free(&self) -> Result<(), AttachError> {
        if self.disk.is_some() {
            return Err(AttachError::Taken);
        }
        // Its driver believes in the features of the disk before.
        if self.live.is_some() {
            return Err(AttachError::Bound);
        }
        Ok(())
    }

    /// Puts the disk of a machine that was restored, or that has not run yet, in its
    /// place: one like that of before, as a driver may be there.
    pub fn replace(&mut self, disk: Box<dyn Disk>) {
        self.set_disk(Some(disk));
    }

    /// Takes the disk away. A driver that stays gets I/O errors.
    pub fn detach(&mut self) -> Option<Box<dyn Disk>> {
        let disk = self.disk.take();
        self.set_disk(None);
        disk
    }

    fn set_disk(&mut self, disk: Option<Box<dyn Disk>>) {
        self.features = config::features(disk.as_deref());
        self.config = config::space(disk.as_deref());
        self.disk = disk;
    }

    /// Carries out all requests in the queue. At most one queue's worth, so that the
    /// other disk gets its turn; `true` when there may be more.
    pub fn process(&mut self) -> bool {
        let Some((mut ring, interrupt)) = self.live.take() else {
            return false;
        };
        let mut chain = std::mem::take(&mut self.chain);
        ring.disable_kicks();
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
    fn serve(&self, chain: &mut Chain) -> u32 {
        let disk = self.disk.as_deref();
        let request = Request::parse(chain, disk.map_or(0, Disk::capacity));
        let (status, data) = match request.map(|request| (request, disk)) {
            Ok((_, None)) => (IO_ERROR, 0),
            Ok((request, Some(disk))) => match self.carry_out(disk, request, chain) {
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
        chain
            .writable
            .copy_from(chain.writable.len() - 1, &[status]);
        // A chain is shorter than 4 GiB.
        data as u32 + 1
    }

    /// Returns the data bytes written to the guest.
    fn carry_out(&self, disk: &dyn Disk, request: Request, chain: &mut Chain) -> io::Result<usize> {
        let counters = &self.counters;
        match request {
            Request::Read { offset, length } => {
                disk.read(&mut chain.writable, 0..length, offset)?;
                counters.reads.add(1);
                counters.read_bytes.add(length as u64);
                return Ok(length);
            }
            Request::GetId => {
                let mut serial = [0; SERIAL_SIZE];
                let name = disk.serial().as_bytes();
                serial[..name.len()].copy_from_slice(name);
                let room = (chain.writable.len() - 1).min(SERIAL_SIZE);
                return Ok(chain.writable.copy_from(0, &serial[..room]));
            }
            _ if disk.read_only() => {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            Request::Write {
                offset,
                start,
                length,
            } => {
                let range = start..start + length;
                disk.write(&mut chain.readable, range, offset)?;
                counters.writes.add(1);
                counters.written_bytes.add(length as u64);
            }
            Request::Flush => {
                disk.flush()?;
                counters.flushes.add(1);
            }
            Request::Discard(ranges) => {
                for (offset, length) in ranges {
                    disk.discard(offset, length)?;
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
        match self.disk {
            Some(_) => device_type::BLOCK,
            None => device_type::NONE,
        }
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

    fn park(&mut self) -> Option<Vec<Queue>> {
        let (ring, _) = self.live.take()?;
        Some(vec![ring.into_queue()])
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::super::{FileDisk, Window};
    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, TestDriver};
    use crate::sys;

    const HEADER: u64 = BUFFERS;
    const DATA: u64 = BUFFERS + 0x1000;
    const STATUS: u64 = BUFFERS + 0x10_0000;

    struct Bench {
        device: Block,
        driver: TestDriver,
    }

    impl Bench {
        fn new(disk: Box<dyn Disk>) -> Self {
            let ram = TestDriver::memory();
            let mut device = Block::new(ram, disk, Arc::default());
            let driver = TestDriver::start(ram, &mut device);
            Self { device, driver }
        }

        fn scratch() -> Self {
            let file = File::from(sys::memory_file(c"scratch").unwrap());
            file.set_len(1 << 20).unwrap();
            Self::new(Box::new(FileDisk::scratch(file, 1 << 20).unwrap()))
        }

        /// Carries out one request; returns status and bytes written.
        fn request(
            &mut self,
            kind: u32,
            sector: u64,
            out: &[(u64, u32)],
            into: &[(u64, u32)],
        ) -> (u8, u32) {
            let ram = self.driver.ram;
            ram.put(HEADER, &kind.to_le_bytes()).unwrap();
            ram.put(HEADER + 8, &sector.to_le_bytes()).unwrap();
            ram.put(STATUS, &[0xff]).unwrap();
            let readable = [&[(HEADER, 16)], out].concat();
            let writable = [into, &[(STATUS, 1)]].concat();
            let queue = &mut self.driver.queues[0];
            let head = queue.add(&readable, &writable);
            assert!(!self.device.process());
            let (name, written) = queue.used().expect("every request comes back");
            assert_eq!(name, head);
            (self.driver.read(STATUS, 1)[0], written)
        }
    }

    #[test]
    fn what_is_written_is_read_in_other_pieces() {
        let mut bench = Bench::scratch();
        let bytes: Vec<u8> = (0..4096u32).map(|i| (i / 7) as u8).collect();
        bench.driver.ram.put(DATA, &bytes).unwrap();
        let pieces = [(DATA, 1000), (DATA + 1000, 3096)];
        assert_eq!(bench.request(1, 8, &pieces, &[]), (0, 1));
        let pieces = [(DATA + 0x8000, 2048), (DATA + 0x9000, 2048)];
        assert_eq!(bench.request(0, 8, &[], &pieces), (0, 4097));
        assert_eq!(bench.driver.read(DATA + 0x8000, 2048), bytes[..2048]);
        assert_eq!(bench.driver.read(DATA + 0x9000, 2048), bytes[2048..]);
        assert_eq!(bench.request(4, 0, &[], &[]), (0, 1));
        assert_eq!(bench.driver.interrupt.status(), 1);
        let stats = bench.device.counters.stats();
        assert_eq!((stats.reads, stats.writes, stats.flushes), (1, 1, 1));
        assert_eq!((stats.read_bytes, stats.written_bytes), (4096, 4096));
    }

    #[test]
    fn discarded_sectors_read_as_zeros() {
        let mut bench = Bench::scratch();
        bench.driver.ram.put(DATA, &[7; 8192]).unwrap();
        assert_eq!(bench.request(1, 0, &[(DATA, 8192)], &[]).0, 0);
        let mut segment = 0u64.to_le_bytes().to_vec();
        segment.extend_from_slice(&8u32.to_le_bytes());
        segment.extend_from_slice(&0u32.to_le_bytes());
        bench.driver.ram.put(DATA, &segment).unwrap();
        assert_eq!(bench.request(11, 0, &[(DATA, 16)], &[]).0, 0);
        assert_eq!(bench.request(0, 7, &[], &[(DATA, 1024)]).0, 0);
        let bytes = bench.driver.read(DATA, 1024);
        assert!(bytes[..512] == [0; 512] && bytes[512..] == [7; 512]);
    }

    #[test]
    fn refuses_what_is_beyond_the_disk_or_unknown() {
        let mut bench = Bench::scratch();
        assert_eq!(bench.request(0, 2048, &[], &[(DATA, 512)]), (1, 1));
        assert_eq!(bench.request(1, 2047, &[(DATA, 1024)], &[]), (1, 1));
        assert_eq!(bench.request(77, 0, &[], &[]), (2, 1));
        assert_eq!(bench.device.counters.stats().errors, 3);
    }

    #[test]
    fn buffers_outside_of_memory_come_back_untouched() {
        let mut bench = Bench::scratch();
        let queue = &mut bench.driver.queues[0];
        queue.add(&[(HEADER, 16)], &[(u64::MAX - 100, 512), (STATUS, 1)]);
        queue.add(&[], &[]);
        assert!(!bench.device.process());
        let queue = &mut bench.driver.queues[0];
        assert_eq!(queue.used().map(|(_, written)| written), Some(0));
        assert_eq!(queue.used().map(|(_, written)| written), Some(0));
    }

    #[test]
    fn an_impossible_index_is_no_work() {
        let mut bench = Bench::scratch();
        // The index of the available ring, 0x8000 requests ahead.
        bench.driver.queues[0].scribble(0x4002, &0x8000u16.to_le_bytes());
        assert!(!bench.device.process());
        bench.driver.queues[0].scribble(0x4002, &[0, 0]);
        assert_eq!(bench.request(4, 0, &[], &[]), (0, 1));
    }

    #[test]
    fn the_window_shows_images_and_takes_no_writes() {
        let window = Window::new();
        let mut bench = Bench::new(Box::new(window.clone()));
        let mut file = File::from(sys::memory_file(c"image").unwrap());
        file.write_all(&[5; 4096]).unwrap();
        window.map(1 << 20, 4096, file).unwrap();
        assert_eq!(bench.request(0, 2048, &[], &[(DATA, 4096)]), (0, 4097));
        assert_eq!(bench.driver.read(DATA, 4096), [5; 4096]);
        assert_eq!(bench.request(1, 2048, &[(DATA, 512)], &[]).0, 1);
        assert_eq!(bench.request(8, 0, &[], &[(DATA, 20)]), (0, 21));
        assert_eq!(bench.driver.read(DATA, 7), b"window\0");
        let capacity = u64::from_le_bytes(bench.device.config()[..8].try_into().unwrap());
        assert_eq!(capacity * 512, 16 << 40);
    }

    fn volume(read_only: bool) -> (FileDisk, File) {
        let file = File::from(sys::memory_file(c"volume").unwrap());
        file.set_len(1 << 20).unwrap();
        let same = file.try_clone().unwrap();
        let disk = FileDisk::volume(file, 4096, read_only).unwrap();
        (disk, same)
    }

    #[test]
    fn a_spare_device_is_there_while_it_has_a_disk() {
        let ram = TestDriver::memory();
        let mut device = Block::spare(ram, Arc::default());
        assert_eq!(device.device_type(), device_type::NONE);
        device.attach(Box::new(volume(false).0)).unwrap();
        assert_eq!(device.device_type(), device_type::BLOCK);
        assert_eq!(device.config()[..8], 8u64.to_le_bytes());
        let error = device.attach(Box::new(volume(false).0));
        assert_eq!(error, Err(AttachError::Taken));
        assert!(device.detach().is_some());
        assert_eq!(device.device_type(), device_type::NONE);
        assert!(device.detach().is_none());
    }

    #[test]
    fn a_driver_that_stays_gets_errors_and_blocks_the_place() {
        let (disk, file) = volume(false);
        let mut bench = Bench::new(Box::new(disk));
        bench.driver.ram.put(DATA, &[7; 512]).unwrap();
        assert_eq!(bench.request(1, 7, &[(DATA, 512)], &[]), (0, 1));
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_at(&file, &mut byte, 7 * 512).unwrap();
        assert_eq!(byte, [7]);
        assert_eq!(bench.request(1, 8, &[(DATA, 512)], &[]), (1, 1));
        drop(bench.device.detach());
        for kind in [0, 4, 8] {
            assert_eq!(bench.request(kind, 0, &[], &[(DATA, 512)]), (1, 1));
        }
        let again = bench.device.attach(Box::new(volume(true).0));
        assert_eq!(again, Err(AttachError::Bound));
        bench.device.reset();
        bench.device.attach(Box::new(volume(true).0)).unwrap();
        bench.driver = TestDriver::start(bench.driver.ram, &mut bench.device);
        assert_ne!(bench.device.features() & config::F_RO, 0);
        assert_eq!(bench.request(1, 0, &[(DATA, 512)], &[]), (1, 1));
        assert_eq!(bench.request(0, 0, &[], &[(DATA, 512)]), (0, 513));
    }

    #[test]
    fn a_volume_has_whole_sectors() {
        for size in [0, 511, 4097, u64::MAX - 511] {
            let file = File::from(sys::memory_file(c"volume").unwrap());
            assert!(FileDisk::volume(file, size, false).is_err());
        }
    }
}
