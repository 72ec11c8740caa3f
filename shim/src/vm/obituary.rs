//! What is known of a guest that is lost: kept, and told.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{LOG_TIME, Vm};
use crate::error::Result;
use crate::host::dead;
use crate::printable::printable;

/// Longest line of the kernel's log, in bytes: more than the VMM makes.
const MAX_LINE: usize = 8 << 10;

/// Longest reason, in bytes: it may be the agent's words.
const MAX_REASON: usize = 4 << 10;

impl Vm {
    /// The guest is lost for this reason. Keeps what is known of it; returns the reason
    /// with the last of what the guest's kernel said and where all of it is. The first
    /// call counts: what is found later is its consequence.
    pub async fn bury(self: &Arc<Self>, reason: &str) -> String {
        let reason = printable(reason.as_bytes(), MAX_REASON);
        let obituary = async {
            // Another call to the VMM may be under way, and hang.
            let kernel = match timeout(2 * LOG_TIME, self.kernel_log()).await {
                Ok(Ok(kernel)) => kernel,
                Ok(Err(_)) | Err(_) => String::new(),
            };
            let vmm = self.process().map(|process| process.log.so_far());
            let vmm = vmm.unwrap_or_default();
            let text = format!(
                "sandbox {} in namespace {}\n{reason}\n\nmessages of the VMM:\n{vmm}\n\
                 messages of the guest's kernel and agent:\n{kernel}",
                self.id, self.namespace
            );
            let (data_dir, namespace, id) = (
                self.config.data_dir.clone(),
                self.namespace.clone(),
                self.id.clone(),
            );
            let kept = spawn_blocking(move || dead::keep(&data_dir, &namespace, &id, &text)).await;
            let place = match kept {
                Ok(Ok(path)) => format!("; see {}", path.display()),
                Ok(Err(error)) => format!("; its log cannot be kept: {error}"),
                Err(error) => format!("; its log cannot be kept: {error}"),
            };
            let said = match dead::last_lines(if kernel.is_empty() { &vmm } else { &kernel }) {
                said if said.is_empty() => said,
                said => format!("; it said last: {said}"),
            };
            format!("{reason}{place}{said}")
        };
        self.death.get_or_init(|| obituary).await.clone()
    }

    /// Whether somebody has found that the guest is lost.
    pub fn is_buried(&self) -> bool {
        self.death.initialized()
    }

    /// The newest of what the guest's kernel and agent have said.
    ///
    /// # Errors
    /// When the VMM does not answer in a moment, or finds no log.
    pub async fn kernel_log(self: &Arc<Self>) -> Result<String> {
        let log = self.ask("cannot read the guest kernel's log", |vmm| {
            // A VMM that hangs is of no use any more.
            vmm.kernel_log_within(LOG_TIME)
        });
        let text = log.await?;
        Ok(text
            .lines()
            .map(|line| printable(line.as_bytes(), MAX_LINE) + "\n")
            .collect())
    }
}
