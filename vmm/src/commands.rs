//! How the devices thread has another thread do something: it asks, and waits a while for
//! the outcome.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryIter, sync_channel};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::poll::again_if;
use crate::sys;

/// How long it waits: the thread may be stuck in a disk, or give much memory back.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Where the outcome of a command goes.
pub type Answer<T> = SyncSender<Result<T, String>>;

/// The side that asks.
pub struct Commands<C> {
    sender: SyncSender<C>,
    call: EventFd,
}

/// The side that obeys.
pub struct Incoming<C> {
    /// Readable when there are commands.
    pub call: EventFd,
    receiver: Receiver<C>,
}

/// Both sides.
pub fn commands<C>() -> io::Result<(Commands<C>, Incoming<C>)> {
    let (sender, receiver) = sync_channel(1);
    let call = sys::event()?;
    let theirs = call.try_clone()?;
    Ok((
        Commands { sender, call },
        Incoming {
            call: theirs,
            receiver,
        },
    ))
}

impl<C> Commands<C> {
    /// Has the thread do something; `busy` is the answer of one that does not come to it.
    pub fn ask<T>(&self, busy: &str, command: impl FnOnce(Answer<T>) -> C) -> Result<T, String> {
        let (answer, answered) = sync_channel(1);
        if self.sender.try_send(command(answer)).is_err() {
            return Err(busy.into());
        }
        again_if(true, &self.call);
        answered
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err(busy.into()))
    }
}

impl<C> Incoming<C> {
    /// The commands that there are.
    pub fn take(&self) -> TryIter<'_, C> {
        // Only the counter's reset matters, not its value.
        let _ = self.call.read();
        self.receiver.try_iter()
    }
}
