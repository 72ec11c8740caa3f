//! Collects every process that ends below this one, which adopts orphans, and reports those
//! that somebody knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitOptions, WaitStatus};

use crate::process::{Exit, Process};

/// The processes whose end somebody waits for, by process id.
///
/// A process is registered, or expected, in the same step of the event loop that makes
/// it, and only [`Reaper::reap`] collects processes: an id cannot be reused in between,
/// and a process that ends at once is still found.
pub struct Reaper<P = Process>(Mutex<Known<P>>);

struct Known<P> {
    processes: HashMap<u32, Arc<P>>,
    /// Those that are on their way to their commands, with their ends.
    expected: HashMap<u32, Option<Exit>>,
}

impl<P> Default for Reaper<P> {
    fn default() -> Self {
        Self(Mutex::new(Known {
            processes: HashMap::new(),
            expected: HashMap::new(),
        }))
    }
}

impl<P> Reaper<P> {
    fn known(&self) -> MutexGuard<'_, Known<P>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches for the end of `process`, whose id is `pid`.
    pub fn register(&self, pid: u32, process: Arc<P>) {
        self.known().processes.insert(pid, process);
    }

    /// Keeps the end of a process until it is [registered](Self::register_expected) or
    /// given [up](Self::give_up).
    pub fn expect(&self, pid: u32) {
        self.known().expected.insert(pid, None);
    }

    /// Watches for the end of a process that was expected; answers with it when it has
    /// come already.
    pub fn register_expected(&self, pid: u32, process: &Arc<P>) -> Option<Exit> {
        let mut known = self.known();
        let exit = known.expected.remove(&pid).flatten();
        if exit.is_none() {
            known.processes.insert(pid, Arc::clone(process));
        }
        exit
    }

    /// An expected process did not get to its command.
    pub fn give_up(&self, pid: u32) {
        self.known().expected.remove(&pid);
    }

    /// Collects everything that has ended and answers with what was registered of it,
    /// in the order in which the kernel gives it. The others are orphans.
    pub fn reap(&self) -> Vec<(Arc<P>, Exit)> {
        let mut ended = Vec::new();
        // An error is ECHILD: there are no processes at all.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let exit = Exit::now(code(status));
            let mut known = self.known();
            if let Some(process) = known.processes.remove(&pid) {
                ended.push((process, exit));
            } else if let Some(end) = known.expected.get_mut(&pid) {
                end.get_or_insert(exit);
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
