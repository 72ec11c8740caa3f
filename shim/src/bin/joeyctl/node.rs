//! The sandboxes of this node, as their records tell, and their shims.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use containerd_shim_protos::shim_async::Client;
use protocol::shim_ttrpc::ShimClient;
use shim::config::Config;
use shim::host::memory::Memory;
use shim::host::record::{self, Record};
use tokio::time::timeout;
use ttrpc::context;

/// How long a shim may take to answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(3);

/// The records of all sandboxes, in order of namespace and id.
pub fn sandboxes(state_dir: &Path) -> Vec<Record> {
    record::state_dirs(state_dir)
        .iter()
        .filter(|path| record::being_made(path).is_none())
        // One that is unreadable is what `joeyctl reconcile` is for.
        .filter_map(|path| record::read(path).ok().flatten())
        .collect()
}

/// What a sandbox costs in memory; what is gone of it costs nothing.
pub fn memory(record: &Record, config: &Config) -> Memory {
    Memory::of(
        record.vmm_lives().then_some(record.vmm_pid),
        record.shim_lives().then_some(record.shim_pid),
        &[&config.kernel, &config.agent],
    )
}

/// The sandbox whose id starts with `id`, or that is of the pod of this name; `None`:
/// there is none.
///
/// # Errors
/// When there are several.
pub fn find(state_dir: &Path, id: &str) -> anyhow::Result<Option<Record>> {
    let mut found: Vec<_> = sandboxes(state_dir)
        .into_iter()
        .filter(|record| record.id.starts_with(id) || record.pod == id)
        .collect();
    if found.len() > 1 {
        bail!(
            "{} sandboxes are called {id}: give more of the id",
            found.len()
        );
    }
    Ok(found.pop())
}

/// As [`find`], but that there is none is an error.
pub fn named(state_dir: &Path, id: &str) -> anyhow::Result<Record> {
    find(state_dir, id)?
        .ok_or_else(|| anyhow!("no sandbox is called {id}; `joeyctl ps` lists those that run"))
}

/// What a shim says went wrong, without ttrpc's words around it.
pub fn told(error: ttrpc::Error) -> anyhow::Error {
    match error {
        ttrpc::Error::RpcStatus(status) => anyhow!(status.message),
        other => anyhow!(other),
    }
}

/// A connection to a sandbox's shim.
pub async fn connect(record: &Record) -> anyhow::Result<ShimClient> {
    let address = format!("unix://{}", record.socket.display());
    let client = timeout(ANSWER_TIME, Client::connect(&address))
        .await
        .context("the shim does not answer")?
        .with_context(|| format!("cannot reach the shim at {address}"))?;
    Ok(ShimClient::new(client))
}

/// The context of a call.
pub fn call() -> context::Context {
    context::with_duration(ANSWER_TIME)
}

/// Runs a command that asks shims.
pub fn run<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(command)
}
