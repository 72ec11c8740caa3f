//! Connections from the host to the pod's loopback: each says which port it wants
//! ([`protocol::forward`]) and is tied to a connection that the agent makes there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use protocol::forward::{CONNECTED, DIAL_TIME, Family, REFUSED, Target};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, Interest, copy_buf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use crate::streams::{Duplex, Listen, next};
use crate::sys;

/// Connections at a time; more wait for one of them to end.
const MAX_CONNECTIONS: usize = 512;
/// How long a connection may take to say where it leads.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes on their way in one direction of a connection.
const CHUNK: usize = 16 * 1024;

/// Takes connections from `listener` for ever.
pub async fn serve(listener: impl Listen) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let host = next(&listener).await;
        tokio::spawn(async move {
            // However it ends, both sides have seen it.
            if let Err(error) = forward(host).await {
                log::debug!("a forwarded connection: {error}");
            }
            drop(permit);
        });
    }
}

async fn forward(mut host: impl Duplex + AsFd) -> io::Result<()> {
    let mut header = [0; Target::SIZE];
    timeout(PATIENCE, host.read_exact(&mut header)).await??;
    let target = Target::from_bytes(header).ok_or(io::ErrorKind::InvalidData)?;
    match dial(target).await {
        Ok(pod) => {
            host.write_all(&[CONNECTED]).await?;
            relay(host, pod).await
        }
        Err(error) => {
            host.write_all(&[REFUSED]).await?;
            host.shutdown().await?;
            Err(error)
        }
    }
}

/// Dials the family that was asked for, then the other one: a caller that would try
/// it by itself has been connected to the host's end by now.
async fn dial(target: Target) -> io::Result<TcpStream> {
    let (v4, v6) = (
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    );
    let (first, second) = match target.family {
        Family::V4 => (v4, v6),
        Family::V6 => (v6, v4),
    };
    let connect =
        |ip| async move { timeout(DIAL_TIME, TcpStream::connect((ip, target.port))).await? };
    match connect(first).await {
        Ok(pod) => Ok(pod),
        Err(error) => connect(second).await.map_err(|_| error),
    }
}

/// Carries bytes both ways; each way ends by itself. What goes wrong on one side is a
/// reset on the pod's.
async fn relay(host: impl Duplex + AsFd, mut pod: TcpStream) -> io::Result<()> {
    let watched = host.as_fd().try_clone_to_owned()?;
    let host_ended = Notify::new();
    let (from_host, mut to_host) = tokio::io::split(host);
    let (from_pod, mut to_pod) = pod.split();
    let inward = async {
        copy_buf(&mut BufReader::with_capacity(CHUNK, from_host), &mut to_pod).await?;
        to_pod.shutdown().await?;
        host_ended.notify_one();
        Ok(())
    };
    let outward = async {
        let mut from_pod = BufReader::with_capacity(CHUNK, from_pod);
        tokio::select! {
            copied = copy_buf(&mut from_pod, &mut to_host) => copied?,
            result = abandoned(&host_ended, watched) => return result,
        };
        to_host.shutdown().await
    };
    let result = tokio::try_join!(inward, outward).map(drop);
    if result.is_err() {
        pod.set_zero_linger()?;
    }
    result
}

/// Resolves, with an error, when the host has gone altogether: a process that says
/// nothing and ignores the end of its input would keep the connection for ever.
async fn abandoned(host_ended: &Notify, host: OwnedFd) -> io::Result<()> {
    host_ended.notified().await;
    let host = sys::watch(host)?;
    loop {
        // Not for reading: that it has ended is a readiness that is never cleared.
        host.ready(Interest::WRITABLE).await?.clear_ready();
        // A vsock does not tell by its readiness whether the peer ended one direction
        // or both; sending nothing fails only after the latter.
        match send(&host, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
