//! The agent, as seen from the host: connections into the guest's vsock, and the
//! calls on the one that carries ttrpc.

mod answers;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::context::{self, Context};
use protocol::guest_ttrpc::GuestClient;
use protocol::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use self::answers::Answers;
use crate::error::Error;

/// How long a connection into the guest may take.
const CONNECT_TIME: Duration = Duration::from_secs(20);

/// How long the agent may take over a call. Longer than any of containerd's own
/// limits; only keeps a guest that never answers from holding calls for ever.
const CALL_TIME: Duration = Duration::from_secs(300);

/// How long the agent may take over a question.
pub const QUESTION_TIME: Duration = Duration::from_secs(10);
/// Largest payload of a call: a message has 4 MiB at most, its envelope included.
const MAX_PAYLOAD: usize = (4 << 20) - (64 << 10);

/// Longest answer of the VMM to a CONNECT, in bytes: "OK ", a port, a newline.
const MAX_GREETING: usize = 32;

/// No connection into the guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The VMM does not take connections.
    #[error("cannot connect to port {port} of the guest")]
    Connect {
        /// The vsock port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// The VMM's answer is not that of the handshake.
    #[error("the VMM answered {answer:?} to CONNECT {port}")]
    Greeting {
        /// The vsock port.
        port: u32,
        /// What it said.
        answer: String,
    },
    /// Nobody answered.
    #[error("port {0} of the guest did not answer within {seconds} s", seconds = CONNECT_TIME.as_secs())]
    Timeout(u32),
}

/// The host's side of the guest's vsock: a Unix socket of the VMM.
#[derive(Clone, Debug)]
pub struct Vsock {
    path: PathBuf,
}

impl Vsock {
    /// The socket at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection to a port of the guest.
    ///
    /// # Errors
    /// When the VMM or the guest refuses it, or does not answer.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, GuestError> {
        timeout(CONNECT_TIME, self.handshake(port))
            .await
            .map_err(|_| GuestError::Timeout(port))?
    }

    /// A connection that carries the bytes of stream `id`.
    ///
    /// # Errors
    /// As [`Vsock::connect`].
    pub async fn stream(&self, id: u64) -> Result<UnixStream, GuestError> {
        let port = ports::STREAM;
        let mut stream = self.connect(port).await?;
        stream
            .write_all(&id.to_le_bytes())
            .await
            .map_err(|source| GuestError::Connect { port, source })?;
        Ok(stream)
    }

    async fn handshake(&self, port: u32) -> Result<UnixStream, GuestError> {
        let failed = |source| GuestError::Connect { port, source };
        let mut stream = UnixStream::connect(&self.path).await.map_err(failed)?;
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .await
            .map_err(failed)?;
        // Byte by byte: what follows the newline is the guest's.
        let mut answer = Vec::with_capacity(MAX_GREETING);
        while answer.last() != Some(&b'\n') {
            if answer.len() == MAX_GREETING {
                break;
            }
            match stream.read_u8().await {
                Ok(byte) => answer.push(byte),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(failed(io::ErrorKind::ConnectionRefused.into()));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if !answer.starts_with(b"OK ") || !answer.ends_with(b"\n") {
            return Err(GuestError::Greeting {
                port,
                answer: String::from_utf8_lossy(&answer).into_owned(),
            });
        }
        Ok(stream)
    }
}

/// A connected agent.
#[derive(Clone)]
pub struct Guest {
    /// containerd's Task service in the guest.
    pub task: TaskClient,
    /// What Task lacks.
    pub guest: GuestClient,
    /// For the streams.
    pub vsock: Vsock,
}

impl Guest {
    /// Connects to an agent that is ready.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(vsock: Vsock) -> Result<Self, GuestError> {
        let stream = vsock.connect(ports::RPC).await?;
        let client = Client::new(Socket::new(Answers::new(stream)));
        Ok(Self {
            task: TaskClient::new(client.clone()),
            guest: GuestClient::new(client),
            vsock,
        })
    }
}

/// Refuses what does not fit into one call; `what` names it.
///
/// # Errors
/// When it is too large.
pub fn check_size(size: usize, what: &str) -> Result<(), Error> {
    if size > MAX_PAYLOAD {
        return Err(Error::Invalid(format!(
            "{what}: {size} bytes, and at most {MAX_PAYLOAD} reach the guest; put large data \
             into the image or a volume"
        )));
    }
    Ok(())
}

/// The context of a call that ends at some time.
pub fn bounded() -> Context {
    context::with_duration(CALL_TIME)
}

/// The context of a question: containerd asks all pods in turn, so that one guest that
/// hangs must not hold up the answers of the others.
pub fn question() -> Context {
    context::with_duration(QUESTION_TIME)
}

/// The context of a call that waits for ever.
pub fn unbounded() -> Context {
    context::with_timeout(0)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A VMM that answers each connection with `answer` and then `bytes`.
    fn vmm(dir: &Path, answer: &'static [u8]) -> (Vsock, tokio::task::JoinHandle<Vec<u8>>) {
        let path = dir.join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut said = Vec::new();
            while !said.ends_with(b"\n") {
                said.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            if answer.starts_with(b"OK") {
                stream.read_to_end(&mut said).await.unwrap();
            }
            said
        });
        (Vsock::new(path), server)
    }

    #[tokio::test]
    async fn bytes_after_the_greeting_are_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let (vsock, server) = vmm(dir.path(), b"OK 1073741824\nhello");
        let mut stream = vsock.stream(0x0102).await.unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        drop(stream);
        assert_eq!(
            server.await.unwrap(),
            b"CONNECT 1025\n\x02\x01\0\0\0\0\0\0".to_vec()
        );
    }

    #[tokio::test]
    async fn refusals_and_nonsense_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (vsock, _server) = vmm(dir.path(), b"");
        assert!(matches!(
            vsock.connect(9).await,
            Err(GuestError::Connect { port: 9, .. })
        ));
        for nonsense in [&b"NO\n"[..], &[b'x'; 64]] {
            let dir = tempfile::tempdir().unwrap();
            let (vsock, _server) = vmm(dir.path(), nonsense);
            assert!(matches!(
                vsock.connect(9).await,
                Err(GuestError::Greeting { .. })
            ));
        }
        let gone = Vsock::new(dir.path().join("none"));
        assert!(matches!(
            gone.connect(9).await,
            Err(GuestError::Connect { .. })
        ));
    }
}
