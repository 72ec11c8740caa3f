//! `start`.

use anyhow::Result;
use clap::Args;

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Start {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Start {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        Ok(global.container(&self.id)?.start()?)
    }
}
