//! The driver's side of one virtqueue of the daemon. The daemon may write to the arena
//! at any time, so all that is read from there is checked and nothing is read twice.

use super::backend::Place;
use crate::memory::{Arena, IoVec};

/// The daemon did what no device does; its queues are not used any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Broken {
    /// More answers than requests.
    #[error("it gave back more requests than it had")]
    Index,
    /// An answer to a request that was not made.
    #[error("it gave back a request that it did not have ({0})")]
    Unknown(u32),
    /// A longer answer than there is room for.
    #[error("it claims to have written {length} bytes, with room for {room}")]
    Length {
        /// As claimed.
        length: u32,
        /// What there was.
        room: usize,
    },
}

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What occupies a slot.
#[derive(Debug)]
struct Busy<T> {
    what: T,
    answer: usize,
    room: usize,
}

/// An answer in the arena; valid until the next request is added.
#[derive(Debug)]
pub struct Answer<T> {
    /// As given to [`Ring::add`].
    pub what: T,
    /// Where it is.
    pub offset: usize,
    /// Its bytes, at most what there was room for.
    pub length: usize,
}

/// A virtqueue whose device is the daemon.
#[derive(Debug)]
pub struct Ring<T> {
    place: Place,
    /// Physical address of the arena, as the daemon was told.
    base: u64,
    slots: Vec<Option<Busy<T>>>,
    busy: u16,
    /// Requests made so far, and answers taken.
    made: u16,
    taken: u16,
}

impl<T> Ring<T> {
    /// A queue after so many requests, all of them answered.
    pub fn new(place: Place, base: u64, made: u16) -> Self {
        Self {
            place,
            base,
            slots: (0..place.count).map(|_| None).collect(),
            busy: 0,
            made,
            taken: made,
        }
    }

    /// How many requests it has had.
    pub fn made(&self) -> u16 {
        self.made
    }

    /// Whether all are answered.
    pub fn is_idle(&self) -> bool {
        self.busy == 0
    }

    /// Whether there is a slot for another request.
    pub fn has_room(&self) -> bool {
        self.busy < self.place.count
    }

    /// Copies a request into the lowest free slot; returns its place, or `None` when it
    /// does not fit. The daemon sees it after [`Self::publish`].
    pub fn add(&mut self, arena: &Arena, request: &IoVec, room: usize) -> Option<Prepared> {
        let slot = self.slots.iter().position(Option::is_none)?;
        // There are few slots.
        let slot = slot as u16;
        let (at, answer) = self.place.buffers(slot, request.len(), room)?;
        arena.gather(at, request, 0..request.len());
        Some(Prepared {
            slot,
            request: at,
            length: request.len(),
            answer,
            room,
        })
    }

    /// Hands a request to the daemon.
    pub fn publish(&mut self, arena: &Arena, prepared: &Prepared, what: T) {
        let Prepared {
            slot,
            request,
            length,
            answer,
            room,
        } = *prepared;
        let head = 2 * slot;
        let next = if room > 0 { NEXT } else { 0 };
        self.describe(arena, head, request, length, next);
        self.describe(arena, head + 1, answer, room, WRITE);
        let ring = self.place.available();
        let position = usize::from(self.made % self.place.size());
        arena.write(ring + 4 + 2 * position, &head.to_le_bytes());
        self.made = self.made.wrapping_add(1);
        arena.store(ring + 2, self.made);
        self.slots[usize::from(slot)] = Some(Busy { what, answer, room });
        self.busy += 1;
    }

    fn describe(&self, arena: &Arena, index: u16, at: usize, length: usize, flags: u16) {
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&(self.base + at as u64).to_le_bytes());
        // A slot is shorter than 4 GiB.
        descriptor[8..12].copy_from_slice(&(length as u32).to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&(index + 1).to_le_bytes());
        arena.write(
            self.place.descriptors() + 16 * usize::from(index),
            &descriptor,
        );
    }

    /// Takes the next answer and frees its slot.
    pub fn take(&mut self, arena: &Arena) -> Result<Option<Answer<T>>, Broken> {
        let ring = self.place.used();
        let ahead = arena.load(ring + 2).wrapping_sub(self.taken);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.busy {
            return Err(Broken::Index);
        }
        let position = usize::from(self.taken % self.place.size());
        let [a, b, c, d, e, f, g, h] = arena.read(ring + 4 + 8 * position);
        let id = u32::from_le_bytes([a, b, c, d]);
        let length = u32::from_le_bytes([e, f, g, h]);
        let slot = self.slots.get_mut(id as usize / 2);
        let slot = slot.filter(|_| id % 2 == 0).ok_or(Broken::Unknown(id))?;
        // A request stays in its slot until its answer is right, so that it gets one.
        let room = slot.as_ref().ok_or(Broken::Unknown(id))?.room;
        if length as usize > room {
            return Err(Broken::Length { length, room });
        }
        let Some(Busy { what, answer, .. }) = slot.take() else {
            return Err(Broken::Unknown(id));
        };
        self.busy -= 1;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Answer {
            what,
            offset: answer,
            length: length as usize,
        }))
    }

    /// Everything that the daemon has not answered.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.busy = 0;
        let slots = self.slots.iter_mut();
        slots.filter_map(Option::take).map(|busy| busy.what)
    }
}

/// A request that is in its slot, but that the daemon does not know of yet.
#[derive(Debug)]
pub struct Prepared {
    slot: u16,
    /// Where it is in the arena.
    pub request: usize,
    length: usize,
    answer: usize,
    room: usize,
}
