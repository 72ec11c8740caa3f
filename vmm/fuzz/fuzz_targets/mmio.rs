//! Accesses of a hostile guest to a device's registers.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::Interrupt;
use vmm::devices::virtio::mmio::Transport;
use vmm::devices::virtio::rng::Rng;
use vmm::sys;
use vmm_fuzz::{exhaust, memory};

fuzz_target!(|accesses: Vec<(bool, u16, Vec<u8>)>| {
    let ram = memory();
    let device = Arc::new(Mutex::new(Rng::new(ram, Arc::default())));
    let line = sys::event().expect("an event");
    let interrupt = Arc::new(Interrupt::new(line));
    let kick = sys::event().expect("an event");
    let transport = Transport::new(ram, device.clone(), interrupt, kick);
    for (write, offset, mut data) in accesses {
        if write {
            transport.write((offset % 0x1000).into(), &data);
        } else {
            transport.read((offset % 0x1000).into(), &mut data);
        }
        // What a guest has done to a device can be saved, and comes back.
        let saved = transport.save();
        transport.restore(&saved, 0).expect("its own state");
        transport.resume(0).expect("its own features");
        exhaust(|| device.lock().expect("a device").refill().is_some());
    }
});
