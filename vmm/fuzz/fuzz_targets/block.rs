//! Requests of a hostile guest to both disks.
#![no_main]

use std::fs::File;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::block::{Block, Disk, FileDisk, Window};
use vmm::sys;
use vmm_fuzz::{Deed, carry_out, exhaust, memory, start};

fuzz_target!(|input: (bool, Vec<Deed>)| {
    let (scratch, deeds) = input;
    let file = File::from(sys::memory_file(c"fuzz").expect("a file"));
    file.set_len(1 << 20).expect("room");
    let disk: Box<dyn Disk> = if scratch {
        Box::new(FileDisk::scratch(file, 1 << 20).expect("scratch"))
    } else {
        let window = Window::new();
        window.map(4096, 1 << 20, file).expect("an empty window");
        Box::new(window)
    };
    let ram = memory();
    let mut device = Block::new(ram, disk, Arc::default());
    let mut driver = start(ram, &mut device);
    for deed in &deeds {
        if carry_out(&mut driver, deed) {
            exhaust(|| device.process());
        }
    }
    exhaust(|| device.process());
});
