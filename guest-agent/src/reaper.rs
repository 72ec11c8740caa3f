//! Collects every process that ends below PID 1 and reports those that the host knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitOptions, WaitStatus};

use crate::process::{Exit, Process};

/// The processes whose end somebody waits for, by process id.
///
/// A process is registered in the same step of the event loop that launches it, and
/// only [`Reaper::reap`] collects processes: an id cannot be reused in between, and a
/// process that ends at once is still found.
#[derive(Default)]
pub struct Reaper(Mutex<HashMap<u32, Arc<Process>>>);

impl Reaper {
    fn processes(&self) -> MutexGuard<'_, HashMap<u32, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches for the end of `process`.
    pub fn register(&self, process: Arc<Process>) {
        self.processes().insert(process.pid, process);
    }

    /// Collects everything that has ended and answers with what was registered of it,
    /// in the order in which the kernel gives it. The others are orphans.
    pub fn reap(&self) -> Vec<(Arc<Process>, Exit)> {
        let mut ended = Vec::new();
        // An error is ECHILD: there are no processes at all.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            if let Some(process) = self.processes().remove(&pid) {
                ended.push((process, Exit::now(code(status))));
            }
        }
        ended
    }
}

/// The shell's way to say how a process ended: its exit code, or 128 and the signal.
fn code(status: WaitStatus) -> u32 {
    let signal = || {
        status
            .terminating_signal()
            .map_or(255, |signal| 128 + signal)
    };
    status.exit_status().unwrap_or_else(signal).unsigned_abs()
}
