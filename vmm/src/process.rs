//! The VMM process: waits for its one VM, locks itself up, and looks after it.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use vmm_sys_util::epoll::{Epoll, EpollEvent, EventSet};

use crate::action::{Action, Event, Reply};
use crate::channel::{Channel, ChannelError};
use crate::devices::virtio::block::Window;
use crate::devices::virtio::fs::Backend;
use crate::devices::virtio::vsock::Vsock;
use crate::files::BootFiles;
use crate::jail::{Cell, JailError};
use crate::kernel_log;
use crate::memory::GuestRam;
use crate::poll::{add, again_if, lock, serve_kick, spawn, wait};
use crate::seccomp::{self, ThreadKind};
use crate::spec::VmSpec;
use crate::storage::{self, Storage};
use crate::sys;
use crate::vcpu::Stop;
use crate::vm::{Counters, CpuFactory, Peripherals, Vm};

/// Descriptors that the owner hands over.
const CONTROL_FD: i32 = 3;
const EVENTS_FD: i32 = 4;
/// Its network namespace, if it shall not make one.
const NETWORK_FD: i32 = 5;
/// How long the owner waits for a new vCPU before it is told that it failed.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(5);

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
    match wait_for_boot(&control) {
        Ok(Some((spec, files))) => start(&spec, files, cell, control, events),
        Ok(None) => Ok(()),
        // The owner has gone: nothing to do, nobody to tell.
        Err(ChannelError::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Answers the owner until it asks for a boot; `None`: it asked to stop.
fn wait_for_boot(control: &Channel) -> Result<Option<(VmSpec, BootFiles<OwnedFd>)>, ChannelError> {
    loop {
        let (action, files) = control.receive()?;
        let refusal = match action {
            Action::Boot(spec) => match check_boot(&spec, files) {
                Ok(files) => return Ok(Some((*spec, files))),
                Err(refusal) => refusal,
            },
            Action::Shutdown => {
                control.send(&Reply::Done, &[])?;
                return Ok(None);
            }
            _ => "there is no VM yet: send boot first".into(),
        };
        control.send(&Reply::Failed(refusal), &[])?;
    }
}

/// Checks spec and files of a boot.
fn check_boot(spec: &VmSpec, files: Vec<OwnedFd>) -> Result<BootFiles<OwnedFd>, String> {
    spec.validate().map_err(|error| error.to_string())?;
    let count = files.len();
    BootFiles::from_list(files, spec.net.is_some(), spec.console).ok_or_else(|| {
        format!("{count} descriptors came with boot, which is not what its spec needs: pass a TAP with net and a serial file with console")
    })
}

/// Builds the VM, locks the process up, starts its threads and looks after it.
fn start(
    spec: &VmSpec,
    files: BootFiles<OwnedFd>,
    cell: Cell,
    control: Channel,
    events: File,
) -> Result<(), ProcessError> {
    let vm = match Vm::build(spec, files) {
        Ok(vm) => vm,
        Err(error) => {
            control.send(&Reply::Failed(error.to_string()), &[])?;
            return Ok(());
        }
    };
    if let Err(error) = cell.lock(spec.uid, spec.gid) {
        control.send(&Reply::Failed(error.to_string()), &[])?;
        return Ok(());
    }
    let stop = Arc::new(Stop::new(sys::event()?));
    let Vm {
        boot_cpu,
        cpus,
        disks,
        spares,
        peripherals,
        window,
        counters,
        ram,
        kernel,
    } = vm;
    storage::serve_disks(disks, &stop)?;
    let parked = (1..spec.vcpus)
        .map(|index| park_cpu(index, &cpus, &stop))
        .collect::<io::Result<Vec<_>>>()?;
    // Never dropped: its thread may not close descriptors.
    let mut boot_cpu = ManuallyDrop::new(boot_cpu);
    spawn("vcpu0", ThreadKind::Vcpu, &stop, move || Ok(boot_cpu.run()))?;
    let storage = Storage::start(spares, &stop)?;
    let mut owner = Owner {
        control,
        events,
        window,
        storage,
        counters,
        ram,
        kernel,
        parked,
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

/// A thread that makes and runs its vCPU when told.
struct ParkedCpu {
    go: SyncSender<()>,
    made: Receiver<Result<(), String>>,
}

fn park_cpu(index: u8, cpus: &CpuFactory, stop: &Arc<Stop>) -> io::Result<ParkedCpu> {
    let (go, told) = sync_channel(1);
    let (answer, made) = sync_channel(1);
    let cpus = cpus.clone();
    spawn(
        &format!("vcpu{index}"),
        ThreadKind::ParkedVcpu,
        stop,
        move || {
            // The sender lives as long as the process.
            let _ = told.recv();
            let confined = |vcpu| seccomp::install(ThreadKind::Vcpu).map(|()| vcpu);
            let vcpu = cpus
                .make(index)
                .map_err(|error| error.to_string())
                .and_then(|vcpu| confined(vcpu).map_err(|error| error.to_string()));
            match vcpu.map(ManuallyDrop::new) {
                Ok(mut vcpu) => {
                    let _ = answer.send(Ok(()));
                    Ok(vcpu.run())
                }
                Err(error) => {
                    let _ = answer.send(Err(error.clone()));
                    Ok(format!("vcpu failed: {error}"))
                }
            }
        },
    )?;
    Ok(ParkedCpu { go, made })
}

/// The side of the process that talks to its owner.
struct Owner {
    control: Channel,
    events: File,
    window: Window,
    storage: Storage,
    counters: Counters,
    ram: GuestRam,
    kernel: File,
    parked: Vec<ParkedCpu>,
    stop: Arc<Stop>,
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
        let stop = action == Action::Shutdown;
        let reply = match self.carry_out(action, files) {
            Ok(reply) => reply,
            Err(refusal) => Reply::Failed(refusal),
        };
        self.control.send(&reply, &[])?;
        Ok(!stop)
    }

    fn carry_out(&mut self, action: Action, mut files: Vec<OwnedFd>) -> Result<Reply, String> {
        match action {
            Action::Boot(_) => return Err("a VM runs already: start another joey-vmm".into()),
            Action::MapImage { offset, length } => {
                let (Some(file), true) = (files.pop(), files.is_empty()) else {
                    return Err("map_image takes exactly one descriptor".into());
                };
                self.window
                    .map(offset, length, File::from(file))
                    .map_err(|error| error.to_string())?;
            }
            Action::UnmapImage { offset } => {
                self.window
                    .unmap(offset)
                    .map_err(|error| error.to_string())?;
            }
            Action::OnlineCpu { cpu } => self.online(cpu)?,
            Action::AttachFs => {
                let backend = Backend::from_list(files)
                    .ok_or("attach_fs takes the descriptors of a file system daemon")?;
                return self.storage.attach_fs(backend);
            }
            Action::DetachFs => self.storage.detach_fs()?,
            Action::AttachDisk { size, read_only } => {
                let (Some(file), true) = (files.pop(), files.is_empty()) else {
                    return Err("attach_disk takes exactly one descriptor".into());
                };
                let file = File::from(file);
                return self.storage.attach_disk(file, size, read_only);
            }
            Action::DetachDisk { slot } => self.storage.detach_disk(slot)?,
            Action::Stats => return Ok(Reply::Stats(Box::new(self.counters.stats()))),
            Action::KernelLog => {
                let log = kernel_log::read(self.ram, &self.kernel);
                return Ok(Reply::KernelLog(log.map_err(|error| error.to_string())?));
            }
            Action::Shutdown => {}
        }
        Ok(Reply::Done)
    }

    /// Starts the thread of a vCPU; one that runs already is fine.
    fn online(&mut self, cpu: u8) -> Result<(), String> {
        let index = usize::from(cpu).checked_sub(1);
        let parked = index.and_then(|index| self.parked.get(index));
        let Some(parked) = parked else {
            let most = self.parked.len();
            return Err(format!("there is no vCPU {cpu} to start: 1 to {most} are"));
        };
        if parked.go.try_send(()).is_err() {
            return Ok(());
        }
        match parked.made.recv_timeout(ONLINE_TIMEOUT) {
            Ok(result) => result,
            // It was made by an earlier action.
            Err(_) => Err(format!("vCPU {cpu} did not start")),
        }
    }
}

/// What the devices thread waits for.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Token {
    Control,
    Stop,
    NetKick,
    Tap,
    VsockKick,
    Sockets,
    RngKick,
    FsLost,
}

const TOKENS: [Token; 8] = [
    Token::Control,
    Token::Stop,
    Token::NetKick,
    Token::Tap,
    Token::VsockKick,
    Token::Sockets,
    Token::RngKick,
    Token::FsLost,
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
        ] {
            add(&epoll, fd, EventSet::IN, token as u64)?;
        }
        if let Some(tap) = lock(&net.device).tap() {
            // Once per packet that arrives, also while the guest has no room for it.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            add(&epoll, tap.as_raw_fd(), events, Token::Tap as u64)?;
        }
        Ok(Self { epoll })
    }

    fn run(&self, owner: &mut Owner, peripherals: &Peripherals) -> Result<(), ProcessError> {
        let Peripherals { net, vsock, rng } = peripherals;
        let mut refill: Option<Instant> = None;
        let mut end: Option<Instant> = None;
        loop {
            let mut events = [EpollEvent::default(); TOKENS.len()];
            let next = refill.into_iter().chain(end).min();
            let count = wait(&self.epoll, &mut events, next)?;
            for event in &events[..count] {
                match TOKENS[event.data() as usize % TOKENS.len()] {
                    Token::Control => {
                        if !owner.serve()? {
                            return Ok(());
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
                    Token::RngKick => {
                        let _ = rng.kick.read();
                        if refill.is_none() {
                            refill = deadline(lock(&rng.device).process());
                        }
                    }
                }
            }
            if end.is_some_and(|time| time <= Instant::now()) {
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
