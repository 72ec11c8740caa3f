//! The vhost-user conversation with the file system daemon. The owner of the VM has it,
//! before the guest can reach the daemon: the VMM itself never reads what a daemon says
//! that a guest may have taken over.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{ARENA_SIZE, Backend, PLACES};
use super::config::QUEUES;
use crate::devices::virtio::feature;
use crate::sys;

/// Where the daemon finds the arena in its "guest memory".
pub const ARENA_ADDRESS: u64 = 1 << 20;

/// Longest wait for the daemon to take or answer a message.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a daemon cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The arena or an event cannot be made.
    #[error("cannot make what is shared with the file system daemon: {0}")]
    Make(#[from] io::Error),
    /// The daemon is none, or hangs.
    #[error("the file system daemon does not answer as virtiofsd does: {step}: {source}")]
    Talk {
        /// What was asked of it.
        step: &'static str,
        /// What came of it.
        source: vhost::Error,
    },
    /// It is too old, or not for file systems.
    #[error("the file system daemon lacks features ({missing:#x}): is it virtiofsd?")]
    Features {
        /// Virtio features that it does not offer.
        missing: u64,
    },
}

/// Makes the error of a step.
fn failed(step: &'static str) -> impl Fn(vhost::Error) -> HandshakeError {
    move |source| HandshakeError::Talk { step, source }
}

/// Agrees with the daemon at the other end of `socket` on queues in a new arena.
pub fn connect(socket: BorrowedFd<'_>) -> Result<Backend<OwnedFd>, HandshakeError> {
    let socket = UnixStream::from(socket.try_clone_to_owned()?);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let mut daemon = Frontend::from_stream(socket.try_clone()?, QUEUES as u64);
    agree_on_features(&mut daemon)?;

    let arena = sys::sealed_memory_file(c"joey-fs", ARENA_SIZE)?;
    daemon
        .set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: ARENA_ADDRESS,
            memory_size: ARENA_SIZE,
            userspace_addr: ARENA_ADDRESS,
            mmap_offset: 0,
            mmap_handle: arena.as_raw_fd(),
        }])
        .map_err(failed("share memory"))?;
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let kicks = [event()?, event()?];
    let calls = [event()?, event()?];
    for (index, place) in PLACES.iter().enumerate() {
        let address = |offset: usize| ARENA_ADDRESS + offset as u64;
        let queue = VringConfigData {
            queue_max_size: place.size(),
            queue_size: place.size(),
            flags: 0,
            desc_table_addr: address(place.descriptors()),
            used_ring_addr: address(place.used()),
            avail_ring_addr: address(place.available()),
            log_addr: None,
        };
        daemon
            .set_vring_num(index, place.size())
            .and_then(|()| daemon.set_vring_addr(index, &queue))
            .and_then(|()| daemon.set_vring_base(index, 0))
            .and_then(|()| daemon.set_vring_call(index, &calls[index]))
            .and_then(|()| daemon.set_vring_kick(index, &kicks[index]))
            .map_err(failed("set up a queue"))?;
        daemon
            .set_vring_enable(index, true)
            .map_err(failed("enable a queue"))?;
    }
    // Answered after all that came before, also by a daemon that does not confirm each.
    daemon.get_features().map_err(failed("set up the queues"))?;
    Ok(Backend {
        socket: socket.into(),
        arena,
        kicks: kicks.map(sys::from_event),
        calls: calls.map(sys::from_event),
    })
}

fn agree_on_features(daemon: &mut Frontend) -> Result<(), HandshakeError> {
    let needed = feature::VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    daemon.set_owner().map_err(failed("greet it"))?;
    let offered = daemon.get_features().map_err(failed("ask for features"))?;
    let missing = needed & !offered;
    if missing != 0 {
        return Err(HandshakeError::Features { missing });
    }
    let confirm = VhostUserProtocolFeatures::REPLY_ACK;
    let offered = daemon
        .get_protocol_features()
        .map_err(failed("ask for features of the protocol"))?;
    daemon
        .set_protocol_features(offered & confirm)
        .map_err(failed("choose features of the protocol"))?;
    if offered.contains(confirm) {
        daemon.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    daemon
        .set_features(needed)
        .map_err(failed("choose features"))
}

impl Backend<OwnedFd> {
    /// The same, borrowed.
    pub fn borrow(&self) -> Backend<BorrowedFd<'_>> {
        Backend {
            socket: self.socket.as_fd(),
            arena: self.arena.as_fd(),
            kicks: [self.kicks[0].as_fd(), self.kicks[1].as_fd()],
            calls: [self.calls[0].as_fd(), self.calls[1].as_fd()],
        }
    }
}
