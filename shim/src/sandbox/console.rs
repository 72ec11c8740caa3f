//! The operator's debug shell in the guest: whether there is one, and its start. Its
//! streams are the caller's affair, who is root on this host.

use std::path::Path;
use std::sync::atomic::Ordering;

use containerd_shim_protos::protobuf::Message;
use protocol::shim::{ConsoleRequest, ConsoleResponse};

use super::Sandbox;
use crate::error::{Error, Result};
use crate::guest;

/// Longest name of a kind of terminal.
const MAX_TERM: usize = 64;

impl Sandbox {
    /// Starts a console in the guest.
    ///
    /// # Errors
    /// When the operator allows none, the shell cannot be had or the guest refuses it.
    pub async fn console(&self, request: ConsoleRequest) -> Result<ConsoleResponse> {
        let program = read_shell(self.vm.config().debug_shell.as_deref()).await?;
        if request.term.len() > MAX_TERM
            || !request.term.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(Error::Invalid(format!(
                "{:?} is no kind of terminal",
                request.term
            )));
        }
        let next = || self.streams.fetch_add(1, Ordering::Relaxed);
        let streams = ConsoleResponse {
            stdin: next(),
            stdout: next(),
            stderr: if request.terminal { 0 } else { next() },
            control: next(),
            ..Default::default()
        };
        let message = protocol::guest::ConsoleRequest {
            program,
            arguments: request.arguments,
            term: request.term,
            terminal: request.terminal,
            rows: request.rows,
            columns: request.columns,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            control: streams.control,
            ..Default::default()
        };
        let size = usize::try_from(message.compute_size()).unwrap_or(usize::MAX);
        guest::check_size(size, "the debug shell and its arguments")?;
        tracing::info!(arguments = ?message.arguments, "a console is opened in the guest");
        self.awake()?
            .guest
            .console(guest::question(), &message)
            .await?;
        Ok(streams)
    }
}

async fn read_shell(path: Option<&Path>) -> Result<Vec<u8>> {
    let path = path.ok_or_else(|| {
        Error::State(
            "consoles are off: name a static shell as debug_shell in joey's configuration; \
             that counts for sandboxes made from then on"
                .into(),
        )
    })?;
    let failed = |error| {
        Error::Failed(format!(
            "cannot read {} (debug_shell): {error}",
            path.display()
        ))
    };
    let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("not a file")));
    }
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    guest::check_size(size, &path.display().to_string())?;
    tokio::fs::read(path).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_file_that_the_operator_names_is_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let (shell, large) = (directory.path().join("sh"), directory.path().join("large"));
        std::fs::write(&shell, "program").unwrap();
        std::fs::File::create(&large)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert_eq!(read_shell(Some(&shell)).await.unwrap(), b"program");
        for (path, part) in [
            (None, "debug_shell"),
            (Some(directory.path()), "not a file"),
            (Some(Path::new("/none")), "/none"),
            (Some(&large), "1099511627776 bytes"),
        ] {
            let error = read_shell(path).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
