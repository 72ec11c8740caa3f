//! The end of a VM, in one place; and who pays for the shim until then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::task::spawn_blocking;

use super::{Parts, Process, Vm, lock};
use crate::error::chain;
use crate::host::cgroup::Cgroup;
use crate::host::oom_score;
use crate::host::record::StateDir;

impl Vm {
    /// Moves a VMM that waited for a pod into the pod's cgroup, and this process too.
    /// Nobody waits for it: the kernel takes its time, and a pod does not start for the
    /// sake of its accounts. Blocks.
    pub fn adopt(&self) {
        self.adopt_vmm();
        let mut home = lock(&self.home);
        // Under the lock, so that a move is never missed by `release`.
        if home.is_some() || self.released.load(Ordering::Acquire) {
            return;
        }
        match self.cgroup.enter() {
            Ok(was) => {
                *home = Some(was);
                // When the pod is out of memory, a worker of KVM's may keep that of the dead
                // VMM until it has got some itself. The next to be killed would be whoever
                // tells containerd why the pod has ended.
                if let Err(error) = oom_score::set(std::process::id(), oom_score::NEVER) {
                    tracing::warn!(%error, "the host may kill the shim for the pod's want of memory");
                }
            }
            Err(error) => tracing::warn!(
                sandbox = self.id,
                error = chain(&error),
                "the pod does not pay for its shim"
            ),
        }
    }

    /// The first half of [`Vm::adopt`]: nothing is left to do where that was done. Blocks.
    pub fn adopt_vmm(&self) {
        let mut stray = lock(&self.stray);
        if let Some(process) = self.process()
            && *stray
            && !self.released.load(Ordering::Acquire)
        {
            // Not reaped before `release`, which waits for the lock.
            match self.cgroup.adopt(process.pid) {
                Ok(()) => *stray = false,
                Err(error) => tracing::warn!(
                    sandbox = self.id,
                    error = chain(&error),
                    "the pod does not pay for its VMM"
                ),
            }
        }
    }

    /// Undoes [`Vm::adopt`] for this process. Blocks.
    pub fn return_shim(&self) {
        let home = lock(&self.home).take();
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
        // First: a VMM that is being made for a VM that hibernates is not wanted any more.
        self.killed.store(true, Ordering::SeqCst);
        drop(lock(&self.dormant).take());
        if let Err(error) = self.cgroup.kill() {
            tracing::warn!(error = chain(&error), "cannot kill the pod's cgroup");
        }
        if let Some(process) = self.process() {
            process.kill();
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
                backing,
                saved,
                attachment,
                state,
                record: _,
            } = parts;
            // It is not moved to another cgroup any more.
            drop(lock(&vm.stray));
            // Waits for the process, which has been killed.
            drop(vmm);
            // Before the network is detached: the TAP is held by these.
            drop((backing, saved));
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

impl Process {
    /// Kills it; one that is dead already is fine.
    pub(super) fn kill(&self) {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, "cannot kill the VMM"),
        }
    }
}

pub(super) fn remove_state(state: &StateDir) {
    if let Err(error) = state.remove() {
        tracing::warn!(path = %state.path().display(), %error, "removing the state directory");
    }
}
