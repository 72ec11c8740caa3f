//! Virtio devices (version 1.2 of the specification) behind virtio-mmio.

pub mod balloon;
pub mod block;
pub mod fs;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod persist;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

/// Feature bits that belong to no device type.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device of ours offers.
    pub const COMMON: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// Device type numbers of the specification.
pub mod device_type {
    /// A place without a device: a driver leaves it alone.
    pub const NONE: u32 = 0;
    /// Network card.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Entropy source.
    pub const RNG: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Socket device.
    pub const VSOCK: u32 = 19;
    /// Memory that is plugged and unplugged.
    pub const MEM: u32 = 24;
    /// File system.
    pub const FS: u32 = 26;
}

/// Bits of the interrupt status register.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// A device's interrupt line, with the status register that says why it was raised.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    /// Of the configuration space.
    generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `line`.
    pub fn new(line: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the driver that buffers were used.
    pub fn signal_used(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the configuration space has changed. Called while nobody can
    /// read it: a driver that reads it in parts must see the new generation with the new
    /// content.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        // Only a counter that is about to overflow makes this fail, and then the
        // interrupt is pending already.
        let _ = self.line.write(1);
    }

    /// Raises it anew for reasons that a saved driver had not acknowledged: how far the
    /// interrupt had come is not known, and one too many does no harm.
    pub fn restore(&self, reasons: u32, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
        self.status.store(reasons, Ordering::SeqCst);
        if reasons != 0 {
            let _ = self.line.write(1);
        }
    }

    /// The reasons that the driver has not acknowledged yet.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// How often the configuration space has changed.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The driver acknowledges reasons.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }
}

/// What a driver set up, handed to the device when it goes live.
pub struct Driver {
    /// The queues, ready and valid.
    pub queues: Vec<Queue>,
    /// The features that both sides agreed on.
    pub features: u64,
    /// How to tell the driver about used buffers.
    pub interrupt: std::sync::Arc<Interrupt>,
}

impl Driver {
    /// Whether both sides agreed on a feature.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// One kind of device. The transport calls these from vCPU threads.
pub trait VirtioDevice: Send {
    /// The specification's number of this kind.
    fn device_type(&self) -> u32;
    /// Features offered.
    fn features(&self) -> u64;
    /// Features without which the device does not work with a driver.
    fn required_features(&self) -> u64 {
        feature::VERSION_1
    }
    /// Largest size of each queue.
    fn queue_sizes(&self) -> &'static [u16];
    /// The configuration space, which is read-only for the driver.
    fn config(&self) -> &[u8];
    /// The driver is ready.
    fn activate(&mut self, driver: Driver);
    /// The driver is gone; forget everything it set up.
    fn reset(&mut self);
    /// Stops work and gives the queues back, with no request half done, so that
    /// [`Self::activate`] with them goes on where it was; `None` without a driver.
    fn park(&mut self) -> Option<Vec<Queue>>;
}
