//! How many spare VMs are wanted: as many as sandboxes were started lately.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// Name of the file with the times of the last starts: milliseconds since boot, 8 bytes
/// each, little endian.
const FILE: &str = "starts";
/// How long ago "lately" is, in milliseconds.
const WINDOW: u64 = 10_000;
/// Bytes of the file above which the older half is dropped.
const MAX_FILE: usize = 8 << 10;

/// A sandbox is started now. That it cannot be noted is no reason not to.
pub fn note(place: &Path) {
    let file = File::options()
        .append(true)
        .create(true)
        .open(place.join(FILE));
    if let (Ok(mut file), Some(now)) = (file, now()) {
        // So short that it is appended as a whole.
        let _ = file.write_all(&now.to_le_bytes());
    }
}

/// How many there should be: one at least, `most` at most.
pub fn wanted(place: &Path, most: u32) -> usize {
    let path = place.join(FILE);
    let notes = fs::read(&path).unwrap_or_default();
    if notes.len() > MAX_FILE {
        // One that is noted meanwhile is lost, and with it one spare VM for a while.
        let _ = fs::write(&path, &notes[notes.len() - MAX_FILE / 2..]);
    }
    count(&notes, now().unwrap_or(0)).clamp(1, most.max(1) as usize)
}

/// The starts of the last while.
fn count(notes: &[u8], now: u64) -> usize {
    let times = notes.as_chunks::<8>().0.iter();
    times
        .filter(|time| now.saturating_sub(u64::from_le_bytes(**time)) < WINDOW)
        .count()
}

fn now() -> Option<u64> {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_of_the_last_seconds_count() {
        let notes: Vec<u8> = [1_000u64, 50_000, 55_000, 59_999]
            .iter()
            .flat_map(|time| time.to_le_bytes())
            .collect();
        assert_eq!(count(&notes, 60_000), 2);
        assert_eq!(count(&notes, 59_999), 3);
        assert_eq!(count(&notes[..12], 1_000), 1);
        assert_eq!(count(&[], 0), 0);
    }

    #[test]
    fn there_is_always_one_and_never_too_many() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(wanted(dir.path(), 8), 1);
        for _ in 0..5 {
            note(dir.path());
        }
        assert_eq!((wanted(dir.path(), 8), wanted(dir.path(), 3)), (5, 3));
        fs::write(dir.path().join(FILE), vec![0; MAX_FILE + 8]).unwrap();
        wanted(dir.path(), 8);
        let left = fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert_eq!(left as usize, MAX_FILE / 2);
    }
}
