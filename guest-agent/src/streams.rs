//! Connections of the stream port: each says which stream it is (its id, u64 little
//! endian) and is kept until the process that it belongs to claims it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// How long a claim waits for its connection, a connection for its claim, and either
/// for the id: the host makes both sides of a stream in one breath.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections whose id has not come yet.
const MAX_HEADERS: usize = 64;
/// Connections that wait for their claim.
const MAX_UNCLAIMED: usize = 256;
/// Rest after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Both directions of a stream's connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream's connection, whatever carries it.
pub type Connection = Box<dyn Duplex>;

/// Where connections come from.
pub trait Listen: Send + Sync + 'static {
    /// A connection as it comes.
    type Socket: Duplex + AsFd + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

/// A vsock port that serves the host alone: a guest's own processes reach its ports as
/// well where the kernel has a loopback for vsock, and who calls the agent is root.
pub struct FromHost(VsockListener);

impl FromHost {
    /// Listens on `port`.
    pub fn bind(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self)
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<VsockStream>> {
        loop {
            let (socket, peer) = ready!(self.0.poll_accept(context))?;
            if peer.cid() == VMADDR_CID_HOST {
                return Poll::Ready(Ok(socket));
            }
            log::debug!("closed a connection from within the guest");
        }
    }
}

impl Listen for FromHost {
    type Socket = VsockStream;

    async fn accept(&self) -> io::Result<VsockStream> {
        poll_fn(|context| self.poll_accept(context)).await
    }
}

impl Stream for FromHost {
    type Item = io::Result<VsockStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(context).map(Some)
    }
}

impl Listen for UnixListener {
    type Socket = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

/// The next connection, after a rest when there is none to be had: out of
/// descriptors, say, which must not spin.
pub async fn next<L: Listen>(listener: &L) -> L::Socket {
    loop {
        match listener.accept().await {
            Ok(socket) => return socket,
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Why a stream is not there.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StreamError {
    /// Another process has the id.
    #[error("stream {0} is in use: give each stream an id of its own")]
    InUse(u64),
    /// The host never connected it.
    #[error("stream {0} was not connected within {seconds} s", seconds = PATIENCE.as_secs())]
    Missing(u64),
}

enum Slot {
    /// Connected; nobody has asked for it yet.
    Arrived(Connection),
    /// Asked for; not connected yet.
    Claimed(oneshot::Sender<Connection>),
}

/// The streams of all processes. Clones share them.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<u64, Slot>>>);

impl Streams {
    fn slots(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes connections from `listener` for ever.
    pub async fn serve(self, listener: impl Listen) {
        let headers = Arc::new(Semaphore::new(MAX_HEADERS));
        loop {
            let permit = Arc::clone(&headers).acquire_owned().await;
            let connection: Connection = Box::new(next(&listener).await);
            let streams = self.clone();
            tokio::spawn(async move {
                let id = tokio::time::timeout(PATIENCE, read_id(connection)).await;
                drop(permit);
                match id {
                    Ok(Ok((id, connection))) => streams.arrive(id, connection).await,
                    Ok(Err(error)) => {
                        log::warn!("a stream closed before it said its id: {error}")
                    }
                    Err(_) => log::warn!("a stream did not say its id; closed it"),
                }
            });
        }
    }

    /// Hands the connection to its claim, or keeps it until there is one.
    async fn arrive(&self, id: u64, connection: Connection) {
        {
            let mut slots = self.slots();
            let unclaimed = slots
                .values()
                .filter(|slot| matches!(slot, Slot::Arrived(_)))
                .count();
            match slots.entry(id) {
                Entry::Occupied(entry) => {
                    return match entry.remove() {
                        Slot::Claimed(claim) => {
                            // A claim that is gone takes its connection with it.
                            let _ = claim.send(connection);
                        }
                        first @ Slot::Arrived(_) => {
                            slots.insert(id, first);
                            log::warn!("stream {id} was connected twice; closed the second");
                        }
                    };
                }
                Entry::Vacant(_) if unclaimed >= MAX_UNCLAIMED => {
                    log::warn!("{unclaimed} streams wait for a process; closed stream {id}");
                    return;
                }
                Entry::Vacant(entry) => {
                    entry.insert(Slot::Arrived(connection));
                }
            }
        }
        tokio::time::sleep(PATIENCE).await;
        let mut slots = self.slots();
        if let Entry::Occupied(entry) = slots.entry(id)
            && matches!(entry.get(), Slot::Arrived(_))
        {
            entry.remove();
            log::warn!("no process wanted stream {id}; closed it");
        }
    }

    /// Reserves stream `id`, connected or not. Dropping the claim gives it up.
    pub fn claim(&self, id: u64) -> Result<Claim, StreamError> {
        let mut slots = self.slots();
        let (sender, receiver) = oneshot::channel();
        match slots.remove(&id) {
            Some(Slot::Arrived(connection)) => {
                // The receiver is right here, so this cannot fail.
                let _ = sender.send(connection);
            }
            Some(claimed @ Slot::Claimed(_)) => {
                slots.insert(id, claimed);
                return Err(StreamError::InUse(id));
            }
            None => {
                slots.insert(id, Slot::Claimed(sender));
            }
        }
        drop(slots);
        Ok(Claim {
            id,
            receiver,
            streams: self.clone(),
        })
    }
}

async fn read_id(mut connection: Connection) -> io::Result<(u64, Connection)> {
    let id = connection.read_u64_le().await?;
    Ok((id, connection))
}

/// A stream reserved for one process.
pub struct Claim {
    id: u64,
    receiver: oneshot::Receiver<Connection>,
    streams: Streams,
}

impl Claim {
    /// The stream's connection, once the host has made it.
    pub async fn connected(mut self) -> Result<Connection, StreamError> {
        match tokio::time::timeout(PATIENCE, &mut self.receiver).await {
            Ok(Ok(connection)) => Ok(connection),
            _ => Err(StreamError::Missing(self.id)),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closed first: a slot that still holds this claim's sender then shows it.
        self.receiver.close();
        let mut slots = self.streams.slots();
        if let Entry::Occupied(entry) = slots.entry(self.id)
            && matches!(entry.get(), Slot::Claimed(sender) if sender.is_closed())
        {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn served() -> (tempfile::TempDir, std::path::PathBuf, Streams) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("streams");
        let listener = UnixListener::bind(&path).unwrap();
        let streams = Streams::default();
        tokio::spawn(streams.clone().serve(listener));
        (directory, path, streams)
    }

    async fn connect(path: &std::path::Path, id: u64, text: &str) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(&id.to_le_bytes()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn text(connection: &mut Connection, length: usize) -> String {
        let mut bytes = vec![0; length];
        connection.read_exact(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn a_claim_finds_its_stream_whichever_comes_first() {
        let (_directory, path, streams) = served();
        let early = streams.claim(7).unwrap();
        let _seven = connect(&path, 7, "seven").await;
        assert_eq!(
            text(&mut early.connected().await.unwrap(), 5).await,
            "seven"
        );

        let _eight = connect(&path, 8, "eight").await;
        while !streams.slots().contains_key(&8) {
            tokio::task::yield_now().await;
        }
        let late = streams.claim(8).unwrap();
        assert_eq!(text(&mut late.connected().await.unwrap(), 5).await, "eight");
        assert!(streams.slots().is_empty());
    }

    #[tokio::test]
    async fn the_id_may_come_in_pieces() {
        let (_directory, path, streams) = served();
        let claim = streams.claim(0x0102_0304_0506_0708).unwrap();
        let mut stream = UnixStream::connect(&path).await.unwrap();
        for byte in [8, 7, 6, 5, 4, 3, 2, 1, b'x'] {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(text(&mut claim.connected().await.unwrap(), 1).await, "x");
    }

    #[tokio::test]
    async fn an_id_has_one_owner_at_a_time() {
        let streams = Streams::default();
        let first = streams.claim(1).unwrap();
        assert_eq!(streams.claim(1).err(), Some(StreamError::InUse(1)));
        drop(first);
        assert!(streams.claim(1).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_meets_is_given_up() {
        let (_directory, path, streams) = served();
        assert_eq!(
            streams.claim(1).unwrap().connected().await.err(),
            Some(StreamError::Missing(1))
        );
        let mut unwanted = connect(&path, 2, "").await;
        // End of file: the agent closed it.
        assert_eq!(unwanted.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(streams.slots().is_empty());
    }

    #[tokio::test]
    async fn a_second_connection_of_a_stream_is_closed() {
        let (_directory, path, streams) = served();
        let _first = connect(&path, 3, "first").await;
        while !streams.slots().contains_key(&3) {
            tokio::task::yield_now().await;
        }
        let mut second = connect(&path, 3, "").await;
        assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0);
        let claim = streams.claim(3).unwrap();
        assert_eq!(
            text(&mut claim.connected().await.unwrap(), 5).await,
            "first"
        );
    }

    #[tokio::test]
    async fn unclaimed_streams_are_bounded() {
        let streams = Streams::default();
        let mut tasks = Vec::new();
        for id in 0..MAX_UNCLAIMED as u64 {
            let streams = streams.clone();
            let (connection, other) = tokio::io::duplex(1);
            tasks.push((
                tokio::spawn(async move { streams.arrive(id, Box::new(connection)).await }),
                other,
            ));
        }
        while streams.slots().len() < MAX_UNCLAIMED {
            tokio::task::yield_now().await;
        }
        let (connection, mut other) = tokio::io::duplex(1);
        streams.arrive(u64::MAX, Box::new(connection)).await;
        assert_eq!(other.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
