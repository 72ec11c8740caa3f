//! What a start leaves for later: the pod's accounts, and for the sandboxes after it the
//! node's template and VMs that wait for a pod.

use std::sync::Arc;
use std::thread::yield_now;
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Sandbox;
use crate::config::Config;
use crate::host::remains;
use crate::{pool, templates};

/// How long a shim whose pod has ended goes on with it: else nodes with nothing but pods
/// of a moment would never have a template.
const TIME: Duration = Duration::from_secs(60);

/// Held while it is done.
static BUSY: Mutex<()> = Mutex::const_new(());

/// The least of priorities.
const LAST: i32 = 19;

impl Sandbox {
    /// Waits until the VMM is in the pod's cgroup, below its limits. As a rule it was done
    /// meanwhile.
    pub(super) async fn adopted(&self) {
        let vm = self.vm.clone();
        // It cannot be cancelled, and does not panic.
        let _ = spawn_blocking(move || vm.adopt_vmm()).await;
    }

    /// Does it, when whoever waits for the sandbox has been served. Once.
    pub(super) fn afterwards(&self) {
        let vm = self.vm.clone();
        // Before the pod can end.
        let busy = BUSY.try_lock().ok();
        tokio::spawn(async move {
            let config = vm.config().clone();
            let booted = vm.booted();
            let adopted = spawn_blocking(move || {
                let_others_go_first();
                vm.adopt();
            });
            // It does not panic.
            let _ = adopted.await;
            if let Some(busy) = busy {
                prepare(config.clone(), booted, busy).await;
            }
            let _ = spawn_blocking(move || remains::reconcile_sometimes(&config)).await;
        });
    }
}

/// Has the next sandboxes start sooner. `booted`: this one found no template.
async fn prepare(config: Arc<Config>, booted: bool, _busy: MutexGuard<'static, ()>) {
    if !config.uses_templates() {
        return;
    }
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

/// Lets whatever else wants this processor have it, once. On a busy host, where others would
/// always want it, that is over after some hundred milliseconds.
fn let_others_go_first() {
    // Of this thread, whatever the names say (setpriority(2)).
    let Ok(own) = getpriority_process(None) else {
        return;
    };
    if setpriority_process(None, LAST).is_ok() {
        yield_now();
        // Who may not take it back stays last.
        let _ = setpriority_process(None, own);
    }
}
