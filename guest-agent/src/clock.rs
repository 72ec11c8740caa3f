//! Wall clock and random numbers: both are wrong in a machine that was just restored.

use std::fs::File;
use std::io;

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

const NANOS: u64 = 1_000_000_000;

/// Sets the wall clock to `ns` nanoseconds since 1970; 0 leaves it.
pub fn set(ns: u64) -> io::Result<()> {
    if ns == 0 {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: i64::try_from(ns / NANOS).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(ns % NANOS).map_err(io::Error::other)?,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Credits `entropy` to the kernel's generator and reseeds it; nothing leaves it.
pub fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    if entropy.is_empty() {
        return Ok(());
    }
    sys::add_entropy(File::options().write(true).open("/dev/random")?, entropy)
}
