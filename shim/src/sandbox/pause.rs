//! A pod that stands still: its whole VM is paused, and nothing in it gets any time; or it
//! is saved, and takes none of the host's memory either.

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use protocol::guest::SetClockRequest;

use super::start::clock_ns;
use super::{By, Sandbox};
use crate::error::{Error, Result};
use crate::guest::{self, Guest};
use crate::process::{Process, step};
use crate::task_state::TaskState;

impl Sandbox {
    /// Stops the VM. Connections stay, and what comes for the pod waits.
    ///
    /// # Errors
    /// Unless it runs, or when the VMM cannot.
    pub async fn freeze(&self) -> Result<()> {
        let process = self.process()?;
        let _one = self.pausing.lock().await;
        // Looks only; the step is taken when the VMM has done it.
        step(process, |state| state.clone().pause())?;
        self.vm.pause().await?;
        self.tell_paused(process)
    }

    /// Lets the VM go on, also one that was saved.
    ///
    /// # Errors
    /// Unless it is paused, or when the VMM cannot.
    pub async fn thaw(&self) -> Result<()> {
        let process = self.process()?;
        let _one = self.pausing.lock().await;
        step(process, |state| state.clone().resume())?;
        if self.vm.hibernates() {
            self.vm.wake().await?;
            step(process, |state| state.moved(self.vm.pid()))?;
            self.set_clock().await;
            self.growth.again();
        } else {
            self.vm.resume().await?;
        }
        step(process, TaskState::resume)?;
        if self.by == By::Task {
            self.publisher.publish(&TaskResumed {
                container_id: self.id.clone(),
                ..Default::default()
            });
        }
        Ok(())
    }

    /// Saves the VM, running or paused, and gives its memory back to the host. It is paused
    /// then.
    ///
    /// # Errors
    /// When there is none, or it cannot be saved: it goes on as before.
    pub async fn save(&self) -> Result<()> {
        if self.alone() {
            return Err(Error::State(
                "a container without a pod is not saved".into(),
            ));
        }
        let process = self.process()?;
        let _one = self.pausing.lock().await;
        if self.is_paused() {
            return self.vm.hibernate().await;
        }
        step(process, |state| state.clone().pause())?;
        self.vm.pause().await?;
        if let Err(error) = self.vm.hibernate().await {
            // Of a VM that is lost the reason is the first error.
            let _ = self.vm.resume().await;
            return Err(error);
        }
        self.tell_paused(process)
    }

    fn tell_paused(&self, process: &Process) -> Result<()> {
        step(process, TaskState::pause)?;
        if self.by == By::Task {
            self.publisher.publish(&TaskPaused {
                container_id: self.id.clone(),
                ..Default::default()
            });
        }
        Ok(())
    }

    /// Tells a guest that has stood still without its VMM what time it is. A failure is
    /// logged.
    async fn set_clock(&self) {
        let request = SetClockRequest {
            clock_ns: clock_ns(),
            ..Default::default()
        };
        let set = self
            .guest
            .guest
            .set_clock(guest::question(), &request)
            .await;
        if let Err(error) = set {
            tracing::warn!(sandbox = self.id, %error, "the guest's clock is late");
        }
    }

    /// The guest, if it can answer.
    ///
    /// # Errors
    /// While the sandbox is paused.
    pub(super) fn awake(&self) -> Result<&Guest> {
        if self.is_paused() {
            let (what, how) = match self.vm.hibernates() {
                true => ("saved", "restore"),
                false => ("paused", "resume"),
            };
            return Err(Error::State(format!(
                "sandbox {} is {what}: {how} it first",
                self.id
            )));
        }
        Ok(&self.guest)
    }

    /// Whether its VM stands still.
    pub(super) fn is_paused(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| matches!(*process.state(), TaskState::Paused { .. }))
    }
}
