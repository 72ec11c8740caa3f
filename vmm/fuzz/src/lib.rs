//! What a hostile guest can do to a device's queues, as data that a fuzzer makes up.

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::testing::{BUFFERS, TestDriver};
use vmm::memory::GuestRam;

/// Bytes of guest memory that deeds name with small numbers, and that start as zeros.
const ARENA: u64 = 0x1_0000;
/// Most times that a device may ask for another turn: the guest is not active meanwhile,
/// so that more would mean that it never stops.
const MOST_TURNS: usize = 10_000;

/// A buffer: mostly within the arena, sometimes anywhere.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Buffer {
    /// Offset in the arena and length.
    Near(u16, u16),
    /// Any address and length.
    Far(u64, u32),
}

impl Buffer {
    fn place(self) -> (u64, u32) {
        match self {
            Self::Near(offset, length) => (BUFFERS + u64::from(offset), length.into()),
            Self::Far(address, length) => (address, length),
        }
    }
}

/// One thing that the guest does.
#[derive(Arbitrary, Clone, Debug)]
pub enum Deed {
    /// Writes to the arena.
    Put(u16, Vec<u8>),
    /// Makes a request.
    Add {
        /// Which queue.
        queue: u8,
        /// What the device may read.
        readable: Vec<Buffer>,
        /// What the device may write.
        writable: Vec<Buffer>,
    },
    /// Makes any descriptor available.
    Offer(u8, u16),
    /// Writes over a queue's own structures.
    Scribble(u8, u16, Vec<u8>),
    /// Kicks.
    Kick,
}

/// Memory for all runs of one fuzzer: it is never unmapped.
pub fn memory() -> GuestRam {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    let ram = *RAM.get_or_init(TestDriver::memory);
    ram.put(BUFFERS, &[0; ARENA as usize]).expect("arena");
    ram
}

/// Starts a device's driver.
pub fn start(ram: GuestRam, device: &mut dyn VirtioDevice) -> TestDriver {
    TestDriver::start(ram, device)
}

/// Does one thing; `true`: the device is to look at its queues.
pub fn carry_out(driver: &mut TestDriver, deed: &Deed) -> bool {
    let count = driver.queues.len();
    let index = |queue: &u8| usize::from(*queue) % count;
    match deed {
        Deed::Put(offset, bytes) => {
            let room = (ARENA - u64::from(*offset)) as usize;
            let bytes = &bytes[..bytes.len().min(room)];
            driver
                .ram
                .put(BUFFERS + u64::from(*offset), bytes)
                .expect("arena");
        }
        Deed::Add {
            queue,
            readable,
            writable,
        } => {
            let places = |list: &[Buffer]| -> Vec<_> {
                list.iter().take(16).map(|buffer| buffer.place()).collect()
            };
            driver.queues[index(queue)].add(&places(readable), &places(writable));
        }
        Deed::Offer(queue, head) => driver.queues[index(queue)].offer(*head),
        Deed::Scribble(queue, offset, bytes) => {
            driver.queues[index(queue)].scribble((*offset).into(), bytes);
        }
        Deed::Kick => return true,
    }
    false
}

/// Lets a device work until it has nothing more to do.
pub fn exhaust(mut turn: impl FnMut() -> bool) {
    for _ in 0..MOST_TURNS {
        if !turn() {
            return;
        }
    }
    panic!("the device never comes to an end");
}
