//! How much a guest or a VMM may make this process log.

use std::time::{Duration, Instant};

/// Lines in one [`INTERVAL`].
const LINES: u32 = 50;
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts lines.
#[derive(Debug, Default)]
pub struct Limit {
    since: Option<Instant>,
    taken: u32,
    missed: u64,
}

impl Limit {
    /// Takes one line; `None`: it is one too many. Else how many were, before it.
    pub fn take(&mut self) -> Option<u64> {
        self.take_at(Instant::now())
    }

    fn take_at(&mut self, now: Instant) -> Option<u64> {
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= INTERVAL)
        {
            self.since = Some(now);
            self.taken = 0;
        }
        if self.taken == LINES {
            self.missed += 1;
            return None;
        }
        self.taken += 1;
        Some(std::mem::take(&mut self.missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut limit = Limit::default();
        let now = Instant::now();
        let taken = (0..1000).filter(|_| limit.take_at(now).is_some()).count();
        assert_eq!(taken, LINES as usize);
        assert_eq!(limit.take_at(now + INTERVAL), Some(1000 - u64::from(LINES)));
        assert_eq!(limit.take_at(now + INTERVAL), Some(0));
    }
}
