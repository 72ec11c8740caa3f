//! One virtqueue as a device uses it: chains of guest buffers in, used lengths out.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::Interrupt;
use crate::memory::{GuestRam, IoVec};

/// One request of the driver: its buffers, in order. Reused from request to request.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of the first descriptor: the request's name.
    pub head: u16,
    /// What the device may read.
    pub readable: IoVec,
    /// What the device may write.
    pub writable: IoVec,
}

/// A live queue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    ram: GuestRam,
    /// Buffers were used since the last interrupt.
    used: bool,
}

impl Ring {
    /// Takes a queue that the driver has set up.
    pub fn new(queue: Queue, ram: GuestRam) -> Self {
        Self {
            queue,
            ram,
            used: false,
        }
    }

    /// Gives the queue back; requests that were taken off it must have been given back.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// Takes the next request; `false` when there is none. A request whose buffers
    /// are not all guest memory comes out empty, so that the device finds it too
    /// short and gives it back.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        let Some(descriptors) = self.queue.pop_descriptor_chain(&*self.ram) else {
            return false;
        };
        chain.head = descriptors.head_index();
        chain.readable.clear();
        chain.writable.clear();
        for descriptor in descriptors {
            let list = if descriptor.is_write_only() {
                &mut chain.writable
            } else {
                &mut chain.readable
            };
            if list
                .push(self.ram, descriptor.addr().0, descriptor.len())
                .is_err()
            {
                chain.readable.clear();
                chain.writable.clear();
                break;
            }
        }
        true
    }

    /// Has `serve` carry out requests until there is none, and looks for one at most so many
    /// times, so that others get their turn; `true`: there may be more. What `serve` has
    /// taken it gives back.
    pub fn each(
        &mut self,
        most: usize,
        chain: &mut Chain,
        mut serve: impl FnMut(&mut Self, &mut Chain),
    ) -> bool {
        for _ in 0..most {
            if self.pop(chain) {
                serve(self, chain);
            } else if !self.enable_kicks() {
                return false;
            }
        }
        true
    }

    /// Puts the request taken last back; as often as requests were taken.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a request back with `length` bytes written.
    pub fn push(&mut self, head: u16, length: u32) {
        // It fails only for a ring outside of guest memory, which activation
        // refuses, so nothing is lost by going on.
        let _ = self.queue.add_used(&*self.ram, head, length);
        self.used = true;
    }

    /// Raises the interrupt when the driver wants to hear of what was pushed.
    pub fn notify(&mut self, interrupt: &Interrupt) {
        if !std::mem::take(&mut self.used) {
            return;
        }
        if self.queue.needs_notification(&*self.ram).unwrap_or(true) {
            interrupt.signal_used();
        }
    }

    /// Asks the driver for a kick at its next request. `true`: a request came
    /// meanwhile, for which no kick may follow.
    pub fn enable_kicks(&mut self) -> bool {
        let came = self.queue.enable_notification(&*self.ram);
        came.unwrap_or(false) && self.index_is_possible()
    }

    /// Whether the driver can have made as many requests as its index says. One that
    /// is further ahead than the queue is long never yields a request ([`Self::pop`]),
    /// so that a device which believed it would look for one for ever.
    fn index_is_possible(&self) -> bool {
        let taken = Wrapping(self.queue.next_avail());
        let index = self.queue.avail_idx(&*self.ram, Ordering::Acquire);
        index.is_ok_and(|made| (made - taken).0 <= self.queue.size())
    }

    /// Asks the driver for no kicks, while the device looks by itself.
    pub fn disable_kicks(&mut self) {
        // As in `push`.
        let _ = self.queue.disable_notification(&*self.ram);
    }
}
