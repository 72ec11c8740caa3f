//! Pages that a hostile guest gives away, takes back and reports.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::balloon::Balloon;
use vmm_fuzz::{Deed, carry_out, exhaust, memory, start};

fuzz_target!(|deeds: Vec<Deed>| {
    let ram = memory();
    let mut device = Balloon::new(ram, Arc::default());
    let mut driver = start(ram, &mut device);
    for deed in &deeds {
        if carry_out(&mut driver, deed) {
            exhaust(|| device.process());
        }
    }
    exhaust(|| device.process());
});
