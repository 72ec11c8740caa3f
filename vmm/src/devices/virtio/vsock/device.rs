//! The socket device: queues on one side, Unix sockets on the other.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::config::{
    FEATURES, FIRST_HOST_PORT, GUEST_CID, HOST_CID, MAX_CONNECTIONS, MAX_REPLIES, QUEUE_SIZES,
    READY_PORT, SPACE,
};
use super::connection::{Connection, Verdict};
use super::metrics::VsockCounters;
use super::packet::{HEADER_SIZE, Header, TYPE_STREAM, op};
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
    interrupt: Arc<Interrupt>,
}

/// The socket device.
pub struct Vsock {
    ram: GuestRam,
    listener: UnixListener,
    epoll: Epoll,
    connections: BTreeMap<u32, Connection>,
    next_port: u32,
    /// Ports of the connections that may have something for the guest.
    waiting: VecDeque<u32>,
    /// Answers to packets that belong to no connection.
    replies: VecDeque<Header>,
    guest_ready: bool,
    ready_news: bool,
    counters: Arc<VsockCounters>,
    chain: Chain,
    live: Option<Live>,
}

impl Vsock {
    /// A device whose host side is `listener`.
    pub fn new(
        ram: GuestRam,
        listener: UnixListener,
        counters: Arc<VsockCounters>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            ram,
            listener,
            epoll,
            connections: BTreeMap::new(),
            next_port: FIRST_HOST_PORT,
            waiting: VecDeque::new(),
            replies: VecDeque::new(),
            guest_ready: false,
            ready_news: false,
            counters,
            chain: Chain::default(),
            live: None,
        })
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
        let more = self.transmit(&mut live) | self.receive(&mut live);
        live.transmit.notify(&live.interrupt);
        live.receive.notify(&live.interrupt);
        self.live = Some(live);
        more
    }

    fn accept(&mut self) {
        while let Ok(socket) = sys::accept(self.listener.as_fd()) {
            if self.connections.len() >= MAX_CONNECTIONS {
                // Closed at once: the client sees that there is no room.
                continue;
            }
            while self.connections.contains_key(&self.next_port) {
                self.next_port = self.next_port.wrapping_add(1).max(FIRST_HOST_PORT);
            }
            let port = self.next_port;
            self.next_port = port.wrapping_add(1).max(FIRST_HOST_PORT);
            let flags = EpollFlags::EPOLLIN
                | EpollFlags::EPOLLOUT
                | EpollFlags::EPOLLRDHUP
                | EpollFlags::EPOLLET;
            let event = EpollEvent::new(flags, u64::from(port));
            if self.epoll.add(&socket, event).is_ok() {
                self.connections.insert(port, Connection::new(socket, port));
            }
        }
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
        let ready = header.op == op::REQUEST
            && header.kind == TYPE_STREAM
            && header.dst_port == READY_PORT;
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
            if self.chain.writable.len() < HEADER_SIZE {
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
        // The third queue is for events, of which we have none.
        let mut queues = driver.queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            return;
        };
        self.live = Some(Live {
            receive: Ring::new(receive, self.ram),
            transmit: Ring::new(transmit, self.ram),
            interrupt: driver.interrupt,
        });
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
