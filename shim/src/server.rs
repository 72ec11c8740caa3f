//! The process that stays: serves containerd until it is done with the pod.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use containerd_shim::Flags;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use nix::unistd::{dup2_stderr, dup2_stdin, setsid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::bootstrap::{address, socket_path};
use crate::events::{Containerd, Publisher};
use crate::logging;
use crate::sandbox::next;
use crate::service::{self, Pod};

/// Where containerd takes events, in our environment.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// How long the last events may take to reach containerd.
const FLUSH_TIME: Duration = Duration::from_secs(5);

/// How long connections may take to close.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Blocking work is rare and short: attaching a network, building an image.
const BLOCKING_THREADS: usize = 8;
const BLOCKING_STACK: usize = 512 << 10;
const BLOCKING_REST: Duration = Duration::from_millis(500);

/// Serves on the socket that is our standard input, from the bundle's directory.
///
/// # Errors
/// When the process cannot be set up; then it was not started by `start`.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    // Away from containerd's terminal and process group. Fails only if we lead a
    // group already, which is as good.
    let _ = setsid();
    let listener = take_listener().context("standard input is not the pod's socket")?;
    log_to(Path::new("log")).context("opening containerd's log")?;
    logging::start(&flags.namespace, &flags.id, flags.debug);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK)
        .thread_keep_alive(BLOCKING_REST)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(serve(flags, listener));
    // Whatever still blocks is of no use to anyone.
    runtime.shutdown_background();

    let socket = socket_path(&address(flags, &flags.id));
    if let Err(error) = std::fs::remove_file(&socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(socket = %socket.display(), %error, "removing the socket");
    }
    result
}

async fn serve(flags: &Flags, listener: UnixListener) -> anyhow::Result<()> {
    let containerd =
        std::env::var(EVENTS_VARIABLE).with_context(|| format!("{EVENTS_VARIABLE} is not set"))?;
    let publisher = Publisher::new(&flags.namespace, Containerd::new(&containerd));
    let socket = socket_path(&address(flags, &flags.id));
    let pod = Arc::new(Pod::new(&flags.namespace, &socket, publisher.clone()));
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).context("the pod's socket")?)
        .register_service(service::all(&pod));
    server.start().await.context("serving")?;
    tracing::debug!(id = flags.id, "serving");

    let mut terminate = signal(SignalKind::terminate()).context("handling signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handling signals")?;
    tokio::select! {
        () = pod.wait_end() => {}
        () = pod.wait_forgotten() => {
            tracing::warn!(id = flags.id, "nobody has asked for a pod: the shim ends");
        }
        _ = terminate.recv() => pod.terminate().await,
        _ = interrupt.recv() => pod.terminate().await,
    }
    if timeout(FLUSH_TIME, publisher.flush()).await.is_err() {
        tracing::warn!("containerd did not take the last events");
    }
    // Lets the answer to the last request out; containerd may hold others open.
    let _ = timeout(CLOSE_TIME, server.shutdown()).await;
    next::finish().await;
    Ok(())
}

/// Takes the socket from standard input and leaves nothing there.
fn take_listener() -> io::Result<UnixListener> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.local_addr()?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    Ok(listener)
}

/// Logs, and reports panics, into containerd's FIFO. Open for reading too, so
/// that a restart of containerd breaks nothing, and never waiting for a reader:
/// lines that nobody takes are lost.
fn log_to(fifo: &Path) -> io::Result<()> {
    match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo)
    {
        Ok(log) => dup2_stderr(&log)?,
        // Started by hand: standard error stays.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
