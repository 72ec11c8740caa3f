//! The VMM process: waits for its one VM, locks itself up, and looks after it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use vmm_sys_util::epoll::{Epoll, EpollEvent, EventSet};

use crate::action::{Action, Event, Reply};
use crate::channel::{Channel, ChannelError};
use crate::cpus::{CpuError, Cpus};
use crate::devices::virtio::block::Window;
use crate::devices::virtio::fs::Backend;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::Vsock;
use crate::files::{BootFiles, MAX_FILES, RestoreFiles, RunFiles};
use crate::jail::{Cell, JailError};
use crate::kernel_log;
use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::poll::{add, again_if, lock, remove, serve_kick, wait};
use crate::resize::Memory;
use crate::seccomp::{self, ThreadKind};
use crate::spec::VmSpec;
use crate::storage::{self, Storage};
use crate::sys;
use crate::vcpu::Stop;
use crate::vm::{Counters, Peripherals, Vm, VmError};

/// Descriptors that the owner hands over.
const CONTROL_FD: i32 = 3;
const EVENTS_FD: i32 = 4;
/// Its network namespace, if it shall not make one.
const NETWORK_FD: i32 = 6;
/// How long the process of a guest that is gone answers its owner.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the process cannot do its work at all.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It was not started by the client library.
    #[error(
        "descriptor {0} is not open: joey-vmm is started by containerd-shim-joey-v2, not by hand"
    )]
    NotInherited(i32),
    /// The control socket failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// An epoll or thread call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The process cannot be locked up.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The same.
    #[error(transparent)]
    Filter(#[from] seccomp::FilterError),
    /// A vCPU's thread cannot be started.
    #[error(transparent)]
    Cpu(#[from] CpuError),
}

/// Runs the process until its VM or its owner is gone.
pub fn run() -> Result<(), ProcessError> {
    sys::single_malloc_arena();
    // The client starts us with all signals blocked.
    SigSet::empty()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(io::Error::from)?;
    let inherited = |fd| sys::inherited(fd).map_err(|_| ProcessError::NotInherited(fd));
    let control = Channel::new(inherited(CONTROL_FD)?);
    let events = File::from(inherited(EVENTS_FD)?);
    let cell = Cell::enter(sys::inherited(NETWORK_FD).ok())?;
    match wait_for_vm(&control) {
        Ok(Some((spec, vm))) => start(spec, vm, cell, control, events),
        Ok(None) => Ok(()),
        // The owner has gone: nothing to do, nobody to tell.
        Err(ChannelError::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Answers the owner until there is a VM; `None`: it asked to stop, or it cannot be had.
fn wait_for_vm(control: &Channel) -> Result<Option<(VmSpec, Vm)>, ChannelError> {
    loop {
        let (action, files) = control.receive()?;
        let refusal = match action {
            Action::Boot(spec) => match check_boot(&spec, files) {
                Ok(files) => return built(Vm::boot(&spec, files), *spec, control),
                Err(refusal) => refusal,
            },
            Action::Restore { spec, ahead } => match check_restore(&spec, files) {
                Ok(files) => return built(Vm::restore(&spec, files, ahead), *spec, control),
                Err(refusal) => refusal,
            },
            Action::Shutdown => {
                control.send(&Reply::Done, &[])?;
                return Ok(None);
            }
            _ => "there is no VM yet: send boot or restore first".into(),
        };
        control.send(&Reply::Failed(refusal), &[])?;
    }
}

/// Checks spec and files of a boot.
fn check_boot(spec: &VmSpec, files: Vec<OwnedFd>) -> Result<BootFiles<OwnedFd>, String> {
    spec.validate().map_err(|error| error.to_string())?;
    let count = files.len();
    BootFiles::from_list(files, spec.console).ok_or_else(|| {
        format!("{count} descriptors came with boot, which is not what its spec needs: pass a serial file with console")
    })
}

/// Checks spec and files of a restore.
fn check_restore(spec: &VmSpec, files: Vec<OwnedFd>) -> Result<RestoreFiles<OwnedFd>, String> {
    spec.validate().map_err(|error| error.to_string())?;
    if spec.console {
        return Err("a VM with a console cannot be restored: boot it".into());
    }
    let count = files.len();
    RestoreFiles::from_list(files)
        .ok_or_else(|| format!("{count} descriptors came with restore, which takes 4 or 5"))
}

/// Tells the owner of a VM that cannot be built.
fn built(
    result: Result<Vm, VmError>,
    spec: VmSpec,
    control: &Channel,
) -> Result<Option<(VmSpec, Vm)>, ChannelError> {
    match result {
        Ok(vm) => Ok(Some((spec, vm))),
        Err(error) => {
            control.send(&Reply::Failed(error.to_string()), &[])?;
            Ok(None)
        }
    }
}

/// Locks the process up, starts the VM's threads and looks after it.
fn start(
    spec: VmSpec,
    vm: Vm,
    cell: Cell,
    control: Channel,
    events: File,
) -> Result<(), ProcessError> {
    if let Err(error) = cell.lock(spec.uid, spec.gid) {
        control.send(&Reply::Failed(error.to_string()), &[])?;
        return Ok(());
    }
    let stop = Arc::new(Stop::new(sys::event()?));
    sys::prepare_kicks()?;
    let Vm {
        made,
        cpus: factory,
        disks,
        spares,
        peripherals,
        memory,
        window,
        counters,
        ram,
        kernel,
    } = vm;
    let machine = Machine {
        cpus: Cpus::start(made, spec.vcpus, &factory, &stop)?,
        spec,
        factory,
        scratch: Arc::clone(&disks.scratch.device),
        net: Arc::clone(&peripherals.net.device),
        vsock: Arc::clone(&peripherals.vsock.device),
        fs: Arc::clone(&spares.fs.device),
        balloon: Arc::clone(&memory.balloon.device),
        mem: Arc::clone(&memory.mem.device),
        ran: false,
        left: false,
    };
    storage::serve_disks(disks, &stop)?;
    let storage = Storage::start(spares, &stop)?;
    let memory = Memory::start(memory, &stop)?;
    let mut owner = Owner {
        control,
        events,
        window,
        storage,
        memory,
        counters,
        ram,
        kernel,
        machine,
        parked: None,
        stop,
    };
    let epoll = Loop::new(&owner, &peripherals)?;
    seccomp::install(ThreadKind::Devices)?;
    owner.control.send(&Reply::Done, &[])?;
    match epoll.run(&mut owner, &peripherals) {
        Ok(()) => sys::exit_now(0),
        Err(error) => {
            eprintln!("joey-vmm: {error}");
            sys::exit_now(1)
        }
    }
}

/// The side of the process that talks to its owner.
struct Owner {
    control: Channel,
    events: File,
    window: Window,
    storage: Storage,
    memory: Memory,
    counters: Counters,
    ram: GuestRam,
    kernel: File,
    machine: Machine,
    /// While it waits for another owner.
    parked: Option<Parked>,
    stop: Arc<Stop>,
}

/// A process that waits for another owner.
struct Parked {
    listener: OwnedFd,
    until: Instant,
}

impl Owner {
    /// Says something unasked. The owner may have gone; the control socket tells.
    fn say(&mut self, event: &Event) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let _ = self.events.write_all(&line);
        }
    }

    /// Carries out one action; `false`: the process shall end.
    fn serve(&mut self) -> Result<bool, ChannelError> {
        let (action, files) = match self.control.receive() {
            Ok(message) => message,
            Err(ChannelError::Closed) => return Ok(false),
            Err(ChannelError::Malformed(error)) => {
                let refusal = Reply::Failed(format!("the action cannot be read: {error}"));
                self.control.send(&refusal, &[])?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        if let Action::Connections { from } = action {
            self.hand_over(from)?;
            return Ok(true);
        }
        let stop = action == Action::Shutdown;
        let reply = match self.carry_out(action, files) {
            Ok(reply) => reply,
            Err(refusal) => Reply::Failed(refusal),
        };
        self.control.send(&reply, &[])?;
        Ok(!stop)
    }

    /// Sends the sockets of connections, without giving them up.
    fn hand_over(&self, from: u32) -> Result<(), ChannelError> {
        if !self.machine.left {
            let refusal = "the VM has not been saved to leave: its connections are its own";
            return self.control.send(&Reply::Failed(refusal.into()), &[]);
        }
        let vsock = lock(&self.machine.vsock);
        let connections = vsock.connections(from).take(MAX_FILES);
        let (ports, sockets): (Vec<_>, Vec<_>) = connections.unzip();
        self.control.send(&Reply::Connections(ports), &sockets)
    }

    fn carry_out(&mut self, action: Action, files: Vec<OwnedFd>) -> Result<Reply, String> {
        if self.machine.left && action != Action::Shutdown {
            return Err("the VM was saved to go on elsewhere: end this joey-vmm".into());
        }
        match action {
            Action::Boot(_) | Action::Restore { .. } => {
                return Err("there is a VM already: start another joey-vmm".into());
            }
            Action::Park { seconds } => {
                let listener =
                    only(files).ok_or("park takes exactly one descriptor, a listening socket")?;
                if self.machine.ran {
                    return Err("the VM runs: it has its owner".into());
                }
                let until = Instant::now() + Duration::from_secs(seconds.into());
                self.parked = Some(Parked { listener, until });
            }
            Action::Run {
                scratch,
                tap,
                adopt,
            } => {
                let mut files = RunFiles::from_list(files, tap, adopt).ok_or(
                    "run takes scratch, the vsock listener, and the TAP, events and log it names",
                )?;
                if let Some(outlets) = files.outlets.take() {
                    self.events = File::from(outlets.events);
                    sys::replace_stderr(outlets.log.as_fd())
                        .map_err(|error| format!("standard error: {error}"))?;
                }
                self.machine.run(scratch, files)?;
            }
            Action::Pause => self.machine.pause()?,
            Action::Resume => self.machine.resume()?,
            Action::Save { leave } => {
                let Ok([memory, state]) = <[OwnedFd; 2]>::try_from(files) else {
                    return Err("save takes the files of memory and state".into());
                };
                if leave {
                    self.storage.settle()?;
                } else {
                    self.storage.check_detached()?;
                }
                let saved = self.machine.save(self.ram, memory, state, leave);
                if !self.machine.left {
                    self.storage.go_on();
                }
                saved?;
            }
            Action::TakeOver { ports } => self.machine.take_over(&ports, files)?,
            Action::LogWrites => self.machine.log_writes(self.ram)?,
            Action::Changes => {
                let Ok([memory, list]) = <[OwnedFd; 2]>::try_from(files) else {
                    return Err("changes takes the file of memory and one for the list".into());
                };
                self.machine.changes(self.ram, memory, list)?;
            }
            Action::MapImage { offset, length } => {
                let file = only(files).ok_or("map_image takes exactly one descriptor")?;
                self.window
                    .map(offset, length, File::from(file))
                    .map_err(|error| error.to_string())?;
            }
            Action::UnmapImage { offset } => {
                self.window
                    .unmap(offset)
                    .map_err(|error| error.to_string())?;
            }
            Action::OnlineCpu { cpu } => self.machine.online(cpu)?,
            Action::ResizeMemory { mib } => self.memory.resize(mib)?,
            Action::InflateBalloon { mib } => self.memory.inflate(mib)?,
            Action::AttachFs => {
                let backend = Backend::from_list(files)
                    .ok_or("attach_fs takes the descriptors of a file system daemon")?;
                return self.storage.attach_fs(backend);
            }
            Action::DetachFs => self.storage.detach_fs()?,
            Action::AttachDisk {
                size,
                read_only,
                slot,
            } => {
                let file = only(files).ok_or("attach_disk takes exactly one descriptor")?;
                let file = File::from(file);
                return self.storage.attach_disk(file, size, read_only, slot);
            }
            Action::DetachDisk { slot } => self.storage.detach_disk(slot)?,
            Action::Stats => {
                let mut stats = self.counters.stats();
                stats.vsock.open = lock(&self.machine.vsock).open();
                return Ok(Reply::Stats(Box::new(stats)));
            }
            Action::KernelLog => {
                let log = kernel_log::read(self.ram, &self.kernel);
                return Ok(Reply::KernelLog(log.map_err(|error| error.to_string())?));
            }
            // Answered before, with descriptors.
            Action::Connections { .. } | Action::Shutdown => {}
        }
        Ok(Reply::Done)
    }
}

/// The descriptor of an action that carries one.
fn only(files: Vec<OwnedFd>) -> Option<OwnedFd> {
    let [file] = <[OwnedFd; 1]>::try_from(files).ok()?;
    Some(file)
}

/// What the devices thread waits for.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Token {
    Control,
    Adopter,
    Stop,
    NetKick,
    Tap,
    VsockKick,
    Sockets,
    RngKick,
    FsLost,
    MemoryReached,
}

const TOKENS: [Token; 10] = [
    Token::Control,
    Token::Adopter,
    Token::Stop,
    Token::NetKick,
    Token::Tap,
    Token::VsockKick,
    Token::Sockets,
    Token::RngKick,
    Token::FsLost,
    Token::MemoryReached,
];

/// The loop of the devices thread.
struct Loop {
    epoll: Epoll,
}

impl Loop {
    fn new(owner: &Owner, peripherals: &Peripherals) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let Peripherals { net, vsock, rng } = peripherals;
        let vsock_device = lock(&vsock.device);
        for (fd, token) in [
            (owner.control.as_fd().as_raw_fd(), Token::Control),
            (owner.stop.event.as_raw_fd(), Token::Stop),
            (net.kick.as_raw_fd(), Token::NetKick),
            (vsock.kick.as_raw_fd(), Token::VsockKick),
            (vsock_device.sockets().as_raw_fd(), Token::Sockets),
            (rng.kick.as_raw_fd(), Token::RngKick),
            (owner.storage.fs_lost(), Token::FsLost),
            (owner.memory.reached(), Token::MemoryReached),
        ] {
            add(&epoll, fd, EventSet::IN, token as u64)?;
        }
        Ok(Self { epoll })
    }

    /// Waits for the NIC's packets, once it has a TAP.
    fn watch_tap(&self, net: &Mutex<Net>) -> io::Result<()> {
        match lock(net).tap() {
            Some(tap) => {
                // Once per packet that arrives, also while the guest has no room for it.
                let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
                add(&self.epoll, tap.as_raw_fd(), events, Token::Tap as u64)
            }
            None => Ok(()),
        }
    }

    fn run(&self, owner: &mut Owner, peripherals: &Peripherals) -> Result<(), ProcessError> {
        let Peripherals { net, vsock, rng } = peripherals;
        let mut refill: Option<Instant> = None;
        let mut end: Option<Instant> = None;
        loop {
            let mut events = [EpollEvent::default(); TOKENS.len()];
            let parked = owner.parked.as_ref().map(|parked| parked.until);
            let next = refill.into_iter().chain(end).chain(parked).min();
            let count = wait(&self.epoll, &mut events, next)?;
            for event in &events[..count] {
                match TOKENS[event.data() as usize % TOKENS.len()] {
                    Token::Control => {
                        let ran = owner.machine.ran;
                        if !owner.serve()? {
                            return Ok(());
                        }
                        if owner.machine.ran && !ran {
                            self.watch_tap(&net.device)?;
                        }
                        if let Some(parked) = &owner.parked {
                            // The old owner may close its end: that is no end of ours.
                            let listener = parked.listener.as_raw_fd();
                            remove(&self.epoll, owner.control.as_fd().as_raw_fd())?;
                            add(&self.epoll, listener, EventSet::IN, Token::Adopter as u64)?;
                        }
                    }
                    Token::Adopter => {
                        if let Some(parked) = owner.parked.take() {
                            owner.control = Channel::accept(parked.listener.as_fd())?;
                            let control = owner.control.as_fd().as_raw_fd();
                            add(&self.epoll, control, EventSet::IN, Token::Control as u64)?;
                        }
                    }
                    Token::Stop => {
                        // Only the event's reset matters: it is told once.
                        let _ = owner.stop.event.read();
                        if end.is_none() {
                            let reason = owner.stop.reason();
                            owner.say(&Event::Stopped { reason });
                            end = deadline(Some(FAREWELL));
                        }
                    }
                    Token::NetKick => serve_kick(net, |net| net.process()),
                    Token::Tap => again_if(lock(&net.device).tap_readable(), &net.kick),
                    Token::VsockKick => {
                        serve_kick(vsock, Vsock::process_queues);
                        if lock(&vsock.device).take_ready() {
                            owner.say(&Event::Ready);
                        }
                    }
                    Token::Sockets => {
                        again_if(lock(&vsock.device).process_sockets(), &vsock.kick);
                        if lock(&vsock.device).take_ready() {
                            owner.say(&Event::Ready);
                        }
                    }
                    Token::FsLost => {
                        if let Some(reason) = owner.storage.take_fs_loss() {
                            owner.say(&Event::FsLost { reason });
                        }
                    }
                    Token::MemoryReached => {
                        owner.memory.take_reached();
                        let plugged = owner.counters.stats().mem.plugged_bytes >> 20;
                        // A spec's MiB have 32 bits.
                        let mib = plugged as u32;
                        owner.say(&Event::MemoryResized { mib });
                    }
                    Token::RngKick => {
                        let _ = rng.kick.read();
                        if refill.is_none() {
                            refill = deadline(lock(&rng.device).process());
                        }
                    }
                }
            }
            // Nobody may have come to a parked process by now.
            let parked = owner.parked.as_ref().map(|parked| parked.until);
            if end.or(parked).is_some_and(|time| time <= Instant::now()) {
                return Ok(());
            }
            if refill.is_some_and(|time| time <= Instant::now()) {
                refill = deadline(lock(&rng.device).refill());
            }
        }
    }
}

fn deadline(wait: Option<Duration>) -> Option<Instant> {
    wait.map(|wait| Instant::now() + wait)
}
