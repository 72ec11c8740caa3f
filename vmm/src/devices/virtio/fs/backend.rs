//! What the VMM and the file system daemon share: descriptors, and where things are in
//! the arena.

use super::config::{OUT_HEADER, QUEUES};
use crate::memory::PAGE;

/// The descriptors that travel with [`crate::Action::AttachFs`]. `F` is a borrowed
/// descriptor when sent, an owned one when received.
#[derive(Debug)]
pub struct Backend<F> {
    /// The daemon's vhost-user socket: its end says that the daemon died.
    pub socket: F,
    /// The arena: a sealed file in memory of [`ARENA_SIZE`] bytes.
    pub arena: F,
    /// For each queue: written when it has a request.
    pub kicks: [F; QUEUES],
    /// For each queue: written by the daemon when it has an answer.
    pub calls: [F; QUEUES],
}

impl<F> Backend<F> {
    /// The descriptors in the order in which they are sent.
    pub fn into_list(self) -> Vec<F> {
        let mut list = vec![self.socket, self.arena];
        list.extend(self.kicks);
        list.extend(self.calls);
        list
    }

    /// The reverse of [`Self::into_list`]; `None` when the number is wrong.
    pub fn from_list(list: Vec<F>) -> Option<Self> {
        let list: [F; 2 + 2 * QUEUES] = list.try_into().ok()?;
        let [socket, arena, kick0, kick1, call0, call1] = list;
        Some(Self {
            socket,
            arena,
            kicks: [kick0, kick1],
            calls: [call0, call1],
        })
    }
}

/// Bytes of the arena; only pages that were used exist.
pub const ARENA_SIZE: u64 = 35 << 20;

/// Where a queue and its slots are in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Descriptors; one page each for them and the two rings.
    ring: usize,
    /// The first slot; the others follow.
    slots: usize,
    /// Number of slots: of requests that the daemon works on at a time.
    pub count: u16,
    /// Bytes of a slot, which holds a request and its answer.
    slot_size: usize,
}

const PAGE_SIZE: usize = PAGE as usize;
/// Header and arguments of FUSE_WRITE, which its data follow.
const WRITE_HEADER: usize = 80;

/// For each queue. A large request has 1 MiB of data in it or in its answer, never in
/// both; what overtakes others has none.
pub const PLACES: [Place; QUEUES] = [
    Place {
        ring: 0,
        slots: 0x1_0000,
        count: 4,
        slot_size: 3 * PAGE_SIZE,
    },
    Place {
        ring: 0x4000,
        slots: 0x10_0000,
        count: 32,
        slot_size: 0x11_0000,
    },
];

impl Place {
    /// Descriptors of the queue: two for each slot.
    pub const fn size(&self) -> u16 {
        2 * self.count
    }

    /// Offset of the descriptor table.
    pub const fn descriptors(&self) -> usize {
        self.ring
    }

    /// Offset of the ring that we write.
    pub const fn available(&self) -> usize {
        self.ring + PAGE_SIZE
    }

    /// Offset of the ring that the daemon writes.
    pub const fn used(&self) -> usize {
        self.ring + 2 * PAGE_SIZE
    }

    /// Offsets of a request of `length` bytes and of `room` bytes for its answer in a
    /// slot; `None` when they do not fit. Data begin on a page, which direct I/O needs.
    pub fn buffers(&self, slot: u16, length: usize, room: usize) -> Option<(usize, usize)> {
        let start = self.slots + usize::from(slot) * self.slot_size;
        let request = start + PAGE_SIZE - WRITE_HEADER;
        let end = request.checked_add(length)?.checked_add(OUT_HEADER)?;
        let answer = end.checked_next_multiple_of(PAGE_SIZE)? - OUT_HEADER;
        (answer.checked_add(room)? <= start + self.slot_size).then_some((request, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_journey() {
        let backend = Backend {
            socket: 1,
            arena: 2,
            kicks: [3, 4],
            calls: [5, 6],
        };
        let back = Backend::from_list(backend.into_list()).unwrap();
        assert_eq!((back.socket, back.arena), (1, 2));
        assert_eq!((back.kicks, back.calls), ([3, 4], [5, 6]));
        assert!(Backend::from_list(vec![0; 5]).is_none());
        assert!(Backend::from_list(vec![0; 7]).is_none());
    }

    #[test]
    fn nothing_overlaps_and_all_is_within_the_arena() {
        let mut ends = Vec::new();
        for place in PLACES {
            assert!(place.size().is_power_of_two());
            ends.push((place.ring, place.used() + PAGE_SIZE));
            let size = usize::from(place.size());
            assert!(size * 16 <= PAGE_SIZE && 6 + size * 8 <= PAGE_SIZE);
            let slots = place.slot_size * usize::from(place.count);
            ends.push((place.slots, place.slots + slots));
        }
        ends.sort_unstable();
        assert!(
            ends.windows(2).all(|pair| pair[0].1 <= pair[1].0),
            "{ends:x?}"
        );
        assert!(ends.iter().all(|(_, end)| *end as u64 <= ARENA_SIZE));
    }

    #[test]
    fn slots_hold_the_largest_requests_and_nothing_beyond() {
        let place = &PLACES[1];
        let (request, answer) = place.buffers(3, 80 + (1 << 20), 24).unwrap();
        assert_eq!((request + 80) % PAGE_SIZE, 0);
        assert!(answer >= request + 80 + (1 << 20));
        let (request, answer) = place.buffers(31, 80, 16 + (1 << 20)).unwrap();
        assert_eq!((answer + 16) % PAGE_SIZE, 0);
        assert!(answer >= request + 80);
        for (length, room) in [
            (1 << 20, 1 << 20),
            (0x11_0000, 0),
            (0, 0x11_0000),
            (usize::MAX, 1),
            (1, usize::MAX),
        ] {
            assert_eq!(place.buffers(0, length, room), None);
        }
    }
}
