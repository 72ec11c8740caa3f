//! A file system daemon in place of virtiofsd: sees requests in the arena and writes
//! whatever answers it is told to. For tests and fuzz targets.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::backend::{ARENA_SIZE, Backend, PLACES};
use super::config::QUEUES;
use super::handshake::ARENA_ADDRESS;
use crate::memory::Arena;
use crate::sys;

/// A request as the daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The request's name.
    pub head: u16,
    /// Its bytes.
    pub request: Vec<u8>,
    /// Bytes that an answer may have.
    pub room: u32,
    /// Where the answer goes in the arena.
    answer: usize,
}

/// The daemon's side of an arena.
pub struct TestDaemon {
    /// Dropping it is the daemon's end.
    pub socket: Option<UnixStream>,
    arena: Arena,
    seen: [u16; QUEUES],
    answered: [u16; QUEUES],
}

impl TestDaemon {
    /// A daemon, and what a device is given to reach it.
    pub fn new() -> (Self, Backend<OwnedFd>) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let file = sys::sealed_memory_file(c"test-fs", ARENA_SIZE).expect("an arena");
        let event = || sys::from_event(sys::event().expect("an event"));
        let backend = Backend {
            socket: theirs.into(),
            arena: file,
            kicks: [event(), event()],
            calls: [event(), event()],
        };
        let arena = Arena::map(backend.borrow().arena, ARENA_SIZE as usize).expect("an arena");
        let daemon = Self {
            socket: Some(ours),
            arena,
            seen: [0; QUEUES],
            answered: [0; QUEUES],
        };
        (daemon, backend)
    }

    /// Takes the next request of a queue.
    pub fn next(&mut self, queue: usize) -> Option<Seen> {
        let place = PLACES[queue];
        let ring = place.available();
        if self.arena.load(ring + 2) == self.seen[queue] {
            return None;
        }
        let position = usize::from(self.seen[queue] % place.size());
        self.seen[queue] = self.seen[queue].wrapping_add(1);
        let head = u16::from_le_bytes(self.arena.read(ring + 4 + 2 * position));
        let (at, length, flags) = self.descriptor(queue, head);
        let request = (at..at + length as usize)
            .map(|at| self.arena.read::<1>(at)[0])
            .collect();
        let (answer, room) = match flags & 1 {
            0 => (0, 0),
            _ => {
                let (answer, room, flags) = self.descriptor(queue, head + 1);
                assert_eq!(flags, 2);
                (answer, room)
            }
        };
        Some(Seen {
            head,
            request,
            room,
            answer,
        })
    }

    fn descriptor(&self, queue: usize, index: u16) -> (usize, u32, u16) {
        let at = PLACES[queue].descriptors() + 16 * usize::from(index);
        let address = u64::from_le_bytes(self.arena.read(at));
        let length = u32::from_le_bytes(self.arena.read(at + 8));
        let flags = u16::from_le_bytes(self.arena.read(at + 12));
        ((address - ARENA_ADDRESS) as usize, length, flags)
    }

    /// Answers a request with these bytes.
    pub fn answer(&mut self, queue: usize, seen: &Seen, bytes: &[u8]) {
        self.arena.write(seen.answer, bytes);
        self.give_back(queue, seen.head.into(), bytes.len() as u32);
    }

    /// Gives anything back.
    pub fn give_back(&mut self, queue: usize, id: u32, length: u32) {
        let place = PLACES[queue];
        let position = usize::from(self.answered[queue] % place.size());
        let element = place.used() + 4 + 8 * position;
        self.arena.write(element, &id.to_le_bytes());
        self.arena.write(element + 4, &length.to_le_bytes());
        self.answered[queue] = self.answered[queue].wrapping_add(1);
        self.arena.store(place.used() + 2, self.answered[queue]);
    }

    /// Writes bytes anywhere in the arena, as a hostile daemon may.
    pub fn scribble(&mut self, offset: usize, bytes: &[u8]) {
        let offset = offset % ARENA_SIZE as usize;
        let room = ARENA_SIZE as usize - offset;
        self.arena.write(offset, &bytes[..bytes.len().min(room)]);
    }
}
