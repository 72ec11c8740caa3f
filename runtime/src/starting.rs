//! The start of a container, from the word to its first process until that has become the user's
//! command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{ContainerState, Hooks, Spec, State};

use crate::error::StartError;
use crate::hooks;
use crate::process::message::{Channel, Message};
use crate::seccomp::Listener;

/// A container whose first process was told to run the user's command.
#[derive(Debug)]
pub struct Starting {
    channel: Channel,
    /// The first process.
    first: OwnedFd,
    executing: bool,
    hooks: Option<Hooks>,
    /// Who answers system calls of the first process.
    listener: Option<Listener>,
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
    /// `state` is that of the container when it runs.
    pub(crate) fn new(channel: Channel, first: OwnedFd, spec: &Spec, state: State) -> Self {
        let linux = spec.linux().as_ref();
        let profile = linux.and_then(|linux| linux.seccomp().as_ref());
        Self {
            channel,
            first,
            executing: false,
            hooks: spec.hooks().clone(),
            // The profile was good when the container was made.
            listener: profile.and_then(|profile| Listener::new(profile).ok().flatten()),
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
                Some((Message::Listener { fd }, _)) => {
                    if let Some(listener) = &self.listener {
                        let mut state = self.state.clone();
                        state.set_status(ContainerState::Created);
                        let pid = state.pid().unwrap_or(0) as u32;
                        let process = (pid, self.first.as_fd());
                        listener.hand_over(fd, process, &state, &self.channel)?;
                    }
                }
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
