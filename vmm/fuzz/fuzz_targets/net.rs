//! Buffers of a hostile guest for packets, and packets from the wire.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vmm::devices::virtio::net::Net;
use vmm_fuzz::{Deed, carry_out, exhaust, memory, start};

#[derive(Arbitrary, Debug)]
enum Event {
    Guest(Deed),
    /// A packet of this length arrives.
    Packet(u16),
}

fn wire() -> nix::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
}

fuzz_target!(|events: Vec<Event>| {
    let ram = memory();
    let (tap, wire) = wire().expect("a wire");
    let mut wire = File::from(wire);
    let mut device = Net::over(ram, File::from(tap));
    let mut driver = start(ram, &mut device);
    let mut sink = vec![0; 70_000];
    for event in &events {
        match event {
            Event::Guest(deed) => {
                if carry_out(&mut driver, deed) {
                    exhaust(|| device.process());
                }
            }
            Event::Packet(length) => {
                // A wire that is full drops.
                let _ = wire.write(&sink[..usize::from(*length)]);
                exhaust(|| device.tap_readable());
            }
        }
        while wire.read(&mut sink).is_ok() {}
    }
});
