//! The standard streams of a process: pipes or a terminal on its side, stream
//! connections on the host's, and the loops in between.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use runtime::{Io, TerminalSize};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::streams::{Claim, StreamError, Streams};
use crate::sys;

/// Bytes moved at a time; half of what a pipe holds.
const CHUNK: usize = 32 * 1024;

/// Why a process cannot be connected.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A stream's name is not a number.
    #[error("{0:?} is not a stream id: give the decimal number of a stream, or nothing")]
    NotAnId(String),
    /// A stream is not to be had.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The system refused a pipe or a terminal.
    #[error("{what}: {source}")]
    System {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> StdioError {
    move |error| StdioError::System {
        what,
        source: error.into(),
    }
}

/// What a request says about a process's streams: ids as decimal numbers, or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Host to process.
    pub stdin: String,
    /// Process to host.
    pub stdout: String,
    /// Process to host; unused with a terminal.
    pub stderr: String,
    /// A terminal instead of pipes.
    pub terminal: bool,
}

fn claim(streams: &Streams, name: &str) -> Result<Option<Claim>, StdioError> {
    if name.is_empty() {
        return Ok(None);
    }
    let id = name.parse().map_err(|_| StdioError::NotAnId(name.into()))?;
    Ok(Some(streams.claim(id)?))
}

/// The host's side of a process's streams before the process is there.
pub struct Prepared {
    stdin: Option<(Claim, Option<pipe::Sender>)>,
    stdout: Option<(Claim, Option<pipe::Receiver>)>,
    stderr: Option<(Claim, pipe::Receiver)>,
}

/// Reserves the streams and makes what the engine gives to the process. Streams that
/// are not asked for are /dev/null. Dropping the answer gives everything up.
pub fn prepare(
    streams: &Streams,
    stdio: &Stdio,
    size: Option<TerminalSize>,
) -> Result<(Prepared, Io), StdioError> {
    let stdin = claim(streams, &stdio.stdin)?;
    let stdout = claim(streams, &stdio.stdout)?;
    if stdio.terminal {
        let prepared = Prepared {
            stdin: stdin.map(|claim| (claim, None)),
            stdout: stdout.map(|claim| (claim, None)),
            stderr: None,
        };
        return Ok((prepared, Io::Terminal { size }));
    }
    let stderr = claim(streams, &stdio.stderr)?;

    let (stdin, stdin_end) = match stdin {
        None => (None, null()?),
        Some(claim) => {
            let (read, write) = make_pipe()?;
            let write = pipe::Sender::from_owned_fd(write).map_err(system("watch a pipe"))?;
            (Some((claim, Some(write))), read)
        }
    };
    let (stdout, stdout_end) = output(stdout)?;
    let (stderr, stderr_end) = output(stderr)?;
    let io = Io::Files {
        stdin: stdin_end,
        stdout: stdout_end,
        stderr: stderr_end,
    };
    let prepared = Prepared {
        stdin,
        stdout: stdout.map(|(claim, pipe)| (claim, Some(pipe))),
        stderr,
    };
    Ok((prepared, io))
}

type Output = (Option<(Claim, pipe::Receiver)>, OwnedFd);

fn output(claim: Option<Claim>) -> Result<Output, StdioError> {
    let Some(claim) = claim else {
        return Ok((None, null()?));
    };
    let (read, write) = make_pipe()?;
    let read = pipe::Receiver::from_owned_fd(read).map_err(system("watch a pipe"))?;
    Ok((Some((claim, read)), write))
}

fn make_pipe() -> Result<(OwnedFd, OwnedFd), StdioError> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))
}

fn null() -> Result<OwnedFd, StdioError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(system("open /dev/null"))
}

/// A running process's streams.
pub struct Attached {
    terminal: Option<Terminal>,
    close_stdin: Arc<Notify>,
}

impl Prepared {
    /// Starts the copying. `terminal` is the master side of the process's terminal.
    pub fn attach(self, terminal: Option<OwnedFd>) -> Result<Attached, StdioError> {
        let close_stdin = Arc::new(Notify::new());
        let terminal = terminal
            .map(Terminal::new)
            .transpose()
            .map_err(system("watch a terminal"))?;
        if let Some((claim, pipe)) = self.stdin {
            let close = Arc::clone(&close_stdin);
            match (pipe, &terminal) {
                (Some(pipe), _) => drop(tokio::spawn(input(claim, pipe, close))),
                (None, Some(terminal)) => drop(tokio::spawn(input(claim, terminal.clone(), close))),
                (None, None) => {}
            }
        }
        if let Some((claim, pipe)) = self.stderr {
            tokio::spawn(copy_output(Some(claim), pipe));
        }
        match (self.stdout, &terminal) {
            (Some((claim, Some(pipe))), _) => drop(tokio::spawn(copy_output(Some(claim), pipe))),
            (stdout, Some(terminal)) => {
                let terminal = terminal.clone();
                let close = Arc::clone(&close_stdin);
                // A terminal that nobody reads would stop its processes, so it is
                // read even when the host wants no output.
                tokio::spawn(async move {
                    copy_output(stdout.map(|(claim, _)| claim), terminal).await;
                    close.notify_one();
                });
            }
            (_, None) => {}
        }
        Ok(Attached {
            terminal,
            close_stdin,
        })
    }
}

impl Attached {
    /// Ends the process's input after what has arrived so far. A host that wants
    /// every byte delivered half-closes the stream instead: that end is in order.
    /// A terminal's input stream is closed; the terminal stays.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// The master side of the terminal.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal
            .as_ref()
            .map(|terminal| terminal.0.get_ref().as_fd())
    }
}

/// Where a process's input goes.
trait Sink: AsyncWrite + Send + Unpin {
    /// Resolves when nobody can read from it any more.
    fn abandoned(&self) -> impl Future<Output = ()> + Send;
}

impl Sink for pipe::Sender {
    async fn abandoned(&self) {
        // The kernel reports an error on a pipe's writing side when its last reader goes.
        let _ = self.ready(Interest::ERROR).await;
    }
}

impl Sink for Terminal {
    /// Its output side notices, and closes the input with it.
    async fn abandoned(&self) {
        std::future::pending().await
    }
}

async fn input(claim: Claim, mut sink: impl Sink, close: Arc<Notify>) {
    let mut closing = false;
    let connected = claim.connected();
    tokio::pin!(connected);
    let mut connection = loop {
        tokio::select! {
            connection = &mut connected => match connection {
                Ok(connection) => break connection,
                Err(error) => return log::warn!("stdin: {error}"),
            },
            () = sink.abandoned() => return,
            // The connection may be on its way, with bytes behind it.
            () = close.notified() => closing = true,
        }
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = connection.read(&mut buffer) => read,
            () = std::future::ready(()), if closing => return,
            () = sink.abandoned() => return,
            () = close.notified() => {
                closing = true;
                continue;
            }
        };
        // Either side may go at any time; the process sees the end of its input.
        let Ok(length @ 1..) = read else { return };
        if sink.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Copies until the last writer of `source` has closed it, then closes the stream.
async fn copy_output(claim: Option<Claim>, mut source: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; CHUNK];
    if let Some(claim) = claim {
        match claim.connected().await {
            Ok(mut connection) => loop {
                let Ok(length @ 1..) = source.read(&mut buffer).await else {
                    // The host may have gone, which ends the stream as well.
                    let _ = connection.shutdown().await;
                    return;
                };
                if connection.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            },
            Err(error) => log::warn!("output: {error}; discarding it"),
        }
    }
    // A lost stream must not kill the process with SIGPIPE or stop it on a full pipe.
    while let Ok(1..) = source.read(&mut buffer).await {}
}

/// The master side of a terminal. Clones share it.
#[derive(Clone, Debug)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Puts it on the event loop.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(sys::watch(master)?)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match ready.try_io(|master| Ok(rustix::io::read(master, unfilled)?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // What a terminal says when its last process has closed it: end of file.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|master| Ok(rustix::io::write(master, buffer)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tokio::net::{UnixListener, UnixStream};

    /// A host: the stream port, and how to reach it.
    struct Host {
        _directory: tempfile::TempDir,
        path: PathBuf,
        streams: Streams,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("streams");
            let streams = Streams::default();
            tokio::spawn(streams.clone().serve(UnixListener::bind(&path).unwrap()));
            Self {
                _directory: directory,
                path,
                streams,
            }
        }

        async fn connect(&self, id: u64) -> UnixStream {
            let mut stream = UnixStream::connect(&self.path).await.unwrap();
            stream.write_u64_le(id).await.unwrap();
            stream
        }

        /// A process's own ends of its standard streams.
        fn process(&self, stdin: &str, stdout: &str) -> (Attached, OwnedFd, OwnedFd) {
            let stdio = Stdio {
                stdin: stdin.into(),
                stdout: stdout.into(),
                ..Default::default()
            };
            let (prepared, io) = prepare(&self.streams, &stdio, None).unwrap();
            let Io::Files { stdin, stdout, .. } = io else {
                panic!("no terminal was asked for")
            };
            (prepared.attach(None).unwrap(), stdin, stdout)
        }
    }

    #[tokio::test]
    async fn output_ends_with_its_last_writer_and_is_whole() {
        let host = Host::new();
        let (_attached, _stdin, stdout) = host.process("", "1");
        let child = pipe::Sender::from_owned_fd(stdout.try_clone().unwrap()).unwrap();
        let mut stream = host.connect(1).await;
        // More than the pipe and the sockets hold together: the writer has to wait.
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
        let writer = tokio::spawn({
            let sent = sent.clone();
            async move {
                let mut child = child;
                child.write_all(&sent).await.unwrap();
            }
        });
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
        writer.await.unwrap();
        // One writer is left, so the stream stays open.
        rustix::io::write(&stdout, b"end").unwrap();
        drop(stdout);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "end");
    }

    #[tokio::test]
    async fn output_written_before_the_host_connects_is_kept() {
        let host = Host::new();
        let (_attached, _stdin, stdout) = host.process("", "1");
        rustix::io::write(&stdout, b"early").unwrap();
        drop(stdout);
        let mut text = String::new();
        host.connect(1)
            .await
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert_eq!(text, "early");
    }

    #[tokio::test]
    async fn a_lost_output_stream_does_not_stop_the_process() {
        let host = Host::new();
        let (_attached, _stdin, stdout) = host.process("", "1");
        drop(host.connect(1).await);
        let mut child = pipe::Sender::from_owned_fd(stdout).unwrap();
        child.write_all(&vec![0; 1 << 20]).await.unwrap();
    }

    #[tokio::test]
    async fn input_ends_with_the_host_s_half_close() {
        let host = Host::new();
        let (_attached, stdin, _stdout) = host.process("1", "");
        let mut stream = host.connect(1).await;
        stream.write_all(b"all of it").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut child = pipe::Receiver::from_owned_fd(stdin).unwrap();
        let mut text = String::new();
        child.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "all of it");
    }

    #[tokio::test]
    async fn closing_input_delivers_what_has_arrived() {
        let host = Host::new();
        let (attached, stdin, _stdout) = host.process("1", "");
        let mut stream = host.connect(1).await;
        stream.write_all(b"arrived").await.unwrap();
        attached.close_stdin();
        let mut child = pipe::Receiver::from_owned_fd(stdin).unwrap();
        let mut text = String::new();
        child.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "arrived");
        // The host sees that nobody listens any more.
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn input_that_nobody_reads_closes_its_stream() {
        let host = Host::new();
        let (_attached, stdin, _stdout) = host.process("1", "");
        let mut stream = host.connect(1).await;
        drop(stdin);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_terminal_carries_both_ways_and_ends_with_its_process() {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        use rustix::termios::tcgetwinsize;

        let host = Host::new();
        let stdio = Stdio {
            stdin: "1".into(),
            stdout: "2".into(),
            stderr: "3".into(),
            terminal: true,
        };
        let (prepared, io) = prepare(&host.streams, &stdio, None).unwrap();
        assert!(matches!(io, Io::Terminal { size: None }));
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY,
            Mode::empty(),
        )
        .unwrap();
        let attached = prepared.attach(Some(master)).unwrap();

        let (mut stdin, mut stdout) = (host.connect(1).await, host.connect(2).await);
        stdin.write_all(b"typed\n").await.unwrap();
        let mut echo = [0; 7];
        stdout.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"typed\r\n");
        let mut line = [0; 16];
        let length = rustix::io::read(&slave, &mut line).unwrap();
        assert_eq!(&line[..length], b"typed\n");

        let size = TerminalSize {
            columns: 132,
            rows: 43,
        };
        runtime::resize(attached.terminal().unwrap(), size).unwrap();
        let seen = tcgetwinsize(&slave).unwrap();
        assert_eq!((seen.ws_col, seen.ws_row), (132, 43));

        rustix::io::write(&slave, b"bye").unwrap();
        drop(slave);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "bye");
        // Its input goes with it.
        assert_eq!(stdin.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn stream_names_are_numbers_or_nothing() {
        let streams = Streams::default();
        let stdio = Stdio {
            stdout: "/run/fifo".into(),
            ..Default::default()
        };
        assert!(matches!(
            prepare(&streams, &stdio, None),
            Err(StdioError::NotAnId(_))
        ));
        assert!(prepare(&streams, &Stdio::default(), None).is_ok());
    }
}
