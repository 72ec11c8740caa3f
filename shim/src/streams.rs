//! A process's standard streams: containerd's FIFOs on one side, one vsock
//! connection each on the other, and a pump in between that stops reading while
//! the reader of the other side does. Processes on the host need fewer pumps ([`host`]).

pub mod host;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::fstat;
use rustix::io::ioctl_fionread;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{self, Receiver, Sender};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::guest::{GuestError, Vsock};
use crate::telemetry;

/// Bytes on their way in each pump.
const BUFFER: usize = 16 << 10;

/// How long containerd may take to open its end of a FIFO.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// How long output may rest after the process has ended before it is given up:
/// children that it left behind may hold the stream for ever.
pub const DRAIN_REST: Duration = Duration::from_secs(2);

/// How long output may go on flowing after the process has ended. containerd gives
/// the deletion that waits for it 10 s.
const DRAIN_TIME: Duration = Duration::from_secs(8);

/// Longest pause between two looks at what nobody has read yet.
const LINGER_PAUSE: Duration = Duration::from_millis(100);

/// The paths that containerd gave for a process; empty: no such stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Read by the process.
    pub stdin: String,
    /// Written by the process.
    pub stdout: String,
    /// Written by the process; not with a terminal.
    pub stderr: String,
    /// Whether stdin and stdout are a terminal.
    pub terminal: bool,
}

/// The streams' ids as the agent is told them: decimal, or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamIds {
    /// Of stdin.
    pub stdin: String,
    /// Of stdout.
    pub stdout: String,
    /// Of stderr.
    pub stderr: String,
}

impl StreamIds {
    /// Ids for the streams that there are. With a terminal there is no stderr.
    pub fn reserve(stdio: &Stdio, counter: &AtomicU64) -> Self {
        let id = |path: &str| match path {
            "" => String::new(),
            _ => counter.fetch_add(1, Ordering::Relaxed).to_string(),
        };
        Self {
            stdin: id(&stdio.stdin),
            stdout: id(&stdio.stdout),
            stderr: if stdio.terminal {
                String::new()
            } else {
                id(&stdio.stderr)
            },
        }
    }
}

/// No streams.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A way of logging that is not a FIFO.
    #[error(
        "the {name} stream goes to {path}, but only FIFOs are supported: use containerd's default I/O"
    )]
    Kind {
        /// stdin, stdout or stderr.
        name: &'static str,
        /// What containerd gave.
        path: String,
    },
    /// A FIFO cannot be opened.
    #[error("cannot open the {name} FIFO {}", path.display())]
    Open {
        /// stdin, stdout or stderr.
        name: &'static str,
        /// The FIFO.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// containerd does not open its end.
    #[error("nobody reads the {name} FIFO {}", path.display())]
    NoReader {
        /// stdin, stdout or stderr.
        name: &'static str,
        /// The FIFO.
        path: PathBuf,
    },
    /// A terminal or a descriptor cannot be used.
    #[error("cannot connect the {name}")]
    System {
        /// The stream, or the terminal.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The guest does not take the stream.
    #[error("cannot connect the {name} stream")]
    Guest {
        /// stdin, stdout or stderr.
        name: &'static str,
        /// Why.
        source: GuestError,
    },
}

/// The running pumps of a process. Dropped, they end.
#[derive(Debug, Default)]
pub struct Streams {
    /// A writer of ours on the stdin FIFO: while it is open a client that
    /// detaches does not end the process's stdin.
    stdin_keeper: Option<Sender>,
    input: Option<Pump>,
    output: Vec<Pump>,
    /// Output FIFOs that the process writes to itself.
    own: Vec<host::Own>,
    /// Bytes of output that have reached the FIFOs.
    written: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Pump(JoinHandle<()>);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Streams {
    /// Opens the FIFOs, connects the streams and starts the pumps.
    ///
    /// # Errors
    /// Names the stream that is not to be had; then none is open.
    pub async fn open(stdio: &Stdio, ids: &StreamIds, vsock: &Vsock) -> Result<Self, StreamError> {
        let mut streams = Self::default();
        if !ids.stdin.is_empty() {
            let name = "stdin";
            let (receiver, keeper) = open_stdin(&fifo(name, &stdio.stdin)?)?;
            let guest = connect(name, vsock, &ids.stdin).await?;
            streams.stdin_keeper = Some(keeper);
            streams.input = Some(Pump(tokio::spawn(pump_in(receiver, guest))));
        }
        if !ids.stdout.is_empty() {
            let name = "stdout";
            let sink = open_output(name, &fifo(name, &stdio.stdout)?).await?;
            let guest = connect(name, vsock, &ids.stdout).await?;
            streams.pump(guest, sink);
        }
        if !ids.stderr.is_empty() {
            let name = "stderr";
            let sink = open_output(name, &fifo(name, &stdio.stderr)?).await?;
            let guest = connect(name, vsock, &ids.stderr).await?;
            streams.pump(guest, sink);
        }
        Ok(streams)
    }

    fn pump(&mut self, guest: impl AsyncRead + Send + Unpin + 'static, sink: Sink) {
        let pump = tokio::spawn(pump_out(guest, sink, self.written.clone()));
        self.output.push(Pump(pump));
    }

    /// Ends stdin once the client has closed its end too.
    pub fn close_stdin(&mut self) {
        self.stdin_keeper = None;
    }

    /// Waits until all output has reached the FIFOs, or rests for long, and ends the
    /// pumps.
    pub async fn drain(mut self) {
        self.stdin_keeper = None;
        self.input = None;
        let output = std::mem::take(&mut self.output);
        let all = async {
            for mut pump in output {
                // A pump that panicked has nothing more to say either.
                let _ = (&mut pump.0).await;
            }
        };
        let rests = async {
            let mut written = self.written.load(Ordering::Relaxed);
            loop {
                sleep(DRAIN_REST).await;
                let before = written;
                written = self.written.load(Ordering::Relaxed);
                if written == before {
                    return;
                }
            }
        };
        let _ = timeout(DRAIN_TIME, async {
            tokio::select! {
                () = all => {}
                () = rests => {}
            }
        })
        .await;
    }
}

/// The path of a FIFO that containerd gave.
fn fifo(name: &'static str, path: &str) -> Result<PathBuf, StreamError> {
    let file = path.strip_prefix("fifo://").unwrap_or(path);
    if !file.starts_with('/') {
        return Err(StreamError::Kind {
            name,
            path: path.to_owned(),
        });
    }
    let file = PathBuf::from(file);
    let metadata = std::fs::metadata(&file).map_err(|source| StreamError::Open {
        name,
        path: file.clone(),
        source,
    })?;
    if !metadata.file_type().is_fifo() {
        return Err(StreamError::Kind {
            name,
            path: path.to_owned(),
        });
    }
    Ok(file)
}

fn open_stdin(path: &Path) -> Result<(Receiver, Sender), StreamError> {
    let failed = |source| StreamError::Open {
        name: "stdin",
        path: path.to_owned(),
        source,
    };
    // Reading never waits for a writer when opened this way, and our own reader
    // lets the keeper open.
    let receiver = pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(failed)?;
    let keeper = pipe::OpenOptions::new().open_sender(path).map_err(failed)?;
    Ok((receiver, keeper))
}

/// A FIFO's two ends.
#[derive(Debug)]
struct Ends {
    sender: Sender,
    /// Keeps writes from failing while no client is attached.
    reader: File,
}

/// Where output goes. What no client has read when this ends waits for one: a containerd
/// that is started anew wants a container's last words too.
#[derive(Debug)]
struct Sink(Option<Ends>);

impl Drop for Sink {
    fn drop(&mut self) {
        if let (Some(ends), Ok(runtime)) = (self.0.take(), Handle::try_current())
            && ends.has_unread()
        {
            runtime.spawn(ends.linger());
        }
    }
}

impl Ends {
    /// Whether somebody may still read what is in the FIFO.
    fn has_unread(&self) -> bool {
        let reachable = fstat(&self.reader).is_ok_and(|data| data.st_nlink > 0);
        reachable && ioctl_fionread(&self.reader).is_ok_and(|bytes| bytes > 0)
    }

    /// Until all is read, or containerd has removed the FIFO. A pipe tells no writer
    /// that it is empty, so it has to be asked.
    async fn linger(self) {
        let mut pause = Duration::from_millis(1);
        while self.has_unread() {
            sleep(pause).await;
            pause = (pause * 2).min(LINGER_PAUSE);
        }
    }
}

async fn open_output(name: &'static str, path: &Path) -> Result<Sink, StreamError> {
    let failed = |source| StreamError::Open {
        name,
        path: path.to_owned(),
        source,
    };
    // The client must have its end open before we hold one of our own: a process
    // that ends at once would take the pipe's bytes with it.
    let open = async {
        let mut pause = Duration::from_micros(250);
        loop {
            match pipe::OpenOptions::new().open_sender(path) {
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    };
    let sender = timeout(OPEN_TIME, open)
        .await
        .map_err(|_| StreamError::NoReader {
            name,
            path: path.to_owned(),
        })?
        .map_err(failed)?;
    let reader = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    Ok(Sink(Some(Ends { sender, reader })))
}

async fn connect(name: &'static str, vsock: &Vsock, id: &str) -> Result<UnixStream, StreamError> {
    // Ours, so always a number; the agent refuses what it does not know.
    let id = id.parse().unwrap_or_default();
    vsock
        .stream(id)
        .await
        .map_err(|source| StreamError::Guest { name, source })
}

/// Until the FIFO has no writer left, or the guest takes no more.
async fn pump_in(mut fifo: Receiver, guest: UnixStream) {
    let (mut closed, mut guest) = guest.into_split();
    let copy = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match fifo.read(&mut buffer).await {
                Ok(0) => break,
                Ok(n) => {
                    if guest.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                    telemetry::stream_in(n);
                }
                Err(error) => {
                    tracing::warn!(%error, "reading stdin");
                    break;
                }
            }
        }
        // The process reads end of file from here on.
        if guest.shutdown().await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    // The guest sends nothing this way: the end of its side means that nobody
    // reads any more, and the client shall hear of it.
    let mut byte = [0];
    let gone = async { while matches!(closed.read(&mut byte).await, Ok(n) if n > 0) {} };
    tokio::select! {
        () = copy => {}
        () = gone => {}
    }
}

/// Until the guest, or a terminal, has no more to say.
async fn pump_out(mut guest: impl AsyncRead + Unpin, mut sink: Sink, written: Arc<AtomicU64>) {
    let mut buffer = vec![0; BUFFER];
    while let Some(Ends { sender, .. }) = &mut sink.0 {
        match guest.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if let Err(error) = sender.write_all(&buffer[..n]).await {
                    tracing::warn!(%error, "writing output");
                    return;
                }
                written.fetch_add(n as u64, Ordering::Relaxed);
                telemetry::stream_out(n);
            }
        }
    }
}

#[cfg(test)]
mod tests;
