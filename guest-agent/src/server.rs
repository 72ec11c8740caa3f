//! The event loop's upper end: both services, the streams, forwarded connections and
//! the children, until the host wants the machine off.

use std::io;
use std::sync::Arc;

use containerd_shim_protos::shim_async::create_task;
use protocol::guest_ttrpc::create_guest;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::forward;
use crate::guest_service::GuestService;
use crate::service::TaskService;
use crate::streams::Listen;
use crate::tasks::Tasks;

/// Turns of the event loop that the last answer gets to leave.
const LAST_TURNS: usize = 16;

/// Why the agent cannot go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The services cannot be served.
    #[error("serve calls: {0}")]
    Calls(#[from] ttrpc::Error),
    /// Ends of processes would go unnoticed.
    #[error("watch processes: {0}")]
    Children(io::Error),
}

/// Serves until the host asks for the machine to be switched off.
pub async fn serve(
    tasks: Arc<Tasks>,
    calls: Listener,
    streams: impl Listen,
    forwards: impl Listen,
) -> Result<(), ServerError> {
    // Before the first process, so that no end is missed.
    let mut children = signal(SignalKind::child()).map_err(ServerError::Children)?;
    let mut server = Server::new()
        .add_listener(calls)
        .register_service(create_task(Arc::new(TaskService(Arc::clone(&tasks)))))
        .register_service(create_guest(Arc::new(GuestService(Arc::clone(&tasks)))));
    server.start().await?;
    tokio::spawn(tasks.streams.clone().serve(streams));
    tokio::spawn(forward::serve(forwards));
    let memory = Arc::clone(&tasks);
    tokio::spawn(async move { memory.watch_memory().await });
    loop {
        tokio::select! {
            signal = children.recv() => match signal {
                Some(()) => tasks.reap(),
                None => return Err(ServerError::Children(io::ErrorKind::UnexpectedEof.into())),
            },
            () = tasks.power_off.notified() => break,
        }
    }
    for _ in 0..LAST_TURNS {
        tokio::task::yield_now().await;
    }
    Ok(())
}
