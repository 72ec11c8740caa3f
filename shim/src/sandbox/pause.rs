//! A pod that stands still: its whole VM is paused, and nothing in it gets any time.

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::process::step;
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
        step(process, TaskState::pause)?;
        self.publisher.publish(&TaskPaused {
            container_id: self.id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Lets the VM go on.
    ///
    /// # Errors
    /// Unless it is paused, or when the VMM cannot.
    pub async fn thaw(&self) -> Result<()> {
        let process = self.process()?;
        let _one = self.pausing.lock().await;
        step(process, |state| state.clone().resume())?;
        self.vm.resume().await?;
        step(process, TaskState::resume)?;
        self.publisher.publish(&TaskResumed {
            container_id: self.id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// The guest, if it can answer.
    ///
    /// # Errors
    /// While the sandbox is paused.
    pub(super) fn awake(&self) -> Result<&Guest> {
        if self.is_paused() {
            return Err(Error::State(format!(
                "sandbox {} is paused: resume it first",
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
