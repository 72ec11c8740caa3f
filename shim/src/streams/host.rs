//! Streams of a process on the host: it reads and writes containerd's FIFOs itself, so
//! that no byte passes through this process. Only a terminal is copied.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use guest_agent::stdio::Terminal;
use runtime::{Io, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{self, Receiver};

use super::{BUFFER, Ends, Pump, Sink, Stdio, StreamError, Streams, fifo, open_output, open_stdin};

/// An output FIFO that a process writes to itself.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
    /// Keeps writes from failing while no client is attached.
    reader: File,
}

impl Drop for Own {
    fn drop(&mut self) {
        // A containerd that is started anew opens its end only where there is a writer.
        if let (Ok(sender), Ok(reader)) = (
            pipe::OpenOptions::new().open_sender(&self.path),
            self.reader.try_clone(),
        ) {
            drop(Sink(Some(Ends { sender, reader })));
        }
    }
}

/// Streams whose process is not there yet. Dropped, they are closed.
#[derive(Debug)]
pub struct Prepared {
    streams: Streams,
    /// Of a terminal: what is copied to and from it.
    copied: (Option<Receiver>, Option<Sink>),
}

/// Opens the FIFOs, and answers with what the process gets. Streams that there are not are
/// /dev/null.
///
/// # Errors
/// Names the stream that is not to be had; then none is open.
pub async fn prepare(
    stdio: &Stdio,
    size: Option<TerminalSize>,
) -> Result<(Prepared, Io), StreamError> {
    let mut streams = Streams::default();
    let mut stdin = None;
    if !stdio.stdin.is_empty() {
        let (receiver, keeper) = open_stdin(&fifo("stdin", &stdio.stdin)?)?;
        streams.stdin_keeper = Some(keeper);
        stdin = Some(receiver);
    }
    if stdio.terminal {
        let stdout = match stdio.stdout.as_str() {
            "" => None,
            path => Some(open_output("stdout", &fifo("stdout", path)?).await?),
        };
        let copied = (stdin, stdout);
        return Ok((Prepared { streams, copied }, Io::Terminal { size }));
    }
    let stdin = match stdin {
        Some(receiver) => receiver.into_blocking_fd().map_err(system("stdin"))?,
        None => null("stdin")?,
    };
    let stdout = streams.output_end("stdout", &stdio.stdout).await?;
    let stderr = streams.output_end("stderr", &stdio.stderr).await?;
    let prepared = Prepared {
        streams,
        copied: (None, None),
    };
    let io = Io::Files {
        stdin,
        stdout,
        stderr,
    };
    Ok((prepared, io))
}

impl Prepared {
    /// The process is there; `terminal` is the master side of its terminal.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub fn attach(mut self, terminal: Option<&OwnedFd>) -> Result<Streams, StreamError> {
        let Some(master) = terminal else {
            return Ok(self.streams);
        };
        let terminal = master
            .try_clone()
            .and_then(Terminal::new)
            .map_err(system("terminal"))?;
        let (stdin, stdout) = std::mem::take(&mut self.copied);
        if let Some(stdin) = stdin {
            let typed = pump_typed(stdin, terminal.clone());
            self.streams.input = Some(Pump(tokio::spawn(typed)));
        }
        match stdout {
            Some(sink) => self.streams.pump(terminal, sink),
            // A terminal that nobody reads would stop its processes.
            None => {
                let discard = tokio::spawn(async move {
                    let mut terminal = terminal;
                    let mut buffer = vec![0; BUFFER];
                    while matches!(terminal.read(&mut buffer).await, Ok(1..)) {}
                });
                self.streams.output.push(Pump(discard));
            }
        }
        Ok(self.streams)
    }
}

impl Streams {
    /// The process has ended: nobody reads its input any more, and of its output only what
    /// it has written is still to be read.
    pub fn end(&mut self) {
        self.stdin_keeper = None;
        self.input = None;
        self.own.clear();
    }

    async fn output_end(&mut self, name: &'static str, path: &str) -> Result<OwnedFd, StreamError> {
        if path.is_empty() {
            return null(name);
        }
        let path = fifo(name, path)?;
        let Sink(ends) = &mut open_output(name, &path).await?;
        let Some(Ends { sender, reader }) = ends.take() else {
            return null(name);
        };
        self.own.push(Own { path, reader });
        sender.into_blocking_fd().map_err(system(name))
    }
}

fn null(name: &'static str) -> Result<OwnedFd, StreamError> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(system(name))
}

fn system(name: &'static str) -> impl FnOnce(io::Error) -> StreamError {
    move |source| StreamError::System { name, source }
}

/// Until the FIFO has no writer left, or the terminal takes no more.
async fn pump_typed(mut fifo: Receiver, mut terminal: Terminal) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match fifo.read(&mut buffer).await {
            Ok(0) => return,
            Ok(n) => {
                if terminal.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "reading stdin");
                return;
            }
        }
    }
}
