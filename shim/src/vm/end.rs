//! The end of a VM, in one place; and who pays for the shim until then.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::spawn_blocking;

use super::{Parts, Vm};
use crate::error::chain;
use crate::host::cgroup::Cgroup;
use crate::host::record::StateDir;

impl Vm {
    /// Moves this process into the pod's cgroup, beside the VMM. Nobody waits for
    /// it: the kernel takes its time, and a pod does not start for the sake of its
    /// accounts. Blocks.
    pub fn adopt_shim(&self) {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that a move is never missed by `release`.
        if home.is_some() || self.released.load(Ordering::Acquire) {
            return;
        }
        match self.cgroup.enter() {
            Ok(was) => *home = Some(was),
            Err(error) => tracing::warn!(
                sandbox = self.id,
                error = chain(&error),
                "the pod does not pay for its shim"
            ),
        }
    }

    /// Undoes [`Vm::adopt_shim`].
    fn return_shim(&self) {
        let home = self
            .home
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(home) = home
            && let Err(error) = Cgroup::leave(&home)
        {
            tracing::warn!(
                sandbox = self.id,
                error = chain(&error),
                "leaving the pod's cgroup"
            );
        }
    }

    /// Kills the VMM, and with it the guest. What it had stays until
    /// [`Vm::release`].
    pub fn kill(&self) {
        if self.released.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.cgroup.kill() {
            tracing::warn!(error = chain(&error), "cannot kill the pod's cgroup");
        }
        if let Ok(pid @ 1..) = i32::try_from(self.pid) {
            // It is our child and not reaped, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Ends the VM and removes all that it has on the host. Only the first call
    /// does anything.
    pub async fn release(self: &Arc<Self>) {
        self.kill();
        if self.released.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(parts) = self.parts().take() else {
            return;
        };
        let vm = self.clone();
        // The move takes as long as the VMM's end; neither needs the other.
        let returned = spawn_blocking({
            let vm = self.clone();
            move || vm.return_shim()
        });
        let released = spawn_blocking(move || {
            let id = &vm.id;
            let Parts {
                vmm,
                attachment,
                _uid,
                state,
                record: _,
            } = parts;
            // Waits for the process, which has been killed.
            drop(vmm);
            if let Some(attachment) = attachment
                && let Err(error) = attachment.detach()
            {
                tracing::warn!(sandbox = id, error = chain(&error), "detaching the network");
            }
            // Until the move back is through, the shim is in the way.
            if let Err(error) = vm.cgroup.remove() {
                // With its record, so that it is found again.
                tracing::error!(
                    sandbox = id,
                    error = chain(&error),
                    "the pod's cgroup stays until `joeyctl reconcile` can remove it"
                );
                return;
            }
            remove_state(&state);
        });
        for step in [returned, released] {
            if let Err(error) = step.await {
                tracing::error!(%error, "taking the VM apart");
            }
        }
    }
}

pub(super) fn remove_state(state: &StateDir) {
    if let Err(error) = state.remove() {
        tracing::warn!(path = %state.path().display(), %error, "removing the state directory");
    }
}
