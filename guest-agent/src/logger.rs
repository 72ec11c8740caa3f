//! Log lines into the kernel's log, where the VM's console shows them.

use std::fs::File;
use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// A [`Log`] that writes one kernel log record a line.
struct Kmsg(File);

impl Log for Kmsg {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // One write is one record; a log line that cannot be written has nowhere to go.
        let line = format!(
            "<{}>joey-agent: {}\n",
            priority(record.level()),
            record.args()
        );
        let _ = (&self.0).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// The kernel's (syslog's) number for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Sends log lines, and what a panic says, to `kmsg` (an open /dev/kmsg). A second
/// call changes nothing.
pub fn install(kmsg: File) {
    if log::set_boxed_logger(Box::new(Kmsg(kmsg))).is_ok() {
        log::set_max_level(LevelFilter::Info);
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}
