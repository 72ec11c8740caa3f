//! The threads of disks and of the file system device, and how volumes are put behind
//! them while the VM runs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use vmm_sys_util::epoll::{Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::action::Reply;
use crate::commands::{Answer, Commands, Incoming, PATIENCE, commands};
use crate::devices::virtio::block::{AttachError, Block, Disk, FileDisk};
use crate::devices::virtio::fs::{Backend, Fs};
use crate::poll::{add, again_if, lock, remove, serve_kick, spawn, wait};
use crate::seccomp::ThreadKind;
use crate::slots::{FS, SPARE_DISKS, platform_device};
use crate::vcpu::Stop;
use crate::vm::{Disks, Slot, Spares};

/// Starts the thread of window and scratch: what it does may block for long.
pub fn serve_disks(disks: Disks, stop: &Arc<Stop>) -> io::Result<()> {
    let epoll = Epoll::new()?;
    let slots = [disks.window, disks.scratch];
    for (token, slot) in (0..).zip(&slots) {
        add(&epoll, slot.kick.as_raw_fd(), EventSet::IN, token)?;
    }
    spawn("disk", ThreadKind::Disk, stop, move || {
        loop {
            let mut events = [EpollEvent::default(); 2];
            let count = wait(&epoll, &mut events, None)?;
            for event in &events[..count] {
                serve_kick(&slots[event.data() as usize & 1], Block::process);
            }
        }
    })
}

/// The owner's side of what is attached to a running VM.
pub struct Storage {
    fs: Arc<Mutex<Fs>>,
    fs_epoll: Arc<Epoll>,
    fs_kick: EventFd,
    fs_lost: EventFd,
    disks: Vec<Arc<Mutex<Block>>>,
    volumes: Commands<Command>,
}

impl Storage {
    /// Starts the threads of the file system device and of the volumes' disks. They are
    /// apart from the other disks' and from each other: a volume whose storage hangs must
    /// not hold up what has nothing to do with it.
    pub fn start(spares: Spares, stop: &Arc<Stop>) -> io::Result<Self> {
        let Spares { fs, fs_lost, disks } = spares;
        let fs_epoll = Arc::new(Epoll::new()?);
        add(&fs_epoll, fs.kick.as_raw_fd(), EventSet::IN, FsToken::KICK)?;
        let (device, epoll) = (Arc::clone(&fs.device), Arc::clone(&fs_epoll));
        let fs_kick = fs.kick.try_clone()?;
        spawn("fs", ThreadKind::Fs, stop, move || serve_fs(&epoll, &fs))?;

        let devices = disks.iter().map(|slot| Arc::clone(&slot.device)).collect();
        let (commands, incoming) = commands()?;
        let volumes = Volumes {
            epoll: Epoll::new()?,
            disks,
            incoming,
        };
        volumes.listen()?;
        spawn("volumes", ThreadKind::Volumes, stop, move || {
            volumes.serve()
        })?;
        Ok(Self {
            fs: device,
            fs_epoll,
            fs_kick,
            fs_lost,
            disks: devices,
            volumes: commands,
        })
    }

    /// Readable when the file system daemon was lost.
    pub fn fs_lost(&self) -> RawFd {
        self.fs_lost.as_raw_fd()
    }

    /// Why it was lost, once.
    pub fn take_fs_loss(&self) -> Option<String> {
        // Only the counter's reset matters, not its value.
        let _ = self.fs_lost.read();
        lock(&self.fs).take_loss()
    }

    /// Puts a daemon behind the file system device.
    pub fn attach_fs(&self, backend: Backend<OwnedFd>) -> Result<Reply, String> {
        let mut fs = lock(&self.fs);
        let generation = fs.attach(backend).map_err(|error| error.to_string())?;
        let waited = self.wait_for(&fs, generation);
        if let Err(error) = waited {
            fs.detach();
            return Err(format!("cannot wait for the file system daemon: {error}"));
        }
        Ok(Reply::Attached {
            slot: 0,
            device: platform_device(FS),
        })
    }

    /// Has the thread of the file system device wait for the daemon.
    fn wait_for(&self, fs: &Fs, generation: u64) -> io::Result<()> {
        let Some((socket, calls)) = fs.events() else {
            return Ok(());
        };
        // What the daemon says is never read, so that its end is told once.
        let end = EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let epoll = &self.fs_epoll;
        add(
            epoll,
            socket,
            end,
            FsToken::END | generation << FsToken::BITS,
        )?;
        for (queue, call) in (0..).zip(calls) {
            let token = queue | generation << FsToken::BITS;
            add(epoll, call, EventSet::IN, token)?;
        }
        Ok(())
    }

    /// Takes the daemon away.
    pub fn detach_fs(&self) -> Result<(), String> {
        let mut fs = lock(&self.fs);
        let Some((socket, calls)) = fs.events() else {
            return Err("the sandbox has no file system daemon".into());
        };
        for fd in [socket].into_iter().chain(calls) {
            // The daemon holds the same events, so closing ours would not be enough.
            remove(&self.fs_epoll, fd).map_err(|error| format!("epoll: {error}"))?;
        }
        fs.detach();
        Ok(())
    }

    /// Puts a file or block device behind this spare disk, or behind the first that is free.
    pub fn attach_disk(
        &self,
        file: File,
        size: u64,
        read_only: bool,
        slot: Option<u8>,
    ) -> Result<Reply, String> {
        let disk = FileDisk::volume(file, size, read_only).map_err(|error| error.to_string())?;
        let slot = self.ask(|answer| Command::Attach(Box::new(disk), slot, answer))?;
        Ok(Reply::Attached {
            slot,
            device: platform_device(FS + 1 + usize::from(slot)),
        })
    }

    /// Has no request of the guest half done, and none begun, until [`Self::go_on`].
    pub fn settle(&self) -> Result<(), String> {
        // A thread that is stuck in a disk has it locked.
        self.ask(Command::Look)?;
        let (sender, idle) = sync_channel(1);
        {
            let mut fs = lock(&self.fs);
            if fs.is_lost() {
                return Err("the file system daemon is lost: the VM cannot be saved".into());
            }
            fs.hold(sender);
        }
        idle.recv_timeout(PATIENCE).map_err(|_| {
            self.go_on();
            "the file system daemon does not answer: a file system of the host may hang, try later"
                .into()
        })
    }

    /// Begins with the guest's requests again.
    pub fn go_on(&self) {
        lock(&self.fs).release();
        again_if(true, &self.fs_kick);
    }

    /// Refuses a VM whose volumes a snapshot that others run too would lose.
    pub fn check_detached(&self) -> Result<(), String> {
        if lock(&self.fs).attached() {
            return Err(
                "directories of the host are shared with the guest: it can be saved to leave only"
                    .into(),
            );
        }
        if self.disks.iter().any(|disk| lock(disk).attached()) {
            return Err(
                "disks of volumes are attached to the guest: it can be saved to leave only".into(),
            );
        }
        Ok(())
    }

    /// Takes a volume back.
    pub fn detach_disk(&self, slot: u8) -> Result<(), String> {
        self.ask(|answer| Command::Detach(slot, answer))
    }

    /// Has the thread of the volumes do something.
    fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, String> {
        let stuck = "a volume's disk hangs, so that no other can be attached or detached now";
        self.volumes.ask(stuck, command)
    }
}

/// Asked of the thread of the volumes: it may be in the middle of a disk's work, and it
/// opens and closes what may block.
enum Command {
    Attach(Box<dyn Disk>, Option<u8>, Answer<u8>),
    Detach(u8, Answer<()>),
    /// Nothing: just an answer.
    Look(Answer<()>),
}

/// The thread of the volumes' disks.
struct Volumes {
    epoll: Epoll,
    disks: Vec<Slot<Block>>,
    incoming: Incoming<Command>,
}

impl Volumes {
    /// The token of commands; smaller ones are the disks'.
    const CALL: u64 = SPARE_DISKS as u64;

    fn listen(&self) -> io::Result<()> {
        for (token, slot) in (0..).zip(&self.disks) {
            add(&self.epoll, slot.kick.as_raw_fd(), EventSet::IN, token)?;
        }
        add(
            &self.epoll,
            self.incoming.call.as_raw_fd(),
            EventSet::IN,
            Self::CALL,
        )
    }

    fn serve(self) -> io::Result<String> {
        loop {
            let mut events = [EpollEvent::default(); SPARE_DISKS as usize + 1];
            let count = wait(&self.epoll, &mut events, None)?;
            for event in &events[..count] {
                match self.disks.get(event.data() as usize) {
                    Some(disk) => serve_kick(disk, Block::process),
                    None => self.obey(),
                }
            }
        }
    }

    fn obey(&self) {
        for command in self.incoming.take() {
            match command {
                Command::Attach(disk, slot, answer) => {
                    let result = self.attach(disk, slot);
                    let slot = result.clone();
                    if let (Err(_), Ok(slot)) = (answer.send(result), slot) {
                        // Who asked has given up.
                        drop(self.detach(slot));
                    }
                }
                Command::Detach(slot, answer) => {
                    // As above; what was asked for is done all the same.
                    let _ = answer.send(self.detach(slot).map(drop));
                }
                Command::Look(answer) => {
                    let _ = answer.send(Ok(()));
                }
            }
        }
    }

    /// Takes this slot, or the first that is free.
    fn attach(&self, disk: Box<dyn Disk>, wanted: Option<u8>) -> Result<u8, String> {
        let mut refusal = None;
        let slots = (0..).zip(&self.disks);
        for (index, slot) in slots.filter(|(index, _)| wanted.is_none_or(|it| it == *index)) {
            let mut device = lock(&slot.device);
            match device.check_free() {
                Ok(()) => {
                    let attached = device.attach(disk).map_err(|error| error.to_string());
                    return attached.map(|()| index);
                }
                Err(AttachError::Taken) if wanted.is_none() => {}
                Err(error) => refusal = Some(error),
            }
        }
        Err(match refusal {
            Some(error) => error.to_string(),
            None => {
                format!("the sandbox has {SPARE_DISKS} volumes that are disks, which is the most")
            }
        })
    }

    /// Takes a disk away; it is closed by dropping it.
    fn detach(&self, slot: u8) -> Result<Box<dyn Disk>, String> {
        let device = self.disks.get(usize::from(slot));
        device
            .and_then(|device| lock(&device.device).detach())
            .ok_or_else(|| format!("there is no disk in slot {slot}"))
    }
}

/// What the thread of the file system device waits for. The daemon's tokens have its
/// generation above these bits.
struct FsToken;

impl FsToken {
    /// 0 and 1: the daemon calls on that queue.
    const END: u64 = 2;
    const KICK: u64 = 3;
    const BITS: u32 = 2;
}

/// The thread of the file system device. It never blocks.
fn serve_fs(epoll: &Epoll, fs: &Slot<Fs>) -> io::Result<String> {
    loop {
        let mut events = [EpollEvent::default(); 4];
        let count = wait(epoll, &mut events, None)?;
        for event in &events[..count] {
            let generation = event.data() >> FsToken::BITS;
            match event.data() & ((1 << FsToken::BITS) - 1) {
                FsToken::KICK => serve_kick(fs, Fs::process),
                FsToken::END => again_if(lock(&fs.device).hung_up(generation), &fs.kick),
                queue => {
                    let more = lock(&fs.device).called(generation, queue as usize);
                    again_if(more, &fs.kick);
                }
            }
        }
    }
}
