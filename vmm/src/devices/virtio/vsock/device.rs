//! The socket device: queues on one side, Unix sockets on the other.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use virtio_queue::Queue;

use super::config::{
    FEATURES, FIRST_HOST_PORT, GUEST_CID, HOST_CID, MAX_CONNECTIONS, MAX_REPLIES, QUEUE_SIZES,
    READY_PORT, SPACE, TRANSPORT_RESET,
};
use super::connection::{Connection, Flow, Verdict};
use super::metrics::VsockCounters;
use super::packet::{HEADER_SIZE, Header, TYPE_STREAM, op};
use super::persist::SavedVsock;
use crate::devices::virtio::queue::{Chain, Ring};
use crate::devices::virtio::{Driver, Interrupt, VirtioDevice, device_type};
use crate::memory::GuestRam;
use crate::sys;

/// Packets moved in one go in one direction, so that other devices get their turn.
const BATCH: usize = 128;
/// Token of the listener; those of connections are their ports.
const LISTENER: u64 = u64::MAX;

/// What exists only while a driver is there.
struct Live {
    receive: Ring,
    transmit: Ring,
    events: Ring,
    interrupt: Arc<Interrupt>,
}

/// The socket device.
pub struct Vsock {
    ram: GuestRam,
    listener: Option<UnixListener>,
    epoll: Epoll,
    connections: BTreeMap<u32, Connection>,
    /// Those of a device that goes on from a saved one, until they get their sockets.
    saved: BTreeMap<u32, Flow>,
    next_port: u32,
    /// Ports of the connections that may have something for the guest.
    waiting: VecDeque<u32>,
    /// Answers to packets that belong to no connection.
    replies: VecDeque<Header>,
    guest_ready: bool,
    ready_news: bool,
    /// The guest must be told that its connections are gone.
    reset_news: bool,
    /// Another process goes on with it.
    left: bool,
    counters: Arc<VsockCounters>,
    chain: Chain,
    live: Option<Live>,
}

impl Vsock {
    /// A device that nobody can reach until it listens.
    pub fn new(ram: GuestRam, counters: Arc<VsockCounters>) -> io::Result<Self> {
        Ok(Self {
            ram,
            listener: None,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connections: BTreeMap::new(),
            saved: BTreeMap::new(),
            next_port: FIRST_HOST_PORT,
            waiting: VecDeque::new(),
            replies: VecDeque::new(),
            guest_ready: false,
            ready_news: false,
            reset_news: false,
            left: false,
            counters,
            chain: Chain::default(),
            live: None,
        })
    }

    /// Makes `listener`, which must not block, the host side. Saved connections that nobody
    /// has given a socket to are gone.
    pub fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
        self.epoll.add(&listener, event)?;
        self.listener = Some(listener);
        let lost = std::mem::take(&mut self.saved);
        self.reset_news = lost.values().any(Flow::known_to_guest);
        Ok(())
    }

    /// What must be known to go on later, in another process.
    pub fn save(&self) -> SavedVsock {
        let connections = self.connections.values();
        SavedVsock {
            guest_ready: self.guest_ready,
            next_port: self.next_port,
            connections: connections.map(|one| one.flow().clone()).collect(),
            replies: self.replies.iter().copied().collect(),
        }
    }

    /// Touches no socket any more: another process goes on with them.
    pub fn leave(&mut self) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            self.epoll.delete(listener)?;
        }
        self.left = true;
        Ok(())
    }

    /// The connections from this host port on, with their sockets.
    pub fn connections(&self, from: u32) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let connections = self.connections.range(from..);
        connections.map(|(port, one)| (*port, one.as_fd()))
    }

    /// Connections that the guest knows.
    pub fn open(&self) -> u64 {
        let connections = self.connections.values();
        connections.filter(|one| one.known_to_guest()).count() as u64
    }

    /// Goes on from a saved device.
    pub fn restore(&mut self, saved: SavedVsock) {
        self.guest_ready = saved.guest_ready;
        self.next_port = saved.next_port.max(FIRST_HOST_PORT);
        self.replies = saved.replies.into();
        let connections = saved.connections.into_iter();
        self.saved = connections.map(|flow| (flow.host_port(), flow)).collect();
    }

    /// Goes on with a saved connection; `false`: none of that port was saved.
    pub fn take_over(&mut self, port: u32, socket: UnixStream) -> io::Result<bool> {
        let Some(flow) = self.saved.remove(&port) else {
            return Ok(false);
        };
        self.watch(&socket, port)?;
        self.connections
            .insert(port, Connection::resumed(socket, flow));
        self.look_after(port);
        Ok(true)
    }

    /// Becomes readable when [`Self::process_sockets`] has something to do.
    pub fn sockets(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Whether the guest has said that it is ready since the last call.
    pub fn take_ready(&mut self) -> bool {
        std::mem::take(&mut self.ready_news)
    }

    /// Something happened on the host's side; `true` when there may be more to do.
    pub fn process_sockets(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); 32];
        // Nothing else can fail than an interrupted call, after which it is asked again.
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        if self.left {
            return false;
        }
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept();
                continue;
            }
            let port = event.data() as u32;
            if let Some(connection) = self.connections.get_mut(&port) {
                let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                connection.socket_event(event.events().intersects(gone), self.guest_ready);
            }
            self.look_after(port);
        }
        self.process_queues()
    }

    /// The driver kicked a queue; `true` when there may be more to do.
    pub fn process_queues(&mut self) -> bool {
        let Some(mut live) = self.live.take() else {
            return false;
        };
        self.tell_reset(&mut live);
        let more = self.transmit(&mut live) | self.receive(&mut live);
        live.transmit.notify(&live.interrupt);
        live.receive.notify(&live.interrupt);
        self.live = Some(live);
        more
    }

    /// Tells the guest that all its connections are gone, if it does not know yet.
    fn tell_reset(&mut self, live: &mut Live) {
        if self.reset_news && live.events.pop(&mut self.chain) {
            let event = TRANSPORT_RESET.to_le_bytes();
            let written = self.chain.writable.copy_from(0, &event);
            // An event is 4 bytes.
            live.events.push(self.chain.head, written as u32);
            live.events.notify(&live.interrupt);
            self.reset_news = false;
        }
    }

    fn accept(&mut self) {
        while let Some(Ok(socket)) = self.listener.as_ref().map(|one| sys::accept(one.as_fd())) {
            if self.connections.len() >= MAX_CONNECTIONS {
                // Closed at once: the client sees that there is no room.
                continue;
            }
            while self.connections.contains_key(&self.next_port) {
                self.next_port = self.next_port.wrapping_add(1).max(FIRST_HOST_PORT);
            }
            let port = self.next_port;
            self.next_port = port.wrapping_add(1).max(FIRST_HOST_PORT);
            if self.watch(&socket, port).is_ok() {
                let mut connection = Connection::new(socket, port);
                // Most clients have sent their first line by now.
                connection.socket_event(false, self.guest_ready);
                self.connections.insert(port, connection);
                self.look_after(port);
            }
        }
    }

    /// Waits for what happens to a connection's socket.
    fn watch(&self, socket: &UnixStream, port: u32) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, u64::from(port));
        Ok(self.epoll.add(socket, event)?)
    }

    /// After something happened to a connection: forget it, or let it talk to the guest.
    fn look_after(&mut self, port: u32) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        if connection.finished() {
            self.connections.remove(&port);
        } else if !connection.queued && connection.wants_guest() {
            connection.queued = true;
            self.waiting.push_back(port);
        }
    }

    /// Takes the guest's packets.
    fn transmit(&mut self, live: &mut Live) -> bool {
        live.transmit.disable_kicks();
        for _ in 0..BATCH {
            if self.replies.len() >= MAX_REPLIES {
                // The guest must take the answers first; a kick for its receive
                // queue continues here.
                return false;
            }
            if !live.transmit.pop(&mut self.chain) {
                if live.transmit.enable_kicks() {
                    continue;
                }
                return false;
            }
            self.packet();
            live.transmit.push(self.chain.head, 0);
        }
        true
    }

    /// Takes the packet of the current chain.
    fn packet(&mut self) {
        let mut header = [0; HEADER_SIZE];
        let packet = &mut self.chain.readable;
        let complete = packet.copy_to(0, &mut header) == HEADER_SIZE;
        let header = Header::from_bytes(&header);
        if !complete
            || header.src_cid != GUEST_CID
            || header.dst_cid != HOST_CID
            || header.len as usize > packet.len() - HEADER_SIZE
        {
            self.counters.bad_packets.add(1);
            return;
        }
        let port = header.dst_port;
        let connection = self.connections.get_mut(&port).filter(|connection| {
            header.kind == TYPE_STREAM
                && connection.known_to_guest()
                && connection.guest_port() == header.src_port
        });
        let Some(connection) = connection else {
            self.stray(&header);
            return;
        };
        match connection.packet(&header, packet) {
            Verdict::Fine => match header.op {
                op::RESPONSE => self.counters.connections.add(1),
                op::RST => self.counters.resets.add(1),
                op::RW => self.counters.bytes_to_host.add(header.len.into()),
                _ => {}
            },
            Verdict::Answer => self.replies.push_back(Header::reset_of(&header)),
            Verdict::Broken => {
                self.counters.bad_packets.add(1);
                self.counters.resets.add(1);
                self.replies.push_back(Header::reset_of(&header));
            }
        }
        self.look_after(port);
    }

    /// A packet that belongs to no connection: the guest's sign that it is ready, or
    /// something to refuse. A reset is never answered.
    fn stray(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        self.replies.push_back(Header::reset_of(header));
        let ready =
            header.op == op::REQUEST && header.kind == TYPE_STREAM && header.dst_port == READY_PORT;
        if ready && !self.guest_ready {
            self.guest_ready = true;
            self.ready_news = true;
            let ports: Vec<u32> = self.connections.keys().copied().collect();
            for port in ports {
                if let Some(connection) = self.connections.get_mut(&port) {
                    connection.guest_ready();
                }
                self.look_after(port);
            }
        }
    }

    /// Fills the guest's receive buffers.
    fn receive(&mut self, live: &mut Live) -> bool {
        let stalled = self.replies.len() >= MAX_REPLIES;
        live.receive.disable_kicks();
        for _ in 0..BATCH {
            if self.replies.is_empty() && self.waiting.is_empty() {
                return stalled;
            }
            if !live.receive.pop(&mut self.chain) {
                if live.receive.enable_kicks() {
                    continue;
                }
                return stalled && self.replies.len() < MAX_REPLIES;
            }
            // A buffer with room for a header alone would never empty a socket.
            if self.chain.writable.len() <= HEADER_SIZE {
                self.counters.bad_packets.add(1);
                live.receive.push(self.chain.head, 0);
                continue;
            }
            match self.next_for_guest() {
                0 => live.receive.unpop(),
                // A receive buffer is shorter than 4 GiB.
                length => live.receive.push(self.chain.head, length as u32),
            }
        }
        true
    }

    /// Writes the next packet into the current chain; returns its length, 0 if none.
    fn next_for_guest(&mut self) -> usize {
        if let Some(reply) = self.replies.pop_front() {
            return self.chain.writable.copy_from(0, &reply.to_bytes());
        }
        while let Some(port) = self.waiting.pop_front() {
            let Some(connection) = self.connections.get_mut(&port) else {
                continue;
            };
            connection.queued = false;
            let filled = connection.fill(&mut self.chain.writable);
            self.look_after(port);
            if let Some((length, data)) = filled {
                self.counters.bytes_to_guest.add(data as u64);
                return length;
            }
        }
        0
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        device_type::VSOCK
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> &[u8] {
        &SPACE
    }

    fn activate(&mut self, driver: Driver) {
        let Ok([receive, transmit, events]) = <[Queue; 3]>::try_from(driver.queues) else {
            return;
        };
        self.live = Some(Live {
            receive: Ring::new(receive, self.ram),
            transmit: Ring::new(transmit, self.ram),
            events: Ring::new(events, self.ram),
            interrupt: driver.interrupt,
        });
    }

    fn park(&mut self) -> Option<Vec<Queue>> {
        let live = self.live.take()?;
        let rings = [live.receive, live.transmit, live.events];
        Some(rings.into_iter().map(Ring::into_queue).collect())
    }

    fn reset(&mut self) {
        self.live = None;
        self.replies.clear();
        self.waiting.clear();
        self.guest_ready = false;
        self.connections
            .retain(|_, connection| !connection.known_to_guest());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};

    use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_SEND};
    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, TestDriver};

    const RECEIVE: usize = 0;
    const TRANSMIT: usize = 1;
    const BUFFER_SIZE: u32 = 4096;
    const PACKET: u64 = BUFFERS + 0x20_0000;

    struct Bench {
        device: Vsock,
        driver: TestDriver,
        address: SocketAddr,
        /// Receive buffers given so far, to find each one's address.
        offered: u64,
    }

    impl Bench {
        fn new(name: &str) -> Self {
            let mut bench = Self::without_room(name);
            bench.offer(64);
            bench
        }

        fn without_room(name: &str) -> Self {
            Self::made(name, |_| {})
        }

        /// `before`: what comes before it listens.
        fn made(name: &str, before: impl FnOnce(&mut Vsock)) -> Self {
            let name = format!("joey-vsock-test-{}-{name}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let listener = UnixListener::bind_addr(&address).unwrap();
            listener.set_nonblocking(true).unwrap();
            let ram = TestDriver::memory();
            let mut device = Vsock::new(ram, Arc::default()).unwrap();
            before(&mut device);
            device.listen(listener).unwrap();
            let driver = TestDriver::start(ram, &mut device);
            Self {
                device,
                driver,
                address,
                offered: 0,
            }
        }

        fn offer(&mut self, count: u64) {
            for _ in 0..count {
                let slot = self.offered % 128;
                let address = BUFFERS + slot * u64::from(BUFFER_SIZE);
                self.driver.queues[RECEIVE].add(&[], &[(address, BUFFER_SIZE)]);
                self.offered += 1;
            }
        }

        fn client(&self, port: u32) -> UnixStream {
            let mut client = UnixStream::connect_addr(&self.address).unwrap();
            writeln!(client, "CONNECT {port}").unwrap();
            client
        }

        /// All packets that the guest has received.
        fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
            let mut packets = Vec::new();
            while let Some((head, length)) = self.driver.queues[RECEIVE].used() {
                let address = BUFFERS + u64::from(head) * u64::from(BUFFER_SIZE);
                let bytes = self.driver.read(address, length as usize);
                let header: [u8; HEADER_SIZE] = bytes[..HEADER_SIZE].try_into().unwrap();
                packets.push((Header::from_bytes(&header), bytes[HEADER_SIZE..].to_vec()));
            }
            packets
        }

        fn send_header(&mut self, header: Header, data: &[u8]) {
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend_from_slice(data);
            self.driver.ram.put(PACKET, &bytes).unwrap();
            self.driver.queues[TRANSMIT].add(&[(PACKET, bytes.len() as u32)], &[]);
            self.device.process_queues();
            assert!(self.driver.queues[TRANSMIT].used().is_some());
        }

        /// A packet of the guest to a port of the host.
        fn send(&mut self, op: u16, from: u32, to: u32, flags: u32, data: &[u8]) {
            self.send_header(
                Header {
                    src_cid: GUEST_CID,
                    dst_cid: HOST_CID,
                    src_port: from,
                    dst_port: to,
                    len: data.len() as u32,
                    kind: TYPE_STREAM,
                    op,
                    flags,
                    buf_alloc: 1 << 18,
                    fwd_cnt: 0,
                },
                data,
            );
        }

        fn ready(&mut self) {
            self.send(op::REQUEST, 99, READY_PORT, 0, b"");
            assert!(self.device.take_ready());
            let answer = self.received();
            assert_eq!(answer[0].0.op, op::RST);
            assert_eq!(answer[0].0.dst_port, 99);
        }

        /// A connection to guest port 5, and the host's port of it.
        fn open(&mut self) -> (UnixStream, u32) {
            let mut client = self.client(5);
            self.device.process_sockets();
            let request = self.received().pop().unwrap().0;
            assert_eq!((request.op, request.dst_port), (op::REQUEST, 5));
            self.send(op::RESPONSE, 5, request.src_port, 0, b"");
            let mut line = [0; 14];
            client.read_exact(&mut line).unwrap();
            assert_eq!(
                line.to_vec(),
                format!("OK {}\n", request.src_port).as_bytes()
            );
            (client, request.src_port)
        }
    }

    #[test]
    fn connections_wait_for_the_guest() {
        let mut bench = Bench::new("wait");
        let _one = bench.client(5);
        let _two = bench.client(6);
        bench.device.process_sockets();
        assert!(bench.received().is_empty());
        bench.send(op::REQUEST, 99, READY_PORT, 0, b"");
        assert!(bench.device.take_ready() && !bench.device.take_ready());
        let ops: Vec<_> = bench
            .received()
            .iter()
            .map(|(header, _)| (header.op, header.dst_port))
            .collect();
        assert_eq!(ops, [(op::RST, 99), (op::REQUEST, 5), (op::REQUEST, 6)]);
        bench.send(op::REQUEST, 98, READY_PORT, 0, b"");
        assert!(!bench.device.take_ready());
    }

    #[test]
    fn bytes_go_both_ways_and_ends_follow_them() {
        let mut bench = Bench::new("both");
        bench.ready();
        let (mut client, port) = bench.open();
        client.write_all(b"to the guest").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        bench.device.process_sockets();
        bench.device.process_sockets();
        let packets = bench.received();
        assert_eq!(packets[0].1, b"to the guest");
        assert_eq!(packets[1].0.op, op::SHUTDOWN);
        assert_eq!(packets[1].0.flags, SHUTDOWN_SEND);
        bench.send(op::RW, 5, port, 0, b"to the host");
        bench.send(op::SHUTDOWN, 5, port, SHUTDOWN_BOTH, b"");
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "to the host");
        assert_eq!(bench.received().pop().unwrap().0.op, op::RST);
        assert!(bench.device.connections.is_empty());
        let stats = bench.device.counters.stats();
        assert_eq!((stats.bytes_to_guest, stats.bytes_to_host), (12, 11));
    }

    #[test]
    fn a_slow_guest_holds_bytes_back_without_loss() {
        let mut bench = Bench::new("slow");
        bench.ready();
        let (mut client, _) = bench.open();
        let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        client.write_all(&data).unwrap();
        drop(client);
        let mut got = Vec::new();
        let mut ended = false;
        for _ in 0..200 {
            bench.device.process_sockets();
            for (header, bytes) in bench.received() {
                got.extend(bytes);
                ended |= header.op == op::SHUTDOWN && header.flags == SHUTDOWN_BOTH;
                bench.offer(1);
            }
        }
        assert!(ended && got == data);
        assert!(bench.device.connections.is_empty());
    }

    #[test]
    fn strays_are_refused_and_resets_are_not_answered() {
        let mut bench = Bench::new("stray");
        for op in [op::REQUEST, op::RW, op::SHUTDOWN, 77] {
            bench.send(op, 5, 1234, 0, b"x");
            let answers = bench.received();
            assert_eq!(answers.len(), 1);
            assert_eq!(answers[0].0.op, op::RST);
            assert_eq!((answers[0].0.src_port, answers[0].0.dst_port), (1234, 5));
        }
        bench.send(op::RST, 5, 1234, 0, b"");
        assert!(bench.received().is_empty());
    }

    #[test]
    fn a_connection_belongs_to_one_guest_port() {
        let mut bench = Bench::new("port");
        bench.ready();
        let (_client, port) = bench.open();
        bench.send(op::RW, 6, port, 0, b"forged");
        assert_eq!(bench.received()[0].0.op, op::RST);
        assert_eq!(bench.device.connections.len(), 1);
    }

    #[test]
    fn nonsense_is_dropped() {
        let mut bench = Bench::new("nonsense");
        let good = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: 5,
            dst_port: 1,
            kind: TYPE_STREAM,
            op: op::REQUEST,
            ..Header::default()
        };
        for header in [
            Header { src_cid: 4, ..good },
            Header { dst_cid: 1, ..good },
            Header { len: 1, ..good },
            Header {
                len: u32::MAX,
                ..good
            },
        ] {
            bench.send_header(header, b"");
        }
        bench.driver.queues[TRANSMIT].add(&[(PACKET, 43)], &[]);
        bench.driver.queues[TRANSMIT].add(&[(u64::MAX, 44)], &[]);
        bench.device.process_queues();
        assert_eq!(bench.device.counters.stats().bad_packets, 6);
        assert!(bench.received().is_empty());
        assert!(!bench.device.take_ready());
    }

    #[test]
    fn a_guest_that_takes_no_answers_is_not_listened_to() {
        let mut bench = Bench::new("flood");
        let mut sent = 0;
        for _ in 0..3 {
            for _ in 0..60 {
                let header = Header {
                    src_cid: GUEST_CID,
                    dst_cid: HOST_CID,
                    dst_port: 7,
                    op: op::REQUEST,
                    ..Header::default()
                };
                bench.driver.ram.put(PACKET, &header.to_bytes()).unwrap();
                bench.driver.queues[TRANSMIT].add(&[(PACKET, HEADER_SIZE as u32)], &[]);
                sent += 1;
            }
            while bench.device.process_queues() {}
            while bench.driver.queues[TRANSMIT].used().is_some() {}
        }
        assert!(bench.device.replies.len() <= MAX_REPLIES);
        // As soon as it takes them, all are answered.
        let mut answers = bench.received().len();
        while answers < sent {
            bench.offer(60);
            while bench.device.process_queues() {}
            let more = bench.received().len();
            assert!(more > 0);
            answers += more;
        }
        assert_eq!(answers, sent);
    }

    #[test]
    fn receive_buffers_without_room_for_data_come_back() {
        let mut bench = Bench::without_room("tiny");
        // For the answer to the sign of readiness, and for the request.
        bench.offer(2);
        bench.ready();
        let (mut client, _) = bench.open();
        for _ in 0..10 {
            bench.driver.queues[RECEIVE].add(&[], &[(BUFFERS, HEADER_SIZE as u32)]);
        }
        bench.offer(4);
        client.write_all(&[1; 8000]).unwrap();
        bench.device.process_sockets();
        let written: Vec<u32> = std::iter::from_fn(|| bench.driver.queues[RECEIVE].used())
            .map(|(_, written)| written)
            .collect();
        assert_eq!(written[..10], [0; 10]);
        assert_eq!(written[10..], [4096, 8000 - 4052 + 44]);
    }

    #[test]
    fn a_new_driver_starts_afresh() {
        let mut bench = Bench::new("reset");
        bench.ready();
        let (mut client, _) = bench.open();
        let waiting = bench.client(9);
        bench.device.process_sockets();
        bench.device.reset();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(bench.device.connections.is_empty());
        drop(waiting);
        assert!(!bench.device.process_queues());
    }

    /// A device that goes on from a saved one, with the sockets that it gets.
    fn restored(name: &str, saved: SavedVsock, sockets: Vec<(u32, UnixStream)>) -> Bench {
        let mut bench = Bench::made(name, |device| {
            device.restore(saved);
            for (port, socket) in sockets {
                assert!(device.take_over(port, socket).unwrap());
            }
        });
        bench.offer(64);
        bench
    }

    #[test]
    fn a_restored_device_takes_no_port_again_and_says_that_all_is_gone() {
        let mut bench = Bench::new("before");
        bench.send(op::REQUEST, 77, READY_PORT, 0, &[]);
        assert!(bench.device.take_ready());
        let _client = bench.client(9);
        bench.device.process_sockets();
        let saved = bench.device.save();
        assert!(saved.guest_ready && saved.connections.len() == 1);
        assert_eq!(saved.next_port, FIRST_HOST_PORT + 1);

        let mut after = restored("after", saved, Vec::new());
        after.driver.queues[2].add(&[], &[(PACKET, 4)]);
        let _client = after.client(9);
        after.device.process_sockets();
        let requests = after.received();
        assert_eq!(requests[0].0.op, op::REQUEST);
        assert_eq!(requests[0].0.src_port, FIRST_HOST_PORT + 1);
        assert_eq!(after.driver.queues[2].used().map(|used| used.1), Some(4));
        assert_eq!(after.driver.read(PACKET, 4), TRANSPORT_RESET.to_le_bytes());
        after.device.process_queues();
        assert!(after.driver.queues[2].used().is_none());
    }

    #[test]
    fn connections_go_on_in_another_process() {
        let mut bench = Bench::new("old");
        bench.ready();
        let (mut client, port) = bench.open();
        // More than its socket takes: the rest waits in the device.
        let data: Vec<u8> = (0..200_000u32).map(|at| (at * 7) as u8).collect();
        for part in data.chunks(4096) {
            bench.send(op::RW, 5, port, 0, part);
        }
        let mut early = bench.client(6);
        bench.device.process_sockets();
        let saved = bench.device.save();
        assert_eq!(saved.connections.len(), 2);
        bench.device.leave().unwrap();
        let copy = |(port, socket): (u32, BorrowedFd<'_>)| {
            (port, UnixStream::from(socket.try_clone_to_owned().unwrap()))
        };
        let sockets: Vec<_> = bench.device.connections(0).map(copy).collect();
        assert_eq!(bench.device.connections(port + 1).count(), 1);

        // What clients say meanwhile is left to the next.
        client.write_all(b"more").unwrap();
        let stranger = bench.client(7);
        assert!(!bench.device.process_sockets());
        assert_eq!(bench.device.connections.len(), 2);
        drop(stranger);

        let mut after = restored("new", saved, sockets);
        client
            .set_read_timeout(Some(std::time::Duration::from_millis(10)))
            .unwrap();
        let mut got = Vec::new();
        while got.len() < data.len() {
            let mut piece = [0; 8192];
            match client.read(&mut piece) {
                Ok(count) => got.extend_from_slice(&piece[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            after.device.process_sockets();
        }
        assert!(got == data);
        let packets = after.received();
        assert!(packets.iter().any(|(header, data)| {
            (header.op, header.dst_port, data.as_slice()) == (op::RW, 5, b"more")
        }));
        // The guest was asked for it before.
        after.send(op::RESPONSE, 6, port + 1, 0, b"");
        let mut line = [0; 2];
        early.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"OK");
        assert!(
            !after
                .device
                .take_over(port, UnixStream::pair().unwrap().0)
                .unwrap()
        );
    }
}
