//! A guest that does not answer. A call that belongs to a stop is bounded: a guest that
//! leaves it unanswered is taken for hung, and killed.

use std::future::Future;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use containerd_shim_protos::ttrpc;
use tokio::time::sleep;

use super::Sandbox;

/// How long a guest may be silent before it is taken for hung. A guest on a node under
/// load is slow; one that hangs keeps containerd waiting.
const HUNG_TIME: Duration = Duration::from_secs(10);

/// How long a call may take at least, however long the guest has been silent.
const LEAST_TIME: Duration = Duration::from_secs(1);

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
                self.vm.bury(&format!("the agent is gone: {error}")).await;
                self.vm.kill();
                self.wait_ended().await;
                Outcome::Ended
            }
        }
    }

    /// The agent answers.
    fn heard(&self) {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn silent_since(&self) -> Option<Instant> {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
