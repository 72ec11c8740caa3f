//! Why a request was not carried out.

use std::io;

use thiserror::Error;

use crate::spec::SpecError;
use crate::stdio::StdioError;
use crate::storage::StorageError;
use crate::volumes::VolumeError;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub enum TaskError {
    /// An id that containerd would not make.
    #[error("{0:?} is not a valid id")]
    InvalidId(String),
    /// There is no such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// There is no such process.
    #[error("container {0} has no process {1}")]
    NoProcess(String, String),
    /// The id is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// The process has ended.
    #[error("process already finished")]
    Finished,
    /// The process is in a state that does not allow it.
    #[error("{0}")]
    NotNow(String),
    /// A number or a message that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The spec cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The streams cannot be used.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The root file system could not be made.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A volume could not be had.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What the engine said.
    #[error("{0}")]
    Engine(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Keeps the engine's own words.
pub(super) fn engine<E: std::error::Error>(error: E) -> TaskError {
    TaskError::Engine(error.to_string())
}
