//! Keeps an emulated test host from sleeping for ever.
//!
//! QEMU loses a timer's interrupt now and then while it emulates SVM: a host that waits
//! for nothing else stays in its idle loop until something comes from outside. Seen once
//! in 66 rounds of fault injection, where it slept for six minutes.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// A host that lost a timer sleeps no longer than this.
const KNOCK_INTERVAL: Duration = Duration::from_secs(5);

/// Knocks at a test host's door until it is dropped.
#[derive(Debug)]
pub(super) struct Awake {
    _end: Sender<()>,
}

impl Awake {
    /// Knocks at `port` of the loopback. The host takes a client that leaves at once for
    /// nothing; what counts is the packet.
    pub(super) fn keep(port: u16) -> Self {
        let (end, ended) = channel();
        std::thread::spawn(move || {
            while ended.recv_timeout(KNOCK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                // A host that has ended refuses, and will be told of by others.
                let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            }
        });
        Self { _end: end }
    }
}
