//! Connections to the pod's localhost. containerd forwards a port by dialling it in the
//! pod's network namespace, whose loopback is empty: the one that the pod's processes
//! listen on is in the guest. So all TCP connections to it are taken here and tied to
//! one that the agent makes in there.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use network::Loopback;
use nix::sys::socket::{setsockopt, sockopt};
use protocol::forward::{CONNECTED, DIAL_TIME, Family, Target};
use protocol::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, Interest, copy_buf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::error::chain;
use crate::guest::Vsock;

/// Connections of a pod at a time; more are reset.
const MAX_CONNECTIONS: usize = 256;
/// How long the agent may take to say whether the pod accepts: longer than it gives
/// the pod itself, twice, once for each family.
const ANSWER_TIME: Duration = Duration::from_secs(2 * DIAL_TIME.as_secs() + 10);
/// Rest after a failed accept (out of descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes on their way in one direction of a connection.
const CHUNK: usize = 16 << 10;
/// Seconds without a byte after which a client is asked whether it is still there, and
/// between such questions.
const KEEPALIVE: u32 = 30;

/// What forwards one pod's connections.
#[derive(Debug)]
pub struct Forwarder(JoinHandle<()>);

impl Forwarder {
    /// Takes the loopback of the namespace at `netns`, in the background. A pod whose
    /// loopback cannot be had goes on without; the log says why.
    pub fn start(netns: PathBuf, vsock: Vsock) -> Self {
        Self(tokio::spawn(async move {
            let path = netns.clone();
            let taken = spawn_blocking(move || network::listen_on_loopback(&netns)).await;
            match taken {
                Ok(Ok(loopback)) => serve(&path, loopback, &vsock).await,
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "ports of the pod are not forwarded");
                }
                Err(error) => tracing::error!(%error, "taking the pod's loopback"),
            }
        }))
    }

    /// Ends all connections and gives the namespace's loopback back.
    pub async fn stop(mut self) {
        self.0.abort();
        // It was told to end, so that it did is no news.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(netns: &Path, loopback: Loopback, vsock: &Vsock) {
    let _steering = loopback.steering;
    let listener = match TcpListener::from_std(loopback.listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(netns = %netns.display(), %error, "ports of the pod are not forwarded");
            return;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(forward(client, vsock.clone()));
                }
                Ok((client, _)) => {
                    tracing::warn!(
                        limit = MAX_CONNECTIONS,
                        "too many forwarded connections: reset one more; let others end first"
                    );
                    reset(&client);
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection to forward");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Both sides see the end of a connection themselves, so it is only noted.
async fn forward(mut client: TcpStream, vsock: Vsock) {
    let result = async {
        let target = target(client.local_addr()?);
        prepare(&client)?;
        let guest = open(&vsock, target).await?;
        relay(&mut client, guest).await
    };
    if let Err(error) = result.await {
        tracing::debug!(%error, "a forwarded connection");
        // Not an orderly end: a client that was never connected to the pod must not
        // take that for an empty answer.
        reset(&client);
    }
}

/// What was dialled is what the accepted socket is bound to.
fn target(dialled: SocketAddr) -> Target {
    Target {
        family: if dialled.ip().to_canonical().is_ipv4() {
            Family::V4
        } else {
            Family::V6
        },
        port: dialled.port(),
    }
}

fn prepare(client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    // A client that has gone after it ended its direction is heard of no other way.
    setsockopt(client, sockopt::TcpKeepIdle, &KEEPALIVE)?;
    setsockopt(client, sockopt::TcpKeepInterval, &KEEPALIVE)?;
    setsockopt(client, sockopt::KeepAlive, &true)?;
    Ok(())
}

/// When the connection is closed, the client gets a reset.
fn reset(client: &TcpStream) {
    if let Err(error) = client.set_zero_linger() {
        tracing::debug!(%error, "resetting a connection");
    }
}

/// A connection to a port of the pod.
async fn open(vsock: &Vsock, target: Target) -> io::Result<UnixStream> {
    let mut guest = vsock
        .connect(ports::FORWARD)
        .await
        .map_err(io::Error::other)?;
    guest.write_all(&target.to_bytes()).await?;
    match timeout(ANSWER_TIME, guest.read_u8()).await?? {
        CONNECTED => Ok(guest),
        _ => Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("nobody in the pod takes port {}", target.port),
        )),
    }
}

/// Carries bytes both ways; each way ends by itself.
async fn relay(client: &mut TcpStream, mut guest: UnixStream) -> io::Result<()> {
    let (from_client, mut to_client) = client.split();
    let (from_guest, mut to_guest) = guest.split();
    let (ended, client_ended) = oneshot::channel();
    let inward = async {
        let mut from_client = BufReader::with_capacity(CHUNK, from_client);
        copy_buf(&mut from_client, &mut to_guest).await?;
        to_guest.shutdown().await?;
        // Nobody listens when the other direction has ended before.
        let _ = ended.send(from_client.into_inner());
        Ok(())
    };
    // A client that ended its direction may go altogether while the guest says nothing.
    let abandoned = async {
        match client_ended.await {
            Ok(client) => client.ready(Interest::ERROR).await.map(drop),
            Err(_) => std::future::pending().await,
        }
    };
    let outward = async {
        let mut from_guest = BufReader::with_capacity(CHUNK, from_guest);
        tokio::select! {
            copied = copy_buf(&mut from_guest, &mut to_client) => copied?,
            _ = abandoned => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        to_client.shutdown().await
    };
    tokio::try_join!(inward, outward).map(drop)
}

#[cfg(test)]
mod tests;
