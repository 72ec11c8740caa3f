//! Requests of a hostile guest, and answers of a hostile file system daemon.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::fs::Fs;
use vmm::devices::virtio::fs::testing::TestDaemon;
use vmm::sys;
use vmm_fuzz::{Deed, carry_out, exhaust, memory, start};

#[derive(Arbitrary, Debug)]
enum Event {
    Guest(Deed),
    /// The daemon answers what it was asked, with these bytes as far as there is room.
    Answer(bool, Vec<u8>),
    /// It gives anything back.
    GiveBack(bool, u32, u32),
    /// It writes to its rings.
    Scribble(u16, Vec<u8>),
    /// It writes anywhere.
    ScribbleFar(u32, Vec<u8>),
    HangUp,
    Attach,
    Detach,
    Reset,
}

fuzz_target!(|events: Vec<Event>| {
    let ram = memory();
    let lost = sys::event().expect("an event");
    let mut device = Fs::new(ram, lost, Default::default());
    let (mut daemon, backend) = TestDaemon::new();
    let mut generation = device.attach(backend).expect("the first daemon");
    let mut driver = start(ram, &mut device);
    // The daemon's own reading does not survive its own scribbling.
    let mut sane = true;
    for event in events {
        match event {
            Event::Guest(deed) => {
                if carry_out(&mut driver, &deed) {
                    exhaust(|| device.process());
                }
            }
            Event::Answer(queue, bytes) => {
                let queue = queue.into();
                if let Some(seen) = sane.then(|| daemon.next(queue)).flatten() {
                    let length = bytes.len().min(seen.room as usize);
                    daemon.answer(queue, &seen, &bytes[..length]);
                }
            }
            Event::GiveBack(queue, id, length) => daemon.give_back(queue.into(), id, length),
            Event::Scribble(offset, bytes) => {
                sane = false;
                daemon.scribble((offset % 0x8000).into(), &bytes);
            }
            Event::ScribbleFar(offset, bytes) => {
                sane = false;
                daemon.scribble(offset as usize, &bytes);
            }
            Event::HangUp => exhaust(|| device.hung_up(generation)),
            Event::Attach => {
                let (other, backend) = TestDaemon::new();
                if let Ok(new) = device.attach(backend) {
                    generation = new;
                    daemon = other;
                    sane = true;
                }
            }
            Event::Detach => {
                device.detach();
            }
            Event::Reset => {
                device.reset();
                driver = start(ram, &mut device);
            }
        }
        exhaust(|| device.called(generation, 0));
        exhaust(|| device.called(generation, 1));
    }
});
