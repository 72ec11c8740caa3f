//! How long the host's processor was busy.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The fields of /proc/stat that are time without work: idle, and idle while a disk is
/// awaited. The kernel measures both where it goes to sleep and wakes up; all others it
/// guesses from what its tick interrupts.
const IDLE: std::ops::Range<usize> = 3..5;
/// Their unit: USER_HZ, which is the same on all of Linux's x86.
const TICK: Duration = Duration::from_millis(10);

/// A moment, from which on time is counted.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    now: Duration,
    idle: Duration,
}

impl Mark {
    /// This moment.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn now() -> io::Result<Mark> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let idle = idle(&stat).ok_or_else(|| io::Error::other("no idle time in /proc/stat"))?;
        let now = clock_gettime(ClockId::Monotonic);
        Ok(Mark {
            now: Duration::try_from(now).map_err(io::Error::other)?,
            idle,
        })
    }

    /// The time since then in which the only processor did anything: programs, guests, the
    /// kernel, interrupts. Exact to 10 ms, so it takes seconds to measure something.
    ///
    /// # Errors
    /// As [`Self::now`].
    pub fn busy(&self) -> io::Result<Duration> {
        let now = Mark::now()?;
        Ok((now.now - self.now).saturating_sub(now.idle - self.idle))
    }
}

fn idle(stat: &str) -> Option<Duration> {
    let all = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks = all.split_whitespace().skip(IDLE.start).take(IDLE.len());
    let ticks: u32 = ticks
        .map(|word| word.parse::<u32>().ok())
        .sum::<Option<u32>>()?;
    Some(TICK * ticks)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::idle;

    #[test]
    fn idle_time_is_that_of_all_processors_with_the_disks() {
        let stat = "cpu  10 20 30 400 5 60 70 0 0 0\ncpu0 1 2 3 4 5 6 7 0 0 0\n";
        assert_eq!(idle(stat), Some(Duration::from_millis(4050)));
        assert_eq!(idle("cpu  1 2 3\nintr 7\n"), Some(Duration::ZERO));
        assert_eq!(idle("intr 7\n"), None);
    }
}
