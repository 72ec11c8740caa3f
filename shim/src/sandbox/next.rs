//! What a sandbox that has started does for the ones after it: the node's template, and
//! VMs that wait for a pod.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::config::Config;
use crate::{pool, templates};

/// How long a shim whose pod has ended goes on with it: else nodes with nothing but pods
/// of a moment would never have a template.
const TIME: Duration = Duration::from_secs(60);

/// Held while it is done.
static BUSY: Mutex<()> = Mutex::const_new(());

/// Has the next sandboxes start sooner. `booted`: this one found no template.
pub(super) async fn prepare(config: Arc<Config>, booted: bool) {
    if !config.uses_templates() {
        return;
    }
    let _busy = BUSY.lock().await;
    if booted {
        templates::build_in_background(config.clone()).await;
    }
    pool::fill(config).await;
}

/// Waits until that is done, for a while.
pub async fn finish() {
    if timeout(TIME, BUSY.lock()).await.is_err() {
        tracing::warn!("a template takes too long to make: it is given up");
    }
}
