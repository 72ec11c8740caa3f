//! One stream between a client's Unix socket and a port of the guest.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};

use super::config::{BUFFER, MAX_PAYLOAD};
use super::packet::{HEADER_SIZE, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::memory::IoVec;

/// Longest first line of a client: `CONNECT 4294967295\n`.
const MAX_LINE: usize = 19;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// The client has not said the port yet.
    Handshake,
    /// The guest is not ready yet.
    Waiting,
    /// The guest was asked, or will be as soon as it gives a receive buffer.
    Requested,
    /// Bytes flow.
    Open,
    /// The guest is done with it; the host still has bytes to take.
    Draining,
    /// Nothing is left to do: forget it.
    Finished,
}

/// What became of a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Taken.
    Fine,
    /// Taken, and the guest waits for a reset as an answer.
    Answer,
    /// It broke the protocol; the guest gets a reset.
    Broken,
}

/// A connection. Its socket does not block, and its readiness is told once
/// ([`Self::socket_event`]) until it was used up.
pub struct Connection {
    socket: UnixStream,
    flow: Flow,
    /// It waits in the device's list of those with something for the guest.
    pub queued: bool,
}

/// What there is of a connection beside its socket, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    host_port: u32,
    guest_port: u32,
    phase: Phase,

    /// The socket may have bytes.
    readable: bool,
    /// The client has said all it will.
    host_ended: bool,
    /// The client has gone altogether.
    host_gone: bool,
    /// The guest must be asked for the connection.
    request: bool,
    /// The guest must be told this by SHUTDOWN.
    shutdown: u32,
    /// The guest was told this.
    shutdown_told: u32,
    /// Bytes sent to the guest, and how many it can hold and has taken out, as it says.
    sent: Wrapping<u32>,
    guest_buffer: u32,
    guest_taken: Wrapping<u32>,
    /// The guest was asked for its credit since it last told.
    credit_asked: bool,

    /// Bytes of the guest that the socket did not take yet.
    backlog: Vec<u8>,
    /// How many of them it has taken meanwhile.
    backlog_done: usize,
    /// The guest will send, or receive, no more (flags of SHUTDOWN).
    guest_ended: u32,
    /// Bytes received from the guest, forwarded to the socket, and the latter as last told.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// The guest asked for our credit.
    credit_wanted: bool,
}

impl Flow {
    /// The host's port, which is the connection's name.
    pub fn host_port(&self) -> u32 {
        self.host_port
    }

    /// Whether the guest knows of it.
    pub fn known_to_guest(&self) -> bool {
        matches!(self.phase, Phase::Requested | Phase::Open | Phase::Draining)
    }
}

impl Connection {
    /// A client that has just connected.
    pub fn new(socket: UnixStream, host_port: u32) -> Self {
        let flow = Flow {
            host_port,
            guest_port: 0,
            phase: Phase::Handshake,
            readable: false,
            host_ended: false,
            host_gone: false,
            request: false,
            shutdown: 0,
            shutdown_told: 0,
            sent: Wrapping(0),
            guest_buffer: 0,
            guest_taken: Wrapping(0),
            credit_asked: false,
            backlog: Vec::new(),
            backlog_done: 0,
            guest_ended: 0,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            credit_wanted: false,
        };
        Self::resumed(socket, flow)
    }

    /// One that goes on where it was saved.
    pub fn resumed(socket: UnixStream, flow: Flow) -> Self {
        Self {
            socket,
            flow,
            queued: false,
        }
    }

    /// What it takes to go on with it in another process that gets its socket.
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Port of the guest's end; 0 before the client has said it.
    pub fn guest_port(&self) -> u32 {
        self.flow.guest_port
    }

    /// Whether the guest knows of it.
    pub fn known_to_guest(&self) -> bool {
        self.flow.known_to_guest()
    }

    /// Whether nothing is left to do.
    pub fn finished(&self) -> bool {
        self.flow.phase == Phase::Finished
    }

    /// The socket has become readable or writable, or its peer has gone.
    pub fn socket_event(&mut self, gone: bool, guest_ready: bool) {
        self.flow.readable = true;
        self.flow.host_gone |= gone;
        if self.flow.phase == Phase::Handshake {
            self.handshake(guest_ready);
        }
        self.flush();
        match self.flow.phase {
            Phase::Waiting if self.flow.host_gone => self.flow.phase = Phase::Finished,
            Phase::Open if self.flow.host_gone && self.flow.host_ended => {
                self.flow.shutdown = SHUTDOWN_BOTH
            }
            _ => {}
        }
    }

    /// The guest is ready: connections that waited for it go on.
    pub fn guest_ready(&mut self) {
        if self.flow.phase == Phase::Waiting {
            self.flow.phase = Phase::Requested;
            self.flow.request = true;
        }
    }

    /// Reads the client's first line. What follows it stays in the socket.
    fn handshake(&mut self, guest_ready: bool) {
        let mut line = [0; MAX_LINE];
        let count = match recv(self.socket.as_raw_fd(), &mut line, MsgFlags::MSG_PEEK) {
            Ok(count) => count,
            Err(nix::errno::Errno::EAGAIN) => return,
            Err(_) => 0,
        };
        let line = &line[..count];
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
            if count == 0 || count == MAX_LINE || self.flow.host_gone {
                self.flow.phase = Phase::Finished;
            }
            return;
        };
        let mut taken = [0; MAX_LINE];
        let port = self
            .socket
            .read_exact(&mut taken[..=end])
            .ok()
            .and_then(|()| parse_port(&line[..end]));
        match port {
            Some(port) => {
                self.flow.guest_port = port;
                self.flow.phase = Phase::Waiting;
                if guest_ready {
                    self.guest_ready();
                }
            }
            None => self.flow.phase = Phase::Finished,
        }
    }

    /// Bytes that the guest can still take. Its numbers may be nonsense; then none.
    fn credit(&self) -> usize {
        let under_way = (self.flow.sent - self.flow.guest_taken).0;
        self.flow.guest_buffer.saturating_sub(under_way) as usize
    }

    /// Whether there may be bytes for the guest to read from the socket.
    fn has_data(&self) -> bool {
        self.flow.phase == Phase::Open
            && self.flow.readable
            && !self.flow.host_ended
            && self.flow.guest_ended & SHUTDOWN_RECEIVE == 0
    }

    /// Whether the guest should hear how much was forwarded.
    fn owes_credit(&self) -> bool {
        self.flow.phase == Phase::Open
            && (self.flow.credit_wanted || (self.flow.forwarded - self.flow.told).0 >= BUFFER / 2)
    }

    /// Whether the guest must be told of an end that it does not know of.
    fn owes_shutdown(&self) -> bool {
        self.flow.phase == Phase::Open && self.flow.shutdown & !self.flow.shutdown_told != 0
    }

    /// Whether [`Self::fill`] may have a packet.
    pub fn wants_guest(&self) -> bool {
        self.flow.request
            || self.owes_shutdown()
            || self.owes_credit()
            || (self.has_data() && (self.credit() > 0 || !self.flow.credit_asked))
    }

    /// Writes the next packet into a receive buffer of the guest, which holds more
    /// than a header. Returns the bytes written, and how many of them are data;
    /// `None` when there is nothing to say.
    pub fn fill(&mut self, buffer: &mut IoVec) -> Option<(usize, usize)> {
        let mut header = Header::to_guest(self.flow.host_port, self.flow.guest_port, op::RW);
        let mut data = 0;
        if std::mem::take(&mut self.flow.request) {
            header.op = op::REQUEST;
        } else if let Some(count) = self.fill_data(buffer) {
            header.len = count as u32;
            data = count;
        } else if self.owes_shutdown() {
            header.op = op::SHUTDOWN;
            header.flags = self.flow.shutdown;
            self.flow.shutdown_told = self.flow.shutdown;
            if self.flow.shutdown == SHUTDOWN_BOTH {
                // The client cannot take anything any more, and the guest knows.
                self.flow.phase = Phase::Finished;
            }
        } else if self.owes_credit() {
            header.op = op::CREDIT_UPDATE;
        } else if self.has_data() && self.credit() == 0 && !self.flow.credit_asked {
            header.op = op::CREDIT_REQUEST;
            self.flow.credit_asked = true;
        } else {
            return None;
        }
        header.fwd_cnt = self.flow.forwarded.0;
        self.flow.told = self.flow.forwarded;
        self.flow.credit_wanted = false;
        buffer.copy_from(0, &header.to_bytes());
        Some((HEADER_SIZE + data, data))
    }

    /// Reads from the socket into a receive buffer, behind the header.
    fn fill_data(&mut self, buffer: &mut IoVec) -> Option<usize> {
        if !self.has_data() {
            return None;
        }
        let room = buffer.len().saturating_sub(HEADER_SIZE);
        let length = room.min(self.credit()).min(MAX_PAYLOAD);
        if length == 0 {
            return None;
        }
        let range = HEADER_SIZE..HEADER_SIZE + length;
        match buffer.read(self.socket.as_fd(), range) {
            Ok(0) => self.host_end(),
            Ok(count) => {
                self.flow.sent += count as u32;
                return Some(count);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.flow.readable = false,
            Err(_) => {
                self.flow.host_gone = true;
                self.host_end();
            }
        }
        None
    }

    /// The client has said all it will.
    fn host_end(&mut self) {
        self.flow.host_ended = true;
        self.flow.shutdown |= if self.flow.host_gone {
            SHUTDOWN_BOTH
        } else {
            SHUTDOWN_SEND
        };
    }

    /// Takes a packet of the guest; `packet` is header and data.
    pub fn packet(&mut self, header: &Header, packet: &mut IoVec) -> Verdict {
        self.flow.guest_buffer = header.buf_alloc;
        self.flow.guest_taken = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.flow.credit_asked = false;
        }
        match (header.op, self.flow.phase) {
            (op::RESPONSE, Phase::Requested) => self.accepted(),
            (op::RST, Phase::Requested) => self.flow.phase = Phase::Finished,
            (op::RST, _) => self.guest_end(),
            (op::RW, Phase::Open) if self.flow.guest_ended & SHUTDOWN_SEND == 0 => {
                return self.data(header, packet);
            }
            (op::SHUTDOWN, Phase::Open) => return self.guest_shutdown(header.flags),
            (op::CREDIT_UPDATE, Phase::Open) => {}
            (op::CREDIT_REQUEST, Phase::Open) => self.flow.credit_wanted = true,
            _ => {
                self.guest_end();
                return Verdict::Broken;
            }
        }
        Verdict::Fine
    }

    /// The guest accepts.
    fn accepted(&mut self) {
        self.flow.phase = Phase::Open;
        let line = format!("OK {}\n", self.flow.host_port);
        // The socket's buffer is empty, so a line fits, or the client has gone.
        if self.socket.write_all(line.as_bytes()).is_err() {
            self.flow.host_gone = true;
        }
    }

    /// Data of the guest: straight to the socket as far as it takes them.
    fn data(&mut self, header: &Header, packet: &mut IoVec) -> Verdict {
        let length = header.len as usize;
        let under_way = (self.flow.received - self.flow.forwarded).0;
        if header.len > BUFFER - under_way {
            self.guest_end();
            return Verdict::Broken;
        }
        self.flow.received += header.len;
        let mut done = 0;
        while self.flow.backlog.is_empty() && done < length {
            let range = HEADER_SIZE + done..HEADER_SIZE + length;
            match packet.write(self.socket.as_fd(), range) {
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.flow.host_gone = true;
                    break;
                }
            }
        }
        if self.flow.host_gone {
            // Nobody will read it; the guest learns of it when the socket is read empty.
            done = length;
        }
        self.flow.forwarded += done as u32;
        if done < length {
            let start = self.flow.backlog.len();
            self.flow.backlog.resize(start + length - done, 0);
            packet.copy_to(HEADER_SIZE + done, &mut self.flow.backlog[start..]);
        }
        Verdict::Fine
    }

    /// The guest ends one direction or both.
    fn guest_shutdown(&mut self, flags: u32) -> Verdict {
        self.flow.guest_ended |= flags & SHUTDOWN_BOTH;
        if self.flow.guest_ended == SHUTDOWN_BOTH {
            self.guest_end();
            return Verdict::Answer;
        }
        if self.flow.guest_ended & SHUTDOWN_RECEIVE != 0 {
            // The client's writes fail from now on. It may have gone already.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        self.flush();
        Verdict::Fine
    }

    /// The guest is done: what it sent still goes to the host, then all ends.
    fn guest_end(&mut self) {
        self.flow.guest_ended = SHUTDOWN_BOTH;
        self.flow.phase = Phase::Draining;
        self.flush();
    }

    /// Writes what the socket did not take before.
    fn flush(&mut self) {
        while self.flow.backlog_done < self.flow.backlog.len() && !self.flow.host_gone {
            match (&self.socket).write(&self.flow.backlog[self.flow.backlog_done..]) {
                Ok(count) => {
                    self.flow.backlog_done += count;
                    self.flow.forwarded += count as u32;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.flow.host_gone = true,
            }
        }
        self.flow.forwarded += (self.flow.backlog.len() - self.flow.backlog_done) as u32;
        // Frees the memory: most connections never need it.
        self.flow.backlog = Vec::new();
        self.flow.backlog_done = 0;
        match self.flow.phase {
            Phase::Draining => self.flow.phase = Phase::Finished,
            Phase::Open if self.flow.guest_ended & SHUTDOWN_SEND != 0 => {
                // The client may have gone already.
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            _ => {}
        }
    }
}

impl Drop for Connection {
    /// A Unix socket that is closed with unread bytes gives its peer an error instead
    /// of the end of file, so those are taken out first.
    fn drop(&mut self) {
        if self.socket.shutdown(Shutdown::Both).is_ok() {
            let mut rest = [0; 1024];
            while matches!(read(&self.socket, &mut rest), Ok(count) if count > 0) {}
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(mut socket: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    socket.read(buffer)
}

/// The port of `CONNECT <port>`.
fn parse_port(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    struct Bench {
        ram: GuestRam,
        connection: Connection,
        client: UnixStream,
    }

    impl Bench {
        /// A connection whose client has said its port and more.
        fn new(first: &[u8]) -> Self {
            let (client, socket) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            client.set_nonblocking(true).unwrap();
            (&client).write_all(first).unwrap();
            let mut connection = Connection::new(socket, 77);
            connection.socket_event(false, true);
            Self {
                ram: GuestRam::allocate(1 << 20).unwrap(),
                connection,
                client,
            }
        }

        /// The same, accepted by a guest with this much buffer.
        fn open(guest_buffer: u32) -> Self {
            let mut bench = Self::new(b"CONNECT 5\n");
            assert_eq!(bench.next().unwrap().0.op, op::REQUEST);
            let verdict = bench.guest(op::RESPONSE, guest_buffer, 0, 0, b"");
            assert_eq!(verdict, Verdict::Fine);
            assert_eq!(bench.read(), b"OK 77\n");
            bench
        }

        /// Room for a header and `size` bytes.
        fn buffer(&self, size: u32) -> IoVec {
            let mut buffer = IoVec::new();
            buffer.push(self.ram, 0x1000, 20).unwrap();
            buffer.push(self.ram, 0x8000, 24 + size).unwrap();
            buffer
        }

        /// The next packet for the guest.
        fn next(&mut self) -> Option<(Header, Vec<u8>)> {
            let mut buffer = self.buffer(4096);
            let (total, data) = self.connection.fill(&mut buffer)?;
            let mut header = [0; HEADER_SIZE];
            buffer.copy_to(0, &mut header);
            let header = Header::from_bytes(&header);
            assert_eq!((header.len as usize, total), (data, HEADER_SIZE + data));
            assert_eq!((header.src_port, header.dst_port), (77, 5));
            let mut bytes = vec![0; data];
            buffer.copy_to(HEADER_SIZE, &mut bytes);
            Some((header, bytes))
        }

        /// A packet from the guest.
        fn guest(&mut self, op: u16, buffer: u32, taken: u32, flags: u32, data: &[u8]) -> Verdict {
            let header = Header {
                op,
                flags,
                len: data.len() as u32,
                buf_alloc: buffer,
                fwd_cnt: taken,
                ..Header::default()
            };
            let mut packet = IoVec::new();
            packet
                .push(self.ram, 0x2_0000, (HEADER_SIZE + data.len()) as u32)
                .unwrap();
            packet.copy_from(HEADER_SIZE, data);
            self.connection.packet(&header, &mut packet)
        }

        fn client_writes(&mut self, data: &[u8]) {
            self.client.write_all(data).unwrap();
            self.connection.socket_event(false, true);
        }

        /// What the client finds in its socket now.
        fn read(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            let result = self.client.read_to_end(&mut bytes);
            assert!(result.is_ok() || result.unwrap_err().kind() == ErrorKind::WouldBlock);
            bytes
        }

        fn at_end(&mut self) -> bool {
            matches!(self.client.read(&mut [0]), Ok(0))
        }
    }

    #[test]
    fn handshake_takes_its_line_and_no_more() {
        let mut bench = Bench::new(b"CONNECT 5\nearly");
        assert_eq!(bench.next().unwrap().0.op, op::REQUEST);
        assert!(bench.next().is_none());
        let _ = bench.guest(op::RESPONSE, 1000, 0, 0, b"");
        assert_eq!(bench.next().unwrap().1, b"early");
    }

    #[test]
    fn handshake_may_come_in_pieces_but_not_in_nonsense() {
        let mut bench = Bench::new(b"CONN");
        assert!(!bench.connection.finished() && !bench.connection.wants_guest());
        bench.client_writes(b"ECT 5\n");
        assert!(bench.connection.wants_guest());
        for nonsense in [
            &b"CONNECT \n"[..],
            b"CONNECT 4294967296\n",
            b"CONNECT -1\n",
            b"GET / HTTP/1.1\r\n",
            b"xxxxxxxxxxxxxxxxxxxxxxxx",
            b"\n",
        ] {
            assert!(Bench::new(nonsense).connection.finished());
        }
    }

    #[test]
    fn a_client_that_leaves_during_the_handshake_is_forgotten() {
        let bench = Bench::new(b"CONN");
        let Bench {
            mut connection,
            client,
            ..
        } = bench;
        drop(client);
        connection.socket_event(true, true);
        assert!(connection.finished());
    }

    #[test]
    fn the_guest_is_asked_only_when_ready() {
        let (client, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        (&client).write_all(b"CONNECT 5\n").unwrap();
        let mut connection = Connection::new(socket, 77);
        connection.socket_event(false, false);
        assert!(!connection.wants_guest());
        connection.guest_ready();
        assert!(connection.wants_guest());
    }

    #[test]
    fn refusal_closes_the_client() {
        let mut bench = Bench::new(b"CONNECT 5\n");
        assert_eq!(bench.next().unwrap().0.op, op::REQUEST);
        assert_eq!(bench.guest(op::RST, 0, 0, 0, b""), Verdict::Fine);
        assert!(bench.connection.finished());
    }

    #[test]
    fn never_sends_more_than_the_guest_has_room_for() {
        let mut bench = Bench::open(10);
        bench.client_writes(b"0123456789abcdef");
        assert_eq!(bench.next().unwrap().1, b"0123456789");
        // Asks once, then waits.
        assert_eq!(bench.next().unwrap().0.op, op::CREDIT_REQUEST);
        assert!(!bench.connection.wants_guest());
        assert!(bench.next().is_none());
        let _ = bench.guest(op::CREDIT_UPDATE, 10, 4, 0, b"");
        assert!(bench.connection.wants_guest());
        assert_eq!(bench.next().unwrap().1, b"abcd");
        // Credit that runs backwards is none.
        let _ = bench.guest(op::CREDIT_UPDATE, 10, 100, 0, b"");
        assert!(bench.next().is_none_or(|(header, _)| header.len == 0));
    }

    #[test]
    fn counters_may_wrap() {
        let mut bench = Bench::open(100);
        bench.connection.flow.sent = Wrapping(u32::MAX - 1);
        let _ = bench.guest(op::CREDIT_UPDATE, 100, u32::MAX - 1, 0, b"");
        bench.client_writes(b"0123456789");
        assert_eq!(bench.next().unwrap().1, b"0123456789");
        let _ = bench.guest(op::CREDIT_UPDATE, 100, 8, 0, b"");
        assert_eq!(bench.connection.credit(), 100);
    }

    #[test]
    fn host_data_comes_before_its_end_and_half_close_keeps_the_other_half() {
        let mut bench = Bench::open(1000);
        bench.client_writes(b"last words");
        bench.client.shutdown(Shutdown::Write).unwrap();
        bench.connection.socket_event(false, true);
        assert_eq!(bench.next().unwrap().1, b"last words");
        let (header, _) = bench.next().unwrap();
        assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
        assert_eq!(bench.guest(op::RW, 1000, 0, 0, b"answer"), Verdict::Fine);
        assert_eq!(bench.read(), b"answer");
        assert_eq!(
            bench.guest(op::SHUTDOWN, 1000, 0, SHUTDOWN_BOTH, b""),
            Verdict::Answer
        );
        assert!(bench.connection.finished());
    }

    #[test]
    fn client_that_closes_ends_both_directions_after_its_data() {
        let Bench {
            ram,
            mut connection,
            mut client,
        } = Bench::open(1000);
        client.write_all(b"bye").unwrap();
        drop(client);
        connection.socket_event(true, true);
        let mut seen = Vec::new();
        while !connection.finished() {
            let mut buffer = IoVec::new();
            buffer.push(ram, 0, 100).unwrap();
            if let Some((_, data)) = connection.fill(&mut buffer) {
                let mut header = [0; HEADER_SIZE];
                buffer.copy_to(0, &mut header);
                let header = Header::from_bytes(&header);
                seen.push((header.op, data, header.flags));
            }
        }
        assert_eq!(seen, [(op::RW, 3, 0), (op::SHUTDOWN, 0, SHUTDOWN_BOTH)]);
    }

    #[test]
    fn guest_data_comes_before_its_end() {
        let mut bench = Bench::open(1000);
        // More than the socket takes at once: the rest waits.
        let data: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
        let mut sent = Vec::new();
        for _ in 0..4 {
            assert_eq!(bench.guest(op::RW, 1000, 0, 0, &data), Verdict::Fine);
            sent.extend_from_slice(&data);
        }
        assert_eq!(
            bench.guest(op::SHUTDOWN, 1000, 0, SHUTDOWN_BOTH, b""),
            Verdict::Answer
        );
        let mut got = Vec::new();
        while !bench.connection.finished() {
            got.extend(bench.read());
            bench.connection.socket_event(false, true);
        }
        // The client wrote something that the guest never read: still an orderly end.
        let _ = bench.client.write_all(b"unread");
        let Bench {
            connection, client, ..
        } = bench;
        drop(connection);
        (&client).read_to_end(&mut got).unwrap();
        assert!(got == sent);
    }

    #[test]
    fn guest_half_close_reaches_the_client_after_the_backlog() {
        let mut bench = Bench::open(1000);
        let data = [7; 50_000];
        for _ in 0..5 {
            assert_eq!(bench.guest(op::RW, 1000, 0, 0, &data), Verdict::Fine);
        }
        let verdict = bench.guest(op::SHUTDOWN, 1000, 0, SHUTDOWN_SEND, b"");
        assert_eq!(verdict, Verdict::Fine);
        let mut got = 0;
        loop {
            match bench.read().len() {
                0 if bench.at_end() => break,
                count => got += count,
            }
            bench.connection.socket_event(false, true);
        }
        assert_eq!(got, 250_000);
        // The other direction still works.
        bench.client_writes(b"more");
        let _ = bench
            .next()
            .filter(|(header, _)| header.op == op::CREDIT_UPDATE);
        let rest = bench.next();
        assert!(rest.is_none_or(|(_, data)| data == b"more"));
    }

    #[test]
    fn a_guest_that_ignores_our_credit_is_cut_off() {
        let mut bench = Bench::open(1000);
        let data = [0; 65536];
        let mut verdicts = Vec::new();
        for _ in 0..8 {
            verdicts.push(bench.guest(op::RW, 1000, 0, 0, &data));
        }
        assert!(verdicts.contains(&Verdict::Broken));
        assert!(bench.connection.flow.backlog.len() <= BUFFER as usize);
    }

    #[test]
    fn tells_the_guest_when_half_of_the_buffer_is_free_again() {
        let mut bench = Bench::open(1000);
        let data = [0; 65536];
        assert_eq!(bench.guest(op::RW, 1000, 0, 0, &data), Verdict::Fine);
        bench.read();
        bench.connection.socket_event(false, true);
        assert!(bench.next().is_none());
        assert_eq!(bench.guest(op::RW, 1000, 0, 0, &data), Verdict::Fine);
        bench.read();
        bench.connection.socket_event(false, true);
        let (header, _) = bench.next().unwrap();
        assert_eq!((header.op, header.fwd_cnt), (op::CREDIT_UPDATE, 131_072));
        assert!(bench.next().is_none());
        let _ = bench.guest(op::CREDIT_REQUEST, 1000, 0, 0, b"");
        assert_eq!(bench.next().unwrap().0.op, op::CREDIT_UPDATE);
    }

    #[test]
    fn packets_out_of_order_break_the_connection() {
        for (op, flags) in [(op::REQUEST, 0), (op::RESPONSE, 0), (99, 0)] {
            let mut bench = Bench::open(1000);
            assert_eq!(bench.guest(op, 0, 0, flags, b""), Verdict::Broken);
            assert!(bench.connection.finished());
        }
        let mut bench = Bench::new(b"CONNECT 5\n");
        assert_eq!(bench.guest(op::RW, 0, 0, 0, b"x"), Verdict::Broken);
        let mut bench = Bench::open(1000);
        let _ = bench.guest(op::SHUTDOWN, 0, 0, SHUTDOWN_SEND, b"");
        assert_eq!(bench.guest(op::RW, 0, 0, 0, b"x"), Verdict::Broken);
    }
}
