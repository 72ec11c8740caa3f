//! The virtio-mmio transport (specification 4.2): the register window of a device.
//! Queue notifications never come here: KVM turns them into an eventfd.

use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::persist::{RestoreError, SavedQueue, SavedTransport};
use super::{Driver, Interrupt, VirtioDevice, feature};
use crate::memory::GuestRam;

/// "virt" in little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "JOEY" in little endian.
const VENDOR: u32 = 0x5945_4f4a;

/// Offset of the register that kicks a queue.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Offset of the configuration space.
const CONFIG: u64 = 0x100;

/// Bits of the device status.
mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// What the driver wrote so far.
struct Registers {
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue: u32,
    queues: Vec<Queue>,
    /// The device's own queues while it is parked.
    parked: Option<Vec<Queue>>,
}

/// A device's registers, shared by all vCPUs.
pub struct Transport {
    ram: GuestRam,
    device: Arc<Mutex<dyn VirtioDevice>>,
    interrupt: Arc<Interrupt>,
    kick: EventFd,
    registers: Mutex<Registers>,
}

impl Transport {
    /// Puts a device behind registers. `kick` is what the driver's notifications write.
    pub fn new(
        ram: GuestRam,
        device: Arc<Mutex<dyn VirtioDevice>>,
        interrupt: Arc<Interrupt>,
        kick: EventFd,
    ) -> Self {
        let queues = new_queues(lock(&device).queue_sizes());
        Self {
            ram,
            device,
            interrupt,
            kick,
            registers: Mutex::new(Registers::new(queues)),
        }
    }

    /// Parks the device and takes everything down. [`Self::resume`] goes on.
    pub fn save(&self) -> SavedTransport {
        let mut registers = lock(&self.registers);
        let parked = lock(&self.device).park();
        // Saved once more without going on in between, it is parked already.
        registers.parked = parked.or(registers.parked.take());
        let saved = |queues: &Vec<Queue>| queues.iter().map(SavedQueue::of).collect();
        SavedTransport {
            status: registers.status,
            device_features_page: registers.device_features_page,
            driver_features_page: registers.driver_features_page,
            driver_features: registers.driver_features,
            queue: registers.queue,
            interrupt: self.interrupt.status(),
            generation: self.interrupt.generation(),
            queues: saved(&registers.queues),
            live: registers.parked.as_ref().map(saved),
        }
    }

    /// Becomes a device that was saved; [`Self::resume`] sets it to work. `index`: its
    /// place among the devices, for the error's text.
    pub fn restore(&self, saved: &SavedTransport, index: usize) -> Result<(), RestoreError> {
        let sizes = lock(&self.device).queue_sizes();
        let queues = |list: &[SavedQueue]| -> Option<Vec<Queue>> {
            let queues = sizes
                .iter()
                .zip(list)
                .map(|(size, saved)| saved.queue(*size));
            queues
                .collect::<Option<Vec<_>>>()
                .filter(|_| list.len() == sizes.len())
        };
        let impossible = || RestoreError::Queues(index);
        let live = saved.live.as_deref().map(|live| {
            let valid = |list: &Vec<Queue>| list.iter().all(|queue| queue.is_valid(&*self.ram));
            queues(live).filter(valid).ok_or_else(impossible)
        });
        *lock(&self.registers) = Registers {
            status: saved.status,
            device_features_page: saved.device_features_page,
            driver_features_page: saved.driver_features_page,
            driver_features: saved.driver_features,
            queue: saved.queue,
            queues: queues(&saved.queues).ok_or_else(impossible)?,
            parked: live.transpose()?,
        };
        self.interrupt.restore(saved.interrupt, saved.generation);
        Ok(())
    }

    /// Sets a parked device to work. `index`: as in [`Self::restore`].
    pub fn resume(&self, index: usize) -> Result<(), RestoreError> {
        let mut registers = lock(&self.registers);
        let mut device = lock(&self.device);
        let Some(queues) = registers.parked.take() else {
            return Ok(());
        };
        let features = registers.driver_features;
        if features & !device.features() != 0 {
            return Err(RestoreError::Features(index));
        }
        device.activate(Driver {
            queues,
            features,
            interrupt: Arc::clone(&self.interrupt),
        });
        // Requests may have come while nobody looked. It fails only when it is
        // readable already.
        let _ = self.kick.write(1);
        Ok(())
    }

    /// The guest reads. Registers are 32 bits wide; the configuration space is bytes.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            data.fill(0);
            let device = lock(&self.device);
            let start = usize::try_from(offset - CONFIG).unwrap_or(usize::MAX);
            if let Some(rest) = device.config().get(start..) {
                let count = rest.len().min(data.len());
                data[..count].copy_from_slice(&rest[..count]);
            }
            return;
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    /// The guest writes. The configuration space of our devices is read-only.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        // The interrupt handler's registers first, and without a lock: a device that
        // is busy must not hold up the CPU.
        if offset == 0x60 {
            return self.interrupt.status();
        }
        let registers = lock(&self.registers);
        let queue = registers.queues.get(registers.queue as usize);
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => lock(&self.device).device_type(),
            0x0c => VENDOR,
            0x10 => match registers.device_features_page {
                0 => lock(&self.device).features() as u32,
                1 => (lock(&self.device).features() >> 32) as u32,
                _ => 0,
            },
            0x34 => queue.map_or(0, |queue| queue.max_size().into()),
            0x44 => queue.map_or(0, |queue| queue.ready().into()),
            0x70 => registers.status,
            0xfc => self.interrupt.generation(),
            // Shared memory regions: none, which a length of all ones says.
            0xb0..=0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == 0x64 {
            self.interrupt.acknowledge(value);
            return;
        }
        let mut registers = lock(&self.registers);
        match offset {
            0x14 => registers.device_features_page = value,
            0x20 => registers.write_features(value),
            0x24 => registers.driver_features_page = value,
            0x30 => registers.queue = value,
            0x70 => self.write_status(&mut registers, value),
            _ => registers.write_queue(offset, value),
        }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.reset(registers);
            return;
        }
        let added = value & !registers.status;
        // A driver sets bits, one after the other, and never clears one but by reset.
        registers.status |= value & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        let started = status::ACKNOWLEDGE | status::DRIVER;
        if added & status::FEATURES_OK != 0 && registers.status & started == started {
            let device = lock(&self.device);
            let chosen = registers.driver_features;
            let acceptable = chosen & !device.features() == 0
                && chosen & device.required_features() == device.required_features();
            if acceptable {
                registers.status |= status::FEATURES_OK;
            }
        }
        if added & status::DRIVER_OK != 0 && registers.status & status::FEATURES_OK != 0 {
            registers.status |= status::DRIVER_OK;
            if !self.activate(registers) {
                registers.status |= status::NEEDS_RESET;
            }
        }
    }

    /// Hands the queues to the device; `false` when one of them is unusable.
    fn activate(&self, registers: &mut Registers) -> bool {
        let features = registers.driver_features;
        for queue in &mut registers.queues {
            queue.set_event_idx(features & feature::EVENT_IDX != 0);
            if !queue.is_valid(&*self.ram) {
                return false;
            }
        }
        let mut device = lock(&self.device);
        let fresh = new_queues(device.queue_sizes());
        device.activate(Driver {
            queues: std::mem::replace(&mut registers.queues, fresh),
            features,
            interrupt: Arc::clone(&self.interrupt),
        });
        true
    }

    fn reset(&self, registers: &mut Registers) {
        let mut device = lock(&self.device);
        device.reset();
        self.interrupt.acknowledge(u32::MAX);
        *registers = Registers::new(new_queues(device.queue_sizes()));
    }
}

impl Registers {
    /// As after a reset.
    fn new(queues: Vec<Queue>) -> Self {
        Self {
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue: 0,
            queues,
            parked: None,
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = match self.driver_features_page {
            0 => (0, !0 << 32),
            1 => (32, u64::from(u32::MAX)),
            _ => return,
        };
        self.driver_features = self.driver_features & keep | u64::from(value) << shift;
    }

    /// Writes a register of the selected queue; only between FEATURES_OK and DRIVER_OK.
    fn write_queue(&mut self, offset: u64, value: u32) {
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue as usize) else {
            return;
        };
        match offset {
            // A size that is no power of two or too large is refused: the old one stays.
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

fn new_queues(sizes: &[u16]) -> Vec<Queue> {
    sizes
        .iter()
        .map(|size| Queue::new(*size).expect("queue sizes are powers of two"))
        .collect()
}

/// A panic ends the process, so no lock is ever poisoned.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[derive(Default)]
    struct Fake {
        driver: Option<Driver>,
        resets: usize,
    }

    impl VirtioDevice for Fake {
        fn device_type(&self) -> u32 {
            42
        }
        fn features(&self) -> u64 {
            feature::COMMON | 1
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[64, 16]
        }
        fn config(&self) -> &[u8] {
            &[1, 2, 3, 4, 5, 6]
        }
        fn activate(&mut self, driver: Driver) {
            self.driver = Some(driver);
        }
        fn reset(&mut self) {
            self.driver = None;
            self.resets += 1;
        }
        fn park(&mut self) -> Option<Vec<Queue>> {
            self.driver.take().map(|driver| driver.queues)
        }
    }

    struct Bench {
        transport: Transport,
        device: Arc<Mutex<Fake>>,
        interrupt: Arc<Interrupt>,
    }

    impl Bench {
        fn new() -> Self {
            let ram = GuestRam::allocate(1 << 20).unwrap();
            let device = Arc::new(Mutex::new(Fake::default()));
            let interrupt = Arc::new(Interrupt::new(EventFd::new(0).unwrap()));
            Self {
                transport: Transport::new(
                    ram,
                    device.clone(),
                    interrupt.clone(),
                    EventFd::new(0).unwrap(),
                ),
                device,
                interrupt,
            }
        }

        fn read(&self, offset: u64) -> u32 {
            let mut word = [0; 4];
            self.transport.read(offset, &mut word);
            u32::from_le_bytes(word)
        }

        fn write(&self, offset: u64, value: u32) {
            self.transport.write(offset, &value.to_le_bytes());
        }

        fn choose(&self, features: u64) {
            self.write(0x70, 1);
            self.write(0x70, 3);
            for page in 0..2u32 {
                self.write(0x24, page);
                self.write(0x20, (features >> (32 * page)) as u32);
            }
            self.write(0x70, 11);
        }

        fn set_up_queues(&self, base: u32) {
            for queue in 0..2 {
                self.write(0x30, queue);
                self.write(0x38, 16);
                self.write(0x80, base + queue * 0x3000);
                self.write(0x90, base + queue * 0x3000 + 0x1000);
                self.write(0xa0, base + queue * 0x3000 + 0x2000);
                self.write(0x44, 1);
            }
        }
    }

    #[test]
    fn identifies_itself() {
        let bench = Bench::new();
        assert_eq!(bench.read(0), u32::from_le_bytes(*b"virt"));
        assert_eq!((bench.read(4), bench.read(8)), (2, 42));
        bench.write(0x14, 1);
        assert_eq!(bench.read(0x10), 1);
        bench.write(0x14, 0);
        assert_eq!(bench.read(0x10), (feature::COMMON | 1) as u32);
        bench.write(0x30, 1);
        assert_eq!(bench.read(0x34), 16);
        bench.write(0x30, 2);
        assert_eq!(bench.read(0x34), 0);
    }

    #[test]
    fn a_whole_start_and_reset() {
        let bench = Bench::new();
        bench.choose(feature::VERSION_1 | feature::EVENT_IDX);
        assert_eq!(bench.read(0x70), 11);
        bench.set_up_queues(0x1_0000);
        bench.write(0x70, 15);
        assert_eq!(bench.read(0x70), 15);
        {
            let device = bench.device.lock().unwrap();
            let driver = device.driver.as_ref().unwrap();
            assert_eq!(driver.queues.len(), 2);
            assert!(driver.queues.iter().all(|q| q.size() == 16));
            assert!(driver.has(feature::EVENT_IDX) && !driver.has(feature::INDIRECT_DESC));
        }
        bench.interrupt.signal_used();
        assert_eq!(bench.read(0x60), 1);
        bench.write(0x64, 1);
        assert_eq!((bench.read(0x60), bench.read(0xfc)), (0, 0));
        bench.interrupt.signal_config();
        assert_eq!((bench.read(0x60), bench.read(0xfc)), (2, 1));
        bench.write(0x70, 0);
        assert_eq!(bench.read(0x70), 0);
        let device = bench.device.lock().unwrap();
        assert!(device.driver.is_none() && device.resets == 1);
    }

    #[test]
    fn refuses_features_that_were_not_offered_or_are_missing() {
        for features in [feature::VERSION_1 | 2, 1, 0] {
            let bench = Bench::new();
            bench.choose(features);
            assert_eq!(bench.read(0x70), 3);
            bench.write(0x70, 15);
            assert!(bench.device.lock().unwrap().driver.is_none());
        }
    }

    #[test]
    fn queues_outside_of_memory_need_a_reset() {
        let bench = Bench::new();
        bench.choose(feature::VERSION_1);
        bench.set_up_queues(0x000f_f000);
        bench.write(0x70, 15);
        assert_eq!(bench.read(0x70) & status::NEEDS_RESET, status::NEEDS_RESET);
        assert!(bench.device.lock().unwrap().driver.is_none());
    }

    #[test]
    fn features_and_queues_are_fixed_once_live() {
        let bench = Bench::new();
        bench.choose(feature::VERSION_1);
        bench.set_up_queues(0x1_0000);
        bench.write(0x70, 15);
        bench.write(0x24, 0);
        bench.write(0x20, u32::MAX);
        bench.write(0x30, 0);
        bench.write(0x44, 1);
        assert_eq!(bench.read(0x44), 0);
        bench.write(0x70, 15);
        let device = bench.device.lock().unwrap();
        assert_eq!(device.driver.as_ref().unwrap().features, feature::VERSION_1);
    }

    #[test]
    fn configuration_space_is_bytes_and_ends() {
        let bench = Bench::new();
        let mut data = [9; 4];
        bench.transport.read(0x104, &mut data);
        assert_eq!(data, [5, 6, 0, 0]);
        bench.transport.read(0x1000, &mut data);
        assert_eq!(data, [0; 4]);
        let mut odd = [9; 3];
        bench.transport.read(0, &mut odd);
        assert_eq!(odd, [0; 3]);
        bench.transport.write(0x70, &[1]);
        assert_eq!(bench.read(0x70), 0);
    }
}
