//! Packets of a hostile guest, with clients on the host that come, talk and go.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::vsock::{GUEST_CID, HEADER_SIZE, Header, READY_PORT, Vsock};
use vmm_fuzz::{Buffer, Deed, carry_out, exhaust, memory, start};

/// Where packets are built, within the arena.
const PACKET: u16 = 0x8000;

#[derive(Arbitrary, Debug)]
enum Event {
    Guest(Deed),
    /// A packet with a header that is nearly right.
    Packet {
        /// Added to the first host port that connections get.
        connection: u8,
        guest_port: u8,
        op: u8,
        flags: u8,
        length: u16,
        buffer: u32,
        forwarded: u32,
    },
    /// A receive buffer.
    Room(u16),
    /// The guest says that it is ready.
    Ready,
    /// A client connects and says this.
    Connect(Vec<u8>),
    /// A client connects to a port as it should.
    Dial(u8),
    Say(u8, Vec<u8>),
    Listen(u8),
    End(u8),
    Leave(u8),
}

fn send(driver: &mut vmm::devices::virtio::testing::TestDriver, header: Header) {
    let length = (HEADER_SIZE as u32 + header.len).min(0x7000) as u16;
    carry_out(driver, &Deed::Put(PACKET, header.to_bytes().to_vec()));
    let deed = Deed::Add {
        queue: 1,
        readable: vec![Buffer::Near(PACKET, length)],
        writable: Vec::new(),
    };
    carry_out(driver, &deed);
}

fuzz_target!(|events: Vec<Event>| {
    static RUN: AtomicU64 = AtomicU64::new(0);
    let run = RUN.fetch_add(1, Ordering::Relaxed);
    let name = format!("joey-vsock-fuzz-{}-{run}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("an address");
    let listener = UnixListener::bind_addr(&address).expect("a listener");
    let ram = memory();
    listener.set_nonblocking(true).expect("a listener");
    let mut device = Vsock::new(ram, Arc::default()).expect("a device");
    device.listen(listener).expect("a new listener");
    let mut driver = start(ram, &mut device);
    let mut clients: Vec<UnixStream> = Vec::new();
    for event in &events {
        let client = |index: u8| clients.get(usize::from(index) % clients.len().max(1));
        let mut buffer = [0; 4096];
        match event {
            Event::Guest(deed) => {
                carry_out(&mut driver, deed);
            }
            Event::Packet {
                connection,
                guest_port,
                op,
                flags,
                length,
                buffer,
                forwarded,
            } => {
                let header = Header {
                    src_cid: GUEST_CID,
                    dst_cid: 2,
                    src_port: (*guest_port).into(),
                    dst_port: (1 << 30) + u32::from(*connection),
                    len: (*length).into(),
                    kind: 1,
                    op: (*op).into(),
                    flags: (*flags).into(),
                    buf_alloc: *buffer,
                    fwd_cnt: *forwarded,
                };
                send(&mut driver, header);
            }
            Event::Room(length) => {
                let deed = Deed::Add {
                    queue: 0,
                    readable: Vec::new(),
                    writable: vec![Buffer::Near(0, *length)],
                };
                carry_out(&mut driver, &deed);
            }
            Event::Ready => {
                let header = Header {
                    src_cid: GUEST_CID,
                    dst_cid: 2,
                    src_port: 9,
                    dst_port: READY_PORT,
                    kind: 1,
                    op: 1,
                    ..Header::default()
                };
                send(&mut driver, header);
            }
            Event::Connect(_) | Event::Dial(_) if clients.len() > 30 => {}
            Event::Connect(bytes) => {
                let mut client = UnixStream::connect_addr(&address).expect("connect");
                client.set_nonblocking(true).expect("a socket");
                let _ = client.write(bytes);
                clients.push(client);
            }
            Event::Dial(port) => {
                let mut client = UnixStream::connect_addr(&address).expect("connect");
                client.set_nonblocking(true).expect("a socket");
                let _ = writeln!(client, "CONNECT {port}");
                clients.push(client);
            }
            // Clients may have been cut off: their errors are no news.
            Event::Say(index, bytes) => {
                let _ = client(*index).map(|mut client| client.write(bytes));
            }
            Event::Listen(index) => {
                let _ = client(*index).map(|mut client| client.read(&mut buffer));
            }
            Event::End(index) => {
                let _ = client(*index).map(|client| client.shutdown(Shutdown::Write));
            }
            Event::Leave(index) => {
                if !clients.is_empty() {
                    clients.swap_remove(usize::from(*index) % clients.len());
                }
            }
        }
        exhaust(|| device.process_sockets());
        exhaust(|| device.process_queues());
        device.take_ready();
    }
});
