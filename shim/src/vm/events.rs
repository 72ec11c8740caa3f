//! Reads what the VMM says by itself.

use std::os::unix::net::UnixStream;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// How many events may wait to be taken: further ones wait in the socket.
const WAITING: usize = 16;

/// Longest event in bytes. The VMM is not trusted with more.
const MAX_EVENT: u64 = 8 << 10;

/// What the VMM says unasked. The channel closes when the VMM is gone.
pub type Events = mpsc::Receiver<vmm::Event>;

/// A way for events that is closed when nobody has anything for it any more.
pub(super) fn channel() -> (mpsc::Sender<vmm::Event>, Events) {
    mpsc::channel(WAITING)
}

/// Passes the VMM's events on until it is gone.
pub(super) fn watch(stream: UnixStream, sender: mpsc::Sender<vmm::Event>) -> Result<()> {
    let failed = |error: std::io::Error| Error::Failed(format!("the VMM's event socket: {error}"));
    stream.set_nonblocking(true).map_err(failed)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(failed)?;
    tokio::spawn(async move {
        let mut reader = BufReader::with_capacity(512, stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader)
                .take(MAX_EVENT)
                .read_until(b'\n', &mut line)
                .await;
            if !matches!(read, Ok(n) if n > 0) {
                return;
            }
            match serde_json::from_slice(&line) {
                Ok(event) => {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the VMM's event cannot be read: giving it up");
                    return;
                }
            }
        }
    });
    Ok(())
}
