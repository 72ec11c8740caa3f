//! What the operations of a [`Container`](crate::Container) can answer when they fail.

use std::io;

use thiserror::Error;

use crate::cgroup::CgroupError;
use crate::hooks::HookError;
use crate::plan::PlanError;
use crate::process::message::{Failure, FailureKind};
use crate::state::StateError;

/// Why a container could not be created. Whatever the reason, nothing is left behind: no process,
/// no cgroup, no state directory.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The spec asks for something that is wrong or not supported; found before any process is made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The state directory or the state file could not be made; `StateError::Exists` says that a
    /// container with this id is there already.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cgroup could not be made or a limit was refused.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A createRuntime or prestart hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The command does not exist in the container (a shell would exit with 127).
    #[error("{0}")]
    CommandNotFound(String),
    /// The command exists but cannot be executed (a shell would exit with 126).
    #[error("{0}")]
    CommandNotExecutable(String),
    /// A step inside the container's process failed: `stage` names it.
    #[error("{stage}: {text}")]
    Setup {
        /// The step, for example `mount proc on /proc`.
        stage: String,
        /// What went wrong there.
        text: String,
    },
    /// The container's process ended before it was set up, without saying why.
    #[error("the container's process ended during set-up: {0}")]
    Died(String),
    /// The container's process could not be set up within its limit of memory.
    #[error(
        "the container's init ran out of memory before its command could run: the memory limit \
         of {limit} bytes is too low; a container needs 1 MiB, and what its command uses"
    )]
    Memory {
        /// The limit.
        limit: i64,
    },
    /// What was saved could not be restored.
    #[cfg(feature = "criu")]
    #[error(transparent)]
    Criu(#[from] crate::criu::CriuError),
    /// A system call of the caller's side failed.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a created container's command was not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// Only a created container can be started.
    #[error("container {id} is {status}; only a created container can be started")]
    NotCreated {
        /// The container.
        id: String,
        /// What it is instead.
        status: crate::Status,
    },
    /// The command went away between create and start.
    #[error("{0}")]
    CommandNotFound(String),
    /// The kernel refused to execute the command.
    #[error("{0}")]
    CommandNotExecutable(String),
    /// A step inside the container's process failed, a startContainer hook for example.
    #[error("{stage}: {text}")]
    Setup {
        /// The step.
        stage: String,
        /// What went wrong there.
        text: String,
    },
    /// The container's process could not be reached.
    #[error("cannot reach the init process of container {id}: {source}")]
    Unreachable {
        /// The container.
        id: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a process could not be added to a running container. Nothing is left behind.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The process asks for something that is wrong or not supported.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Only a created or running container can take another process.
    #[error("container {id} is {status}; it can take no process")]
    NotRunning {
        /// The container.
        id: String,
        /// What it is instead.
        status: crate::Status,
    },
    /// The command does not exist in the container (a shell would exit with 127).
    #[error("{0}")]
    CommandNotFound(String),
    /// The command exists but cannot be executed (a shell would exit with 126).
    #[error("{0}")]
    CommandNotExecutable(String),
    /// A step inside the new process failed: `stage` names it.
    #[error("{stage}: {text}")]
    Setup {
        /// The step.
        stage: String,
        /// What went wrong there.
        text: String,
    },
    /// The new process ended before it became the command, without saying why.
    #[error("the process ended during set-up: {0}")]
    Died(String),
    /// The container's cgroup cannot take the process.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A system call of the caller's side failed.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a signal was not sent.
#[derive(Debug, Error)]
pub enum KillError {
    /// The container's init process is gone.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The cgroup could not be read or killed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel refused the signal.
    #[error("cannot send signal {signal} to container {id}: {source}")]
    Signal {
        /// The container.
        id: String,
        /// The signal's number.
        signal: i32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a container could not be deleted.
#[derive(Debug, Error)]
pub enum DeleteError {
    /// The container has a live process and `force` was not given.
    #[error("container {id} is {status}; stop it first or delete it with force")]
    Running {
        /// The container.
        id: String,
        /// What it is.
        status: crate::Status,
    },
    /// Its processes could not be killed.
    #[error(transparent)]
    Kill(#[from] KillError),
    /// Its cgroup could not be removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its state directory could not be removed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Sorts a failure that a child process reported into the variants that the three error types share.
macro_rules! from_failure {
    ($error:ident) => {
        impl From<Failure> for $error {
            fn from(failure: Failure) -> Self {
                match failure.kind {
                    FailureKind::CommandNotFound => Self::CommandNotFound(failure.text),
                    FailureKind::CommandNotExecutable => Self::CommandNotExecutable(failure.text),
                    FailureKind::Step => Self::Setup {
                        stage: failure.stage,
                        text: failure.text,
                    },
                }
            }
        }
    };
}

from_failure!(CreateError);
from_failure!(StartError);
from_failure!(ExecError);
