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

/// Agrees with the daemon at the other end of `socket`, which is connected to its vhost-user
/// socket and is not used for anything else, on queues in a new arena.
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

/// The device with a real virtiofsd: the one in C of Debian 12's qemu-system-common.
#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::super::Fs;
    use super::*;
    use crate::devices::virtio::testing::{BUFFERS, TestDriver};

    const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
    const REQUEST: u64 = BUFFERS;
    const ANSWER: u64 = BUFFERS + 0x20_0000;

    /// Opcodes of FUSE.
    const LOOKUP: u32 = 1;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const WRITE: u32 = 16;
    const FSYNC: u32 = 20;
    const INIT: u32 = 26;

    /// Polls until there is something.
    fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(value) = poll() {
                return value;
            }
            assert!(Instant::now() < limit, "no {what} in time");
            sleep(Duration::from_millis(1));
        }
    }

    /// A daemon that serves a directory.
    struct Daemon {
        child: Child,
        socket: UnixStream,
    }

    impl Daemon {
        fn start(directory: &Path) -> Self {
            let path = directory.join("socket");
            let shared = directory.join("shared");
            std::fs::create_dir_all(&shared).unwrap();
            let child = Command::new(VIRTIOFSD)
                .arg(format!("--socket-path={}", path.display()))
                .args(["-o", &format!("source={}", shared.display())])
                .args(["-o", "sandbox=chroot"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{VIRTIOFSD}: {error}; install qemu-system-common"));
            let socket = wait("daemon", || UnixStream::connect(&path).ok());
            Self { child, socket }
        }

        fn kill(&mut self) {
            let _ = self.child.kill();
            self.child.wait().unwrap();
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            self.kill();
        }
    }

    struct Bench {
        device: Fs,
        driver: TestDriver,
        unique: u64,
    }

    impl Bench {
        fn new(daemon: &Daemon) -> Self {
            let ram = TestDriver::memory();
            let mut device = Fs::new(ram, sys::event().unwrap(), Arc::default());
            let backend = connect(daemon.socket.as_fd()).unwrap();
            device.attach(backend).unwrap();
            let driver = TestDriver::start(ram, &mut device);
            Self {
                device,
                driver,
                unique: 0,
            }
        }

        /// Makes a request and returns error and body of its answer.
        fn ask(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> (i32, Vec<u8>) {
            self.unique += 1;
            let mut request = vec![0; 40];
            request[..4].copy_from_slice(&(40 + body.len() as u32).to_le_bytes());
            request[4..8].copy_from_slice(&opcode.to_le_bytes());
            request[8..16].copy_from_slice(&self.unique.to_le_bytes());
            request[16..24].copy_from_slice(&node.to_le_bytes());
            request.extend_from_slice(body);
            self.driver.ram.put(REQUEST, &request).unwrap();
            let length = request.len() as u32;
            let readable = [(REQUEST, 40), (REQUEST + 40, length - 40)];
            let writable = [(ANSWER, 16), (ANSWER + 16, room)];
            self.driver.queues[1].add(&readable, &writable);
            self.device.process();
            let (_, length) = wait("answer", || {
                self.device.called(1, 1);
                self.driver.queues[1].used()
            });
            let answer = self.driver.read(ANSWER, length as usize);
            assert_eq!(answer[8..16], self.unique.to_le_bytes());
            let error = i32::from_le_bytes(answer[4..8].try_into().unwrap());
            (error, answer[16..].to_vec())
        }

        fn good(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Vec<u8> {
            let (error, answer) = self.ask(opcode, node, body, room);
            assert_eq!(error, 0, "opcode {opcode}");
            answer
        }

        fn start_session(&mut self) {
            // Version, readahead, and the flags for writes of up to 256 pages.
            let words = [7u32, 31, 1 << 20, 1 << 5 | 1 << 22];
            self.good(INIT, 0, &words.map(u32::to_le_bytes).concat(), 64);
        }
    }

    /// `struct fuse_read_in` and, as far as it goes, `struct fuse_write_in`.
    fn range(handle: u64, offset: u64, size: u32) -> Vec<u8> {
        let mut body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        body.extend_from_slice(&size.to_le_bytes());
        body.resize(40, 0);
        body
    }

    fn first(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    fn directory(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("joey-fs-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_mebibyte_goes_to_a_real_daemon_and_back() {
        let place = directory("whole");
        let mut daemon = Daemon::start(&place);
        std::fs::write(place.join("shared/file"), b"before").unwrap();
        let mut bench = Bench::new(&daemon);
        bench.start_session();
        let node = first(&bench.good(LOOKUP, 1, b"file\0", 128));
        let read_write = [libc::O_RDWR as u32, 0].map(u32::to_le_bytes).concat();
        let handle = first(&bench.good(OPEN, node, &read_write, 16));
        let got = bench.good(READ, node, &range(handle, 0, 4096), 4096);
        assert_eq!(got, b"before");

        let bytes: Vec<u8> = (0..1u32 << 20).map(|index| (index / 77) as u8).collect();
        let write = [range(handle, 4096, 1 << 20), bytes.clone()].concat();
        let written = bench.good(WRITE, node, &write, 8);
        assert_eq!(written[..4], (1u32 << 20).to_le_bytes());
        bench.good(FSYNC, node, &range(handle, 0, 0)[..16], 0);
        let file = std::fs::read(place.join("shared/file")).unwrap();
        assert!(file[4096..] == bytes);
        let got = bench.good(READ, node, &range(handle, 4096, 1 << 20), 1 << 20);
        assert!(got == bytes);
        let (error, _) = bench.ask(LOOKUP, 1, b"missing\0", 128);
        assert_eq!(error, -libc::ENOENT);

        daemon.kill();
        bench.device.hung_up(1);
        assert!(bench.device.take_loss().is_some());
        let (error, _) = bench.ask(LOOKUP, 1, b"file\0", 128);
        assert_eq!(error, -libc::EIO);
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn what_is_no_daemon_gives_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = connect(ours.as_fd()).unwrap_err().to_string();
        assert!(error.contains("as virtiofsd does"), "{error}");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut theirs, &[0xff; 4096]).unwrap();
        assert!(connect(ours.as_fd()).is_err());
    }
}
