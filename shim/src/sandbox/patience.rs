//! A guest that does not answer. A call that belongs to a stop is bounded: a guest that
//! leaves it unanswered is taken for hung, and killed.

use std::future::Future;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::ttrpc;
use tokio::time::sleep;

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest;

/// How long a guest may be silent before it is taken for hung. A guest on a node under
/// load is slow; one that hangs keeps containerd waiting.
const HUNG_TIME: Duration = Duration::from_secs(10);

/// How long a call may take at least, however long the guest has been silent.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// How long a guest is not asked again that has left a question unanswered.
const MUTE_TIME: Duration = Duration::from_secs(60);

/// What became of a call.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    /// The agent answered.
    Answered(T),
    /// It refused.
    Refused(ttrpc::Error),
    /// Nothing came within the time given.
    Silent,
    /// The VM has ended, or was ended since the guest is hung or its agent gone.
    Ended,
}

impl Sandbox {
    /// A call without which a process or the pod does not stop. Returns when it is
    /// answered or the VM has ended.
    pub(super) async fn insist<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Outcome<T> {
        let silent = self
            .silent_since()
            .map_or(Duration::ZERO, |since| since.elapsed());
        let time = HUNG_TIME.saturating_sub(silent).max(LEAST_TIME);
        match self.call(call, time).await {
            Outcome::Silent => {
                let reason =
                    format!("the guest hangs: its agent has not answered for {HUNG_TIME:?}");
                let said = self.vm.bury(&reason).await;
                tracing::error!(reason = said, "killing the VM");
                self.vm.kill();
                self.wait_ended().await;
                Outcome::Ended
            }
            outcome => outcome,
        }
    }

    /// A call of which an answer is hoped for soon, after which the guest's silence is
    /// counted.
    pub(super) async fn suggest<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Outcome<T> {
        self.call(call, LEAST_TIME).await
    }

    /// A question that containerd asks one container after the other, of all pods: a
    /// guest that has just left one unanswered is not waited for again at once.
    ///
    /// # Errors
    /// When the agent refuses or does not answer.
    pub(super) async fn question<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T> {
        let mute = |since: Instant| since.elapsed() < MUTE_TIME;
        if self.unanswered().is_some_and(mute) {
            return Err(Error::Failed("the guest's agent does not answer".into()));
        }
        let asked = Instant::now();
        let answer = call.await;
        let silent = asked.elapsed() >= guest::QUESTION_TIME;
        *self.unanswered() = (answer.is_err() && silent).then(Instant::now);
        Ok(answer?)
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = ttrpc::Result<T>>,
        time: Duration,
    ) -> Outcome<T> {
        let asked = Instant::now();
        let answer = tokio::select! {
            answer = call => answer,
            () = self.wait_ended() => return Outcome::Ended,
            () = sleep(time) => {
                self.silent
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(asked);
                return Outcome::Silent;
            }
        };
        match answer {
            Ok(answer) => {
                self.heard();
                Outcome::Answered(answer)
            }
            Err(error @ ttrpc::Error::RpcStatus(_)) => {
                self.heard();
                Outcome::Refused(error)
            }
            // The connection broke, so the VM is about to end, or made to.
            Err(error) => {
                if !self.stopping() {
                    self.vm.bury(&format!("the agent is gone: {error}")).await;
                }
                self.vm.kill();
                self.wait_ended().await;
                Outcome::Ended
            }
        }
    }

    /// The agent answers.
    fn heard(&self) {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.unanswered() = None;
    }

    pub(super) fn silent_since(&self) -> Option<Instant> {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
