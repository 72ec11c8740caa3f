//! `start`.

use anyhow::Result;
use clap::Args;

use super::Global;
use super::notify::Notify;

#[derive(Debug, Args)]
pub(super) struct Start {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Start {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let mut container = global.container(&self.id)?;
        let notify = Notify::open(&container)?;
        container.start()?;
        if let Some(notify) = notify {
            notify.wait(&container);
        }
        Ok(())
    }
}
