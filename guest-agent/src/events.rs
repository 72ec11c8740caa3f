//! What happened in the guest, numbered, for the host to collect by long poll.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::guest::{Event, event::Kind};
use tokio::sync::Notify;

/// Events kept for a host that is not listening. The oldest go first: the host
/// sees the gap in the sequence numbers.
pub const CAPACITY: usize = 4096;

#[derive(Default)]
struct Log {
    events: VecDeque<Event>,
    last: u64,
}

/// The log. Sequence numbers count from 1 without gaps.
#[derive(Default)]
pub struct EventLog {
    log: Mutex<Log>,
    grown: Notify,
}

impl EventLog {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event and wakes whoever waits for it.
    pub fn push(&self, kind: Kind) {
        let mut log = self.log();
        log.last += 1;
        let event = Event {
            sequence: log.last,
            kind: Some(kind),
            ..Default::default()
        };
        if log.events.len() == CAPACITY {
            log.events.pop_front();
        }
        log.events.push_back(event);
        drop(log);
        self.grown.notify_waiters();
    }

    /// The oldest kept event with a sequence number above `after`; waits for it when
    /// there is none yet. Those up to `after` are no longer kept.
    pub async fn next(&self, after: u64) -> Event {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // Registered before the look, so that a push in between is not missed.
            grown.as_mut().enable();
            if let Some(event) = self.after(after) {
                return event;
            }
            grown.await;
        }
    }

    /// Who asks beyond an event has it.
    fn after(&self, after: u64) -> Option<Event> {
        let mut log = self.log();
        let had = log.events.partition_point(|event| event.sequence <= after);
        log.events.drain(..had);
        log.events.front().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::guest::Oom;

    fn oom(container_id: &str) -> Kind {
        Kind::Oom(Oom {
            container_id: container_id.into(),
            ..Default::default()
        })
    }

    #[tokio::test]
    async fn events_come_in_order_and_stay_until_asked_beyond() {
        let log = EventLog::default();
        log.push(oom("a"));
        log.push(oom("b"));
        assert_eq!(log.next(0).await.sequence, 1);
        assert_eq!(log.next(0).await.sequence, 1);
        assert_eq!(log.next(1).await.oom().container_id, "b");
        assert_eq!(log.log().events.len(), 1);
    }

    #[tokio::test]
    async fn a_poll_waits_for_the_event_it_asks_for() {
        let log = EventLog::default();
        log.push(oom("a"));
        let (event, ()) = tokio::join!(log.next(1), async { log.push(oom("b")) });
        assert_eq!(
            (event.sequence, event.oom().container_id.as_str()),
            (2, "b")
        );
    }

    #[tokio::test]
    async fn the_oldest_events_go_first() {
        let log = EventLog::default();
        for _ in 0..CAPACITY + 3 {
            log.push(oom("a"));
        }
        assert_eq!(log.next(0).await.sequence, 4);
        assert_eq!(log.log().events.len(), CAPACITY);
    }
}
