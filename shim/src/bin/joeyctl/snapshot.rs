//! `joeyctl snapshot`: saves a sandbox to disk and lets it go on.

use std::time::Duration;

use clap::Subcommand;
use shim::config::Config;
use ttrpc::context;

use crate::node;

/// How long a sandbox's memory may take to the disk, or back.
const TIME: Duration = Duration::from_secs(300);

#[derive(Subcommand)]
pub enum Snapshot {
    /// Writes a sandbox's memory to disk and gives it back to the host. The pod stands still
    /// until it is restored, or resumed by containerd; connections to it wait.
    Save {
        /// The start of its id, or the name of its pod.
        sandbox: String,
    },
    /// Lets a sandbox that was saved go on.
    Restore {
        /// The start of its id, or the name of its pod.
        sandbox: String,
    },
}

/// Does it.
pub fn run(config: &Config, what: &Snapshot) -> anyhow::Result<()> {
    let (Snapshot::Save { sandbox } | Snapshot::Restore { sandbox }) = what;
    let record = node::named(&config.state_dir, sandbox)?;
    let answer = node::run(async {
        let shim = node::connect(&record).await?;
        let (time, nothing) = (context::with_duration(TIME), Default::default());
        Ok(match what {
            Snapshot::Save { .. } => shim.save(time, &nothing).await,
            Snapshot::Restore { .. } => shim.restore(time, &nothing).await,
        })
    })?;
    answer.map(drop).map_err(node::told)
}
