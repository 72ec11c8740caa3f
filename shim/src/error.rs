//! What went wrong, as containerd hears it.

use containerd_shim_protos::ttrpc;
use ttrpc::{Code, get_status};

/// Longest error text handed on, in bytes: an agent is not trusted with more.
const MAX_MESSAGE: usize = 4096;

/// A refused or failed request. Each kind is one ttrpc status code; the text
/// reaches `crictl` as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request or the pod asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// No such sandbox, container or process.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    Exists(String),
    /// Not in this state.
    #[error("{0}")]
    State(String),
    /// A feature that this runtime does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The host, the VMM or the guest failed.
    #[error("{0}")]
    Failed(String),
    /// A VM from the node's template does not run or does not answer; one that boots may.
    #[error("{0}")]
    Template(String),
    /// The agent's answer, handed on unchanged but for its length.
    #[error("{0}")]
    Guest(ttrpc::Error),
}

/// Result of serving a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure in words: the error and all its causes.
    pub fn failed(error: impl std::error::Error) -> Self {
        Self::Failed(chain(&error))
    }

    /// A refusal in words: the error and all its causes.
    pub fn invalid(error: impl std::error::Error) -> Self {
        Self::Invalid(chain(&error))
    }

    /// The same kind of error with `context` before its text.
    pub fn context(self, context: &str) -> Self {
        match self {
            Self::Invalid(text) => Self::Invalid(format!("{context}: {text}")),
            Self::NotFound(text) => Self::NotFound(format!("{context}: {text}")),
            Self::Exists(text) => Self::Exists(format!("{context}: {text}")),
            Self::State(text) => Self::State(format!("{context}: {text}")),
            Self::Unsupported(text) => Self::Unsupported(format!("{context}: {text}")),
            Self::Failed(text) => Self::Failed(format!("{context}: {text}")),
            Self::Template(text) => Self::Template(format!("{context}: {text}")),
            Self::Guest(error) => Self::Guest(error),
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Transparent wrappers repeat their cause.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

impl From<ttrpc::Error> for Error {
    fn from(error: ttrpc::Error) -> Self {
        Self::Guest(error)
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let (code, mut text) = match error {
            Error::Invalid(text) => (Code::INVALID_ARGUMENT, text),
            Error::NotFound(text) => (Code::NOT_FOUND, text),
            Error::Exists(text) => (Code::ALREADY_EXISTS, text),
            Error::State(text) => (Code::FAILED_PRECONDITION, text),
            Error::Unsupported(text) => (Code::UNIMPLEMENTED, text),
            Error::Failed(text) | Error::Template(text) => (Code::INTERNAL, text),
            Error::Guest(ttrpc::Error::RpcStatus(status)) => (
                status.code.enum_value().unwrap_or(Code::UNKNOWN),
                status.message,
            ),
            Error::Guest(other) => (
                Code::UNAVAILABLE,
                format!("the sandbox's agent does not answer: {other}"),
            ),
        };
        if text.len() > MAX_MESSAGE {
            let mut end = MAX_MESSAGE;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str("...");
        }
        ttrpc::Error::RpcStatus(get_status(code, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: Error) -> ttrpc::Status {
        match error.into() {
            ttrpc::Error::RpcStatus(status) => status,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn an_agents_long_error_is_cut() {
        let long = "ä".repeat(MAX_MESSAGE);
        let error = ttrpc::Error::RpcStatus(get_status(Code::NOT_FOUND, long));
        let status = status(error.into());
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert!(status.message.len() <= MAX_MESSAGE + 3);
    }

    #[test]
    fn causes_are_on_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the kernel")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::from_raw_os_error(2));
        assert_eq!(
            Error::failed(error).to_string(),
            "cannot open the kernel: No such file or directory (os error 2)"
        );
    }
}
