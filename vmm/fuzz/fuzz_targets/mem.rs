//! Requests of a hostile guest for memory, while its owner resizes it.
#![no_main]

use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::mem::{BLOCK_SIZE, Mem, MemCounters};
use vmm::devices::virtio::testing::{BUFFERS, RAM_SIZE};
use vmm::memory::{BLOCK, GuestRam, HIGH_START};
use vmm_fuzz::{Deed, carry_out, exhaust, start};

const REGION: u64 = 4 * BLOCK;

#[derive(Arbitrary, Debug)]
enum Step {
    Deed(Deed),
    /// A request that is well-formed: type, block, count.
    Ask(u8, u8, u16),
    Resize(u16),
}

fuzz_target!(|steps: Vec<Step>| {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    let ram = *RAM.get_or_init(|| GuestRam::with_hotplug(RAM_SIZE, REGION).expect("memory"));
    let counters = Arc::new(MemCounters::default());
    let mut device = Mem::new(ram, counters.clone());
    let mut driver = start(ram, &mut device);
    for step in steps {
        let kick = match step {
            Step::Deed(deed) => carry_out(&mut driver, &deed),
            Step::Ask(kind, block, count) => {
                let mut request = [0; 24];
                request[0] = kind % 5;
                let address = HIGH_START + u64::from(block) * BLOCK_SIZE;
                request[8..16].copy_from_slice(&address.to_le_bytes());
                request[16..18].copy_from_slice(&count.to_le_bytes());
                ram.put(BUFFERS, &request).expect("a request");
                driver.queues[0].add(&[(BUFFERS, 24)], &[(BUFFERS + 0x1000, 10)]);
                true
            }
            Step::Resize(blocks) => {
                let _ = device.resize(u64::from(blocks) * BLOCK_SIZE, |_| Ok(()));
                false
            }
        };
        if kick {
            exhaust(|| device.process());
        }
        assert!(counters.stats().plugged_bytes <= REGION);
    }
    exhaust(|| device.process());
});
