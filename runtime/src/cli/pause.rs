//! `pause` and `resume`.

use anyhow::{Result, ensure};
use clap::Args;
use runtime::Status;

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Pause {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Pause {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = global.container(&self.id)?;
        let status = container.status();
        ensure!(
            matches!(status, Status::Running | Status::Created),
            "container {} is {status}; only a running one can be paused",
            self.id
        );
        Ok(container.pause()?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Resume {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = global.container(&self.id)?;
        let status = container.status();
        ensure!(
            status == Status::Paused,
            "container {} is {status}; only a paused one can be resumed",
            self.id
        );
        Ok(container.resume()?)
    }
}
