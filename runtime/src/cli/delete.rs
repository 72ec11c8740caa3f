//! `delete`.

use anyhow::{Result, bail};
use clap::Args;
use runtime::{Container, StateError};

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Kill what still runs; no error when there is no such container
    #[arg(short, long)]
    force: bool,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Delete {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let state_dir = global.state_dir();
        match Container::load(&state_dir, &self.id) {
            Ok(mut container) => Ok(container.delete(self.force)?),
            Err(StateError::NotFound(_)) if self.force => Ok(()),
            // Its creation was cut off before there was a process.
            Err(StateError::Unfinished(_)) => Ok(Container::forget(&state_dir, &self.id)?),
            Err(error) => bail!(error),
        }
    }
}
