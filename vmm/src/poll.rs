//! Threads and what they wait for: small parts that every loop of the VMM uses.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::seccomp::{self, ThreadKind};
use crate::vcpu::Stop;
use crate::vm::Slot;

/// Stack of each thread in bytes; only touched pages count.
const STACK: usize = 128 * 1024;

/// Starts a confined thread; its result says why the guest cannot go on.
pub fn spawn(
    name: &str,
    kind: ThreadKind,
    stop: &Arc<Stop>,
    work: impl FnOnce() -> io::Result<String> + Send + 'static,
) -> io::Result<()> {
    let stop = Arc::clone(stop);
    let thread_name = name.to_string();
    thread::Builder::new()
        .name(thread_name.clone())
        .stack_size(STACK)
        .spawn(move || {
            let reason = match seccomp::install(kind) {
                Ok(()) => work().unwrap_or_else(|error| format!("{thread_name} failed: {error}")),
                Err(error) => error.to_string(),
            };
            stop.tell(reason);
            // The thread's end would need system calls that it may not make; the
            // process ends in a moment.
            loop {
                thread::park();
            }
        })?;
    Ok(())
}

/// Serves a device after a kick, and kicks it again when there is more to do.
pub fn serve_kick<D>(slot: &Slot<D>, process: impl FnOnce(&mut D) -> bool) {
    // Only the counter's reset matters, not its value.
    let _ = slot.kick.read();
    again_if(process(&mut lock(&slot.device)), &slot.kick);
}

/// Makes sure that a device with more to do gets another turn.
pub fn again_if(more: bool, kick: &EventFd) {
    if more {
        // It fails only when it is readable already.
        let _ = kick.write(1);
    }
}

/// Waits for `token` when `fd` is ready.
pub fn add(epoll: &Epoll, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}

/// Waits for it no more.
pub fn remove(epoll: &Epoll, fd: RawFd) -> io::Result<()> {
    epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
}

/// Waits for events, until the deadline if there is one; an interrupted wait is no event.
pub fn wait(
    epoll: &Epoll,
    events: &mut [EpollEvent],
    deadline: Option<Instant>,
) -> io::Result<usize> {
    let timeout = deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed after the wait.
        i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    match epoll.wait(timeout, events) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}

/// A panic ends the process, so no lock is ever poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
