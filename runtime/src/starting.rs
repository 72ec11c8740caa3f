//! The start of a container, from the word to its first process until that has become the user's
//! command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{Hooks, State};

use crate::error::StartError;
use crate::hooks;
use crate::process::message::{Channel, Message};

/// A container whose first process was told to run the user's command.
#[derive(Debug)]
pub struct Starting {
    channel: Channel,
    executing: bool,
    hooks: Option<Hooks>,
    /// Of the container when it runs; for hooks.
    state: State,
}

/// Readable when [`Starting::advance`] has something to do.
impl AsFd for Starting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Starting {
    pub(crate) fn new(channel: Channel, hooks: Option<Hooks>, state: State) -> Self {
        Self {
            channel,
            executing: false,
            hooks,
            state,
        }
    }

    /// Follows the first process as far as it has come, without waiting for it. `None`: it is not
    /// there yet. It is subject to its container's limits and signals, so that may take any time.
    ///
    /// # Errors
    /// [`StartError`]; the first process has ended.
    pub fn advance(&mut self) -> Result<Option<()>, StartError> {
        let unreachable = |source| StartError::Unreachable {
            id: self.state.id().clone(),
            source,
        };
        loop {
            let received = match self.channel.receive_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                other => other.map_err(unreachable)?,
            };
            match received {
                Some((Message::Executing, _)) => self.executing = true,
                Some((Message::Failed(failure), _)) => return Err(failure.into()),
                Some(_) => {}
                None if self.executing => break,
                None => return Err(unreachable(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        if let Some(hooks) = &self.hooks {
            hooks::run_all("poststart", hooks.poststart(), &self.state);
        }
        Ok(Some(()))
    }

    /// Follows the first process until it has become the command.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn finish(mut self) -> Result<(), StartError> {
        while self.advance()?.is_none() {
            self.channel
                .wait()
                .map_err(|source| StartError::Unreachable {
                    id: self.state.id().clone(),
                    source,
                })?;
        }
        Ok(())
    }
}
