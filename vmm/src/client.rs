//! The owner's side: starts a `joey-vmm` process and drives it. All calls block,
//! and each has a bound, so that a VMM that hangs gives an error.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::action::{Action, Reply};
use crate::channel::{Channel, ChannelError};
use crate::devices::virtio::fs::Backend;
use crate::devices::virtio::net::{self, Offloads};
use crate::devices::virtio::vsock::MAX_CONNECTIONS;
use crate::files::{BootFiles, MAX_FILES, Outlets, RestoreFiles, RunFiles};
use crate::metrics::Stats;
use crate::place::Place;
use crate::spec::VmSpec;
use crate::sys::{self, Birth, Child, Program};

/// Longest time for the answer to an action. A VMM answers within milliseconds;
/// this is for a host that is out of memory or CPU, and stands still for seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The process cannot be started.
    #[error("cannot start {binary}: {source}")]
    Spawn {
        /// The program.
        binary: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process has died.
    #[error("the VMM has died: see its log, or the kernel's for a seccomp violation")]
    Died,
    /// It does not answer; kill it.
    #[error("the VMM did not answer in time: kill it")]
    Hangs,
    /// It refused; a sentence that names the thing and the next step.
    #[error("{0}")]
    Refused(String),
    /// The control socket failed, or an earlier call did not finish.
    #[error("talking to the VMM: {0}")]
    Channel(String),
}

/// A VMM process. Dropping it kills it.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    control: Channel,
    events: UnixStream,
    /// A call did not finish, so answers no longer match questions.
    broken: bool,
    /// The call under way may be given up.
    hurried: bool,
    /// The VMM has not answered the last call yet.
    owes: bool,
    /// It waits for another owner, and is none of ours to kill.
    parked: bool,
    /// What a VMM that was taken gets when it is to run.
    outlets: Option<Outlets<OwnedFd>>,
}

impl Vmm {
    /// Starts the program at `binary` in a place. Its messages go to `log`, or nowhere.
    /// It leaves the host's namespaces and waits for [`Self::boot`] or [`Self::restore`].
    pub fn spawn(binary: &Path, place: Place<'_>, log: Option<File>) -> Result<Self, ClientError> {
        let failed = |source: io::Error| ClientError::Spawn {
            binary: binary.display().to_string(),
            source,
        };
        let path = CString::new(binary.as_os_str().as_bytes())
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(failed)?;
        let log = log.as_ref().unwrap_or(&null);
        let (control, their_control) = Channel::pair().map_err(failed)?;
        let (events, their_events) = UnixStream::pair().map_err(failed)?;
        control.set_timeout(ANSWER_TIMEOUT).map_err(failed)?;
        let mut files = vec![
            null.as_fd(),
            log.as_fd(),
            log.as_fd(),
            their_control.as_fd(),
            their_events.as_fd(),
        ];
        files.push(place.lease.unwrap_or(null.as_fd()));
        files.extend(place.network);
        let child = sys::spawn(
            &Program {
                path: &path,
                arguments: &[c"joey-vmm"],
                environment: &[],
            },
            &files,
            Birth {
                cgroup: place.cgroup,
                own_pids: true,
            },
        )
        .map_err(failed)?;
        Ok(Self::new(child, control, events))
    }

    /// Leaves a VMM that has a VM, which has not run yet, to whoever connects first to a
    /// socket of [`Self::listener`]. It ends by itself when nobody does in that time. The
    /// caller still has to take its end off the process table: the descriptor is readable
    /// then.
    pub fn park(
        mut self,
        listener: BorrowedFd<'_>,
        time: Duration,
    ) -> Result<OwnedFd, ClientError> {
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        self.done(&Action::Park { seconds }, &[listener])?;
        let pidfd = self.child.pidfd.try_clone();
        let pidfd = pidfd.map_err(|error| ClientError::Channel(error.to_string()))?;
        self.parked = true;
        Ok(pidfd)
    }

    /// A socket at `path` for [`Self::park`].
    pub fn listener(path: &Path) -> io::Result<OwnedFd> {
        Channel::listen(path)
    }

    /// Takes a VMM that was parked at `path`, whose process `pid` is. Its messages go to
    /// `log` from when it runs on.
    ///
    /// # Errors
    /// [`ClientError::Died`]: it is gone, or somebody else has it.
    pub fn take(path: &Path, pid: u32, pidfd: OwnedFd, log: File) -> Result<Self, ClientError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ClientError::Died,
            _ => ClientError::Channel(error.to_string()),
        };
        let control = Channel::connect(path).map_err(failed)?;
        control.set_timeout(ANSWER_TIMEOUT).map_err(failed)?;
        let (events, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Child {
            pid: i32::try_from(pid).map_err(|_| ClientError::Died)?,
            pidfd,
        };
        let mut vmm = Self::new(child, control, events);
        vmm.outlets = Some(Outlets {
            events: theirs.into(),
            log: log.into(),
        });
        Ok(vmm)
    }

    fn new(child: Child, control: Channel, events: UnixStream) -> Self {
        Self {
            child,
            control,
            events,
            broken: false,
            hurried: false,
            owes: false,
            parked: false,
            outlets: None,
        }
    }

    /// Bounds the wait for each answer; a minute unless told.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.control.set_timeout(timeout)
    }

    /// Builds a VM of this shape and locks the process up. [`Self::run`] boots it.
    pub fn boot(
        &mut self,
        spec: &VmSpec,
        files: BootFiles<BorrowedFd<'_>>,
    ) -> Result<(), ClientError> {
        self.done(&Action::Boot(Box::new(spec.clone())), &files.into_list())
    }

    /// The same with a VM that goes on from a snapshot of one of this shape, when it is
    /// [`Self::run`]. `ahead`: that is later, so it takes its time now to be fast then.
    pub fn restore(
        &mut self,
        spec: &VmSpec,
        files: RestoreFiles<BorrowedFd<'_>>,
        ahead: bool,
    ) -> Result<(), ClientError> {
        let spec = Box::new(spec.clone());
        self.done(&Action::Restore { spec, ahead }, &files.into_list())
    }

    /// Lets a VM run for the first time. `scratch` is open for reading and writing and has
    /// `size` bytes, whole sectors of 512, the same as in the snapshot; the listener is a
    /// Unix stream socket. The guest has no network without a TAP, which is set up here for
    /// these offloads: those of the VM's spec. `outlets` are none of the caller's.
    pub fn run(
        &mut self,
        files: RunFiles<BorrowedFd<'_>>,
        size: u64,
        offloads: Offloads,
    ) -> Result<(), ClientError> {
        let refused =
            |what: &str, error: io::Error| ClientError::Refused(format!("{what}: {error}"));
        sys::set_nonblocking(files.vsock_listener)
            .map_err(|error| refused("the vsock listener", error))?;
        if let Some(tap) = files.tap {
            net::set_up_tap(tap, offloads)
                .map_err(|error| refused("cannot set up the TAP", error))?;
        }
        let outlets = self.outlets.take();
        let action = Action::Run {
            scratch: size,
            tap: files.tap.is_some(),
            adopt: outlets.is_some(),
        };
        let outlets = outlets.as_ref().map(|outlets| Outlets {
            events: outlets.events.as_fd(),
            log: outlets.log.as_fd(),
        });
        self.done(&action, &RunFiles { outlets, ..files }.into_list())
    }

    /// Stops the guest. Connections stay, and what comes for it waits.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.done(&Action::Pause, &[])
    }

    /// Lets it go on.
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.done(&Action::Resume, &[])
    }

    /// Writes a paused VM to two files: its memory, to a file that has that length and is
    /// empty otherwise, and everything else, to an empty file. Refused while something is
    /// attached.
    pub fn save(
        &mut self,
        memory: BorrowedFd<'_>,
        state: BorrowedFd<'_>,
    ) -> Result<(), ClientError> {
        self.done(&Action::Save { leave: false }, &[memory, state])
    }

    /// The same for a VM that goes on in another process: here it never runs again. Returns
    /// the sockets of its connections, by the host's ports, for [`Self::take_over`]. Refused,
    /// it is as before.
    pub fn leave(
        &mut self,
        memory: BorrowedFd<'_>,
        state: BorrowedFd<'_>,
    ) -> Result<Vec<(u32, OwnedFd)>, ClientError> {
        self.done(&Action::Save { leave: true }, &[memory, state])?;
        let mut connections: Vec<(u32, OwnedFd)> = Vec::new();
        let mut from = 0;
        // A VMM that was taken over may have no end of them.
        while connections.len() <= MAX_CONNECTIONS {
            match self.call(&Action::Connections { from }, &[])? {
                (Reply::Connections(ports), sockets) if ports.len() == sockets.len() => {
                    let Some(last) = ports.last() else {
                        return Ok(connections);
                    };
                    from = last.saturating_add(1);
                    connections.extend(ports.into_iter().zip(sockets));
                }
                (other, _) => return Err(self.mismatch(&other)),
            }
        }
        self.broken = true;
        let text = "it has more connections than there can be";
        Err(ClientError::Channel(text.into()))
    }

    /// Gives a VM that was restored, and has not run yet, its connections again.
    pub fn take_over(&mut self, connections: &[(u32, OwnedFd)]) -> Result<(), ClientError> {
        for some in connections.chunks(MAX_FILES) {
            let ports = some.iter().map(|(port, _)| *port).collect();
            let sockets: Vec<_> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
            self.done(&Action::TakeOver { ports }, &sockets)?;
        }
        Ok(())
    }

    /// Remembers from now on which pages are written to, of a paused VM.
    pub fn log_writes(&mut self) -> Result<(), ClientError> {
        self.done(&Action::LogWrites, &[])
    }

    /// Writes to an empty file which pages those are, of a paused VM that was saved to this
    /// file. See [`RestoreFiles::changes`].
    pub fn changes(
        &mut self,
        memory: BorrowedFd<'_>,
        list: BorrowedFd<'_>,
    ) -> Result<(), ClientError> {
        self.done(&Action::Changes, &[memory, list])
    }

    /// Makes the first `length` bytes of `file` readable at `offset` of the image
    /// window. Both are multiples of 4096.
    pub fn map_image(
        &mut self,
        offset: u64,
        length: u64,
        file: BorrowedFd<'_>,
    ) -> Result<(), ClientError> {
        self.done(&Action::MapImage { offset, length }, &[file])
    }

    /// Takes back what was mapped at `offset`.
    pub fn unmap_image(&mut self, offset: u64) -> Result<(), ClientError> {
        self.done(&Action::UnmapImage { offset }, &[])
    }

    /// Starts the thread of a vCPU, so that the guest can bring it online. One that
    /// runs already is fine.
    pub fn online_cpu(&mut self, cpu: u8) -> Result<(), ClientError> {
        self.done(&Action::OnlineCpu { cpu }, &[])
    }

    /// Asks the guest to have this much memory beyond what it booted with: an even number
    /// of MiB, at most the spec's `hotplug_mib`. The guest does it by and by;
    /// [`crate::Event::MemoryResized`] says when it is done. A guest keeps what it cannot
    /// spare.
    pub fn resize_memory(&mut self, mib: u32) -> Result<(), ClientError> {
        self.done(&Action::ResizeMemory { mib }, &[])
    }

    /// Asks the guest to do without this much of its memory; 0: it may use all.
    pub fn inflate_balloon(&mut self, mib: u32) -> Result<(), ClientError> {
        self.done(&Action::InflateBalloon { mib }, &[])
    }

    /// Puts a file system daemon (virtiofsd) behind the VM's one file system device; see
    /// [`crate::connect_fs`]. Returns the device's name below /sys/bus/platform/devices of the
    /// guest. A VM that was restored, and had one when it was saved to leave, gets it again
    /// before it runs.
    ///
    /// The guest then writes that name to /sys/bus/platform/drivers/virtio-mmio/bind and
    /// mounts the tag [`crate::FS_TAG`] as virtiofs. When the daemon dies, the VMM says
    /// [`crate::Event::FsLost`] and the guest gets EIO from that file system from then on.
    /// One daemon at a time: a second one is refused until [`Self::detach_fs`].
    pub fn attach_fs(&mut self, backend: &Backend<OwnedFd>) -> Result<String, ClientError> {
        let files = backend.borrow().into_list();
        self.attached(&Action::AttachFs, &files)
            .map(|(_, device)| device)
    }

    /// Takes the file system daemon away. The guest must have unmounted the file system
    /// and unbound the device (`unbind` beside `bind`), else it gets I/O errors.
    pub fn detach_fs(&mut self) -> Result<(), ClientError> {
        self.done(&Action::DetachFs, &[])
    }

    /// Puts a block device or regular file behind a spare disk: its first `size` bytes,
    /// a multiple of 512. `file` is open for reading, and unless `read_only` for writing,
    /// without O_DIRECT. Returns the disk's slot and the device's name below
    /// /sys/bus/platform/devices of the guest.
    ///
    /// The guest then writes that name to /sys/bus/platform/drivers/virtio-mmio/bind and
    /// finds the disk in /sys/bus/platform/devices/NAME/virtio*/block/. Refused when all
    /// [`crate::SPARE_DISKS`] disks are taken. `slot`: that of a disk that the VM was saved
    /// with, which it gets again before it runs.
    pub fn attach_disk(
        &mut self,
        file: BorrowedFd<'_>,
        size: u64,
        read_only: bool,
        slot: Option<u8>,
    ) -> Result<(u8, String), ClientError> {
        let action = Action::AttachDisk {
            size,
            read_only,
            slot,
        };
        self.attached(&action, &[file])
    }

    /// Takes a disk back. What the guest wrote is in the file or the host's cache of the
    /// device; what it flushed is durable. The guest must have unbound the
    /// device (`unbind` beside `bind`); if it has not, it gets I/O errors and the slot
    /// stays taken until it has.
    pub fn detach_disk(&mut self, slot: u8) -> Result<(), ClientError> {
        self.done(&Action::DetachDisk { slot }, &[])
    }

    /// Counters since the start.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        match self.call(&Action::Stats, &[])?.0 {
            Reply::Stats(stats) => Ok(*stats),
            other => Err(self.mismatch(&other)),
        }
    }

    /// The newest of what the guest's kernel has logged, also after its end, until the
    /// process exits.
    pub fn kernel_log(&mut self) -> Result<String, ClientError> {
        match self.call(&Action::KernelLog, &[])?.0 {
            Reply::KernelLog(text) => Ok(text),
            other => Err(self.mismatch(&other)),
        }
    }

    /// As [`Self::kernel_log`], with another bound than the usual one, after which other
    /// calls are possible all the same.
    pub fn kernel_log_within(&mut self, time: Duration) -> Result<String, ClientError> {
        self.within(time, Self::kernel_log)
    }

    /// As [`Self::stats`], bounded as [`Self::kernel_log_within`].
    pub fn stats_within(&mut self, time: Duration) -> Result<Stats, ClientError> {
        self.within(time, Self::stats)
    }

    fn within<T>(
        &mut self,
        time: Duration,
        call: impl FnOnce(&mut Self) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let failed = |error: io::Error| ClientError::Channel(error.to_string());
        self.set_timeout(time).map_err(failed)?;
        self.hurried = true;
        let answer = call(self);
        self.hurried = false;
        self.set_timeout(ANSWER_TIMEOUT).map_err(failed)?;
        answer
    }

    /// Stops the VM; the process exits by itself. See [`Self::wait`].
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        self.done(&Action::Shutdown, &[])
    }

    /// A handle on the stream of [`crate::Event`]s, newline-delimited JSON; its end
    /// means that the VMM died. All handles share one stream.
    pub fn events(&self) -> io::Result<UnixStream> {
        self.events.try_clone()
    }

    /// The process id. Valid until [`Self::wait`] has returned.
    pub fn pid(&self) -> u32 {
        self.child.pid.unsigned_abs()
    }

    /// Readable when the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Kills the process; one that is dead already is fine.
    pub fn kill(&self) -> io::Result<()> {
        match sys::pidfd_signal(self.child.pidfd.as_fd(), libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Waits for the process's end and takes it off the process table, if it is a child
    /// of this one. Fine when someone else did that already.
    pub fn wait(&self) -> io::Result<()> {
        let pidfd = self.child.pidfd.as_fd();
        loop {
            let mut ended = [PollFd::new(pidfd, PollFlags::POLLIN)];
            match poll(&mut ended, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        reap(pidfd).map(|_| ())
    }

    /// An action that takes a slot.
    fn attached(
        &mut self,
        action: &Action,
        files: &[BorrowedFd<'_>],
    ) -> Result<(u8, String), ClientError> {
        match self.call(action, files)?.0 {
            Reply::Attached { slot, device } => Ok((slot, device)),
            other => Err(self.mismatch(&other)),
        }
    }

    /// An action whose answer is just "done".
    fn done(&mut self, action: &Action, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.call(action, files)?.0 {
            Reply::Done => Ok(()),
            other => Err(self.mismatch(&other)),
        }
    }

    fn call(
        &mut self,
        action: &Action,
        files: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        if self.broken {
            let text = "an earlier call did not finish: kill the VMM";
            return Err(ClientError::Channel(text.into()));
        }
        let answer = self
            .take_late_answer()
            .and_then(|()| self.control.send(action, files))
            .and_then(|()| self.control.receive::<Reply>());
        self.owes = matches!(answer, Err(ChannelError::Timeout));
        match answer {
            Ok((Reply::Failed(text), _)) => Err(ClientError::Refused(text)),
            Ok(answer) => Ok(answer),
            // The answer may still come: the next call takes it first.
            Err(ChannelError::Timeout) if self.hurried => Err(ClientError::Hangs),
            Err(error) => {
                self.broken = true;
                Err(match error {
                    ChannelError::Closed => ClientError::Died,
                    ChannelError::Timeout => ClientError::Hangs,
                    other => ClientError::Channel(other.to_string()),
                })
            }
        }
    }

    /// Waits for the answer to a hurried call that was given up.
    fn take_late_answer(&self) -> Result<(), ChannelError> {
        if self.owes {
            self.control.receive::<Reply>()?;
        }
        Ok(())
    }

    fn mismatch(&mut self, reply: &Reply) -> ClientError {
        self.broken = true;
        ClientError::Channel(format!("unexpected answer {reply:?}"))
    }
}

/// Takes a process that has ended off the process table; `false`: it has not ended. One
/// that is not a child of this one, or that someone else has taken off, has ended.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    loop {
        match waitid(Id::PIDFd(pidfd), how) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::StillAlive) => return Ok(false),
            Ok(_) | Err(Errno::ECHILD) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a TAP of this host can offload: what the NICs of its VMs are given.
pub fn offloads() -> Offloads {
    // The kernel stays the same, and a start asks for this several times.
    static OFFLOADS: OnceLock<Offloads> = OnceLock::new();
    *OFFLOADS.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        offloads_of(&release)
    })
}

fn offloads_of(release: &str) -> Offloads {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    match number().zip(number()) {
        Some(version) if version >= (6, 2) => Offloads::TcpAndUdp,
        _ => Offloads::Tcp,
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Nothing more can be done about a process that cannot be killed.
        if !self.parked && self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_segmentation_came_with_linux_6_2() {
        for (release, offloads) in [
            ("6.2.0-1-amd64", Offloads::TcpAndUdp),
            ("6.18.5", Offloads::TcpAndUdp),
            ("7.0", Offloads::TcpAndUdp),
            ("6.1.0-40-amd64", Offloads::Tcp),
            ("5.15", Offloads::Tcp),
            ("", Offloads::Tcp),
        ] {
            assert_eq!(offloads_of(release), offloads, "{release}");
        }
    }
}
