//! `joeyctl console`: the operator's debug shell in a guest, at this terminal or in a
//! pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::shim::{ConsoleRequest, ConsoleResponse};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use shim::config::Config;
use shim::guest::Vsock;
use shim::host::record::{self, Record};
use shim::vm::VSOCK;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use ttrpc::context;

use crate::node;

/// How long the shim and the guest may take to start the shell.
const START_TIME: Duration = Duration::from_secs(30);
/// Ctrl-], which leaves the console, as it does telnet.
const LEAVE: u8 = 0x1d;
const CHUNK: usize = 16 << 10;

/// Runs the shell under the names and arguments in `command`; answers with its exit
/// code.
pub fn run(config: &Config, sandbox: &str, command: Vec<String>) -> anyhow::Result<ExitCode> {
    let record = node::named(&config.state_dir, sandbox)?;
    let code = node::run(async {
        let terminal = isatty(stdin()) && isatty(stdout());
        let streams = start(&record, command, terminal).await?;
        let directory = record::path(&config.state_dir, &record.namespace, &record.id);
        let directory = File::open(&directory)
            .with_context(|| format!("cannot open {}", directory.display()))?;
        let vsock = Vsock::new(record::socket_path(&directory, VSOCK));
        relay(&vsock, &streams, terminal).await
    })?;
    Ok(ExitCode::from(code))
}

async fn start(
    record: &Record,
    arguments: Vec<String>,
    terminal: bool,
) -> anyhow::Result<ConsoleResponse> {
    let mut request = ConsoleRequest {
        arguments,
        terminal,
        ..Default::default()
    };
    if terminal {
        let size = tcgetwinsize(stdin()).context("cannot tell the terminal's size")?;
        (request.rows, request.columns) = (size.ws_row.into(), size.ws_col.into());
        request.term = std::env::var("TERM").unwrap_or_default();
    }
    let shim = node::connect(record).await?;
    let answer = shim.console(context::with_duration(START_TIME), &request);
    answer.await.map_err(node::told)
}

/// Carries the bytes until the shell has ended; answers with its exit code.
async fn relay(vsock: &Vsock, streams: &ConsoleResponse, terminal: bool) -> anyhow::Result<u8> {
    let (mut status, mut sizes) = vsock.stream(streams.control).await?.into_split();
    let input = vsock.stream(streams.stdin).await?;
    let output = vsock.stream(streams.stdout).await?;
    let errors = match streams.stderr {
        0 => None,
        id => Some(vsock.stream(id).await?),
    };
    let mut resized = signal(SignalKind::window_change())?;
    let mut quit = [
        signal(SignalKind::hangup())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ];
    if terminal {
        eprintln!("joeyctl: Ctrl-] leaves the console");
    }
    let _raw = terminal.then(Raw::set).transpose()?;

    let mut left = pump(
        File::from(stdin().try_clone_to_owned()?),
        blocking(input)?,
        terminal,
    );
    let printed = pump(
        blocking(output)?,
        File::from(stdout().try_clone_to_owned()?),
        false,
    );
    let complained = match errors {
        Some(errors) => Some(pump(
            blocking(errors)?,
            File::from(stderr().try_clone_to_owned()?),
            false,
        )),
        None => None,
    };
    let ended = async {
        let status = status.read_u32_le().await;
        // All output comes before the end.
        let _ = printed.await;
        if let Some(complained) = complained {
            let _ = complained.await;
        }
        status
    };
    tokio::pin!(ended);
    let [hangup, interrupt, terminate] = &mut quit;
    loop {
        tokio::select! {
            status = &mut ended => {
                let status = status.context("the console is lost: see `joeyctl logs`")?;
                return Ok(u8::try_from(status).unwrap_or(u8::MAX));
            }
            Some(()) = resized.recv() => if terminal { resize(&mut sizes).await? },
            // In a pipe its end is the shell's affair.
            _ = &mut left, if terminal => bail!("left the console, which ends it"),
            _ = hangup.recv() => bail!("ended by SIGHUP"),
            _ = interrupt.recv() => bail!("ended by SIGINT"),
            _ = terminate.recv() => bail!("ended by SIGTERM"),
        }
    }
}

async fn resize(sizes: &mut OwnedWriteHalf) -> anyhow::Result<()> {
    let size = tcgetwinsize(stdin()).context("cannot tell the terminal's size")?;
    let [r0, r1] = size.ws_row.to_le_bytes();
    let [c0, c1] = size.ws_col.to_le_bytes();
    // When the guest takes it no more, its status is on the way.
    let _ = sizes.write_all(&[r0, r1, c0, c1]).await;
    Ok(())
}

/// A connection for a thread of its own: a terminal cannot be awaited without changing
/// it for everybody else who has it open.
fn blocking(stream: UnixStream) -> io::Result<std::os::unix::net::UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Copies in a thread, to the end or to [`LEAVE`]; the answer comes then.
fn pump(
    mut from: impl Read + Send + 'static,
    mut to: impl Sink,
    leave: bool,
) -> oneshot::Receiver<()> {
    let (done, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(length @ 1..) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => break,
            };
            let leaves = buffer[..length]
                .iter()
                .position(|byte| leave && *byte == LEAVE);
            let sent = to.write_all(&buffer[..leaves.unwrap_or(length)]);
            if leaves.is_some() || sent.is_err() {
                break;
            }
        }
        to.end();
        // Whoever waited may have gone.
        let _ = done.send(());
    });
    ended
}

/// Where bytes go.
trait Sink: Write + Send + 'static {
    /// Says that there are no more.
    fn end(&mut self) {}
}

impl Sink for File {}

impl Sink for std::os::unix::net::UnixStream {
    fn end(&mut self) {
        // The other side may have ended it before.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

/// The terminal without a meaning of its own for any byte, until dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> anyhow::Result<Self> {
        let before = tcgetattr(stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &self.0) {
            eprintln!("joeyctl: cannot restore the terminal, `reset` does: {error}");
        }
    }
}
