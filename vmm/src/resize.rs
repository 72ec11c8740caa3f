//! The thread of the memory devices, and how guest memory is resized while the VM runs.
//! It is apart from the other devices: giving much memory back to the host takes a while.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::commands::{Answer, Commands, Incoming, commands};
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::mem::Mem;
use crate::kvm::MemorySlots;
use crate::memory::PAGE;
use crate::poll::{add, again_if, lock, serve_kick, spawn, wait};
use crate::seccomp::ThreadKind;
use crate::sys;
use crate::vcpu::Stop;
use crate::vm::Slot;

/// What guest memory is resized by.
pub struct MemoryDevices {
    /// The balloon.
    pub balloon: Slot<Balloon>,
    /// What memory is plugged by.
    pub mem: Slot<Mem>,
    /// Where plugged memory becomes the guest's.
    pub slots: MemorySlots,
}

/// The owner's side.
pub struct Memory {
    commands: Commands<(Command, Answer<()>)>,
    reached: EventFd,
}

/// Asked of the thread.
enum Command {
    /// Bytes beyond what the guest booted with.
    Resize(u64),
    /// Pages in the balloon.
    Inflate(u32),
}

impl Memory {
    /// Starts the thread.
    pub fn start(devices: MemoryDevices, stop: &Arc<Stop>) -> io::Result<Self> {
        let (commands, incoming) = commands()?;
        let reached = sys::event()?;
        let thread = Thread {
            epoll: Epoll::new()?,
            devices,
            reached: reached.try_clone()?,
            incoming,
        };
        thread.listen()?;
        spawn("memory", ThreadKind::Memory, stop, move || thread.serve())?;
        Ok(Self { commands, reached })
    }

    /// Readable when the guest has the memory that was asked for last.
    pub fn reached(&self) -> RawFd {
        self.reached.as_raw_fd()
    }

    /// Forgets that it was readable.
    pub fn take_reached(&self) {
        // Only the counter's reset matters, not its value.
        let _ = self.reached.read();
    }

    /// Asks the guest to have this much beyond what it booted with.
    pub fn resize(&self, mib: u32) -> Result<(), String> {
        self.ask(Command::Resize(u64::from(mib) << 20))
    }

    /// Asks the guest to do without this much.
    pub fn inflate(&self, mib: u32) -> Result<(), String> {
        let pages = (u64::from(mib) << 20) / PAGE;
        // The device's number has 32 bits: 16 TiB.
        self.ask(Command::Inflate(u32::try_from(pages).unwrap_or(u32::MAX)))
    }

    fn ask(&self, command: Command) -> Result<(), String> {
        let busy = "the VM gives memory back just now: ask again";
        self.commands.ask(busy, |answer| (command, answer))
    }
}

/// What the thread waits for.
struct Token;

impl Token {
    const BALLOON: u64 = 0;
    const MEM: u64 = 1;
    const CALL: u64 = 2;
}

/// The thread.
struct Thread {
    epoll: Epoll,
    devices: MemoryDevices,
    reached: EventFd,
    incoming: Incoming<(Command, Answer<()>)>,
}

impl Thread {
    fn listen(&self) -> io::Result<()> {
        let MemoryDevices { balloon, mem, .. } = &self.devices;
        for (fd, token) in [
            (balloon.kick.as_raw_fd(), Token::BALLOON),
            (mem.kick.as_raw_fd(), Token::MEM),
            (self.incoming.call.as_raw_fd(), Token::CALL),
        ] {
            add(&self.epoll, fd, EventSet::IN, token)?;
        }
        Ok(())
    }

    fn serve(mut self) -> io::Result<String> {
        loop {
            let mut events = [EpollEvent::default(); 3];
            let count = wait(&self.epoll, &mut events, None)?;
            for event in &events[..count] {
                match event.data() {
                    Token::BALLOON => serve_kick(&self.devices.balloon, Balloon::process),
                    Token::MEM => serve_kick(&self.devices.mem, Mem::process),
                    _ => self.obey(),
                }
            }
            let reached = lock(&self.devices.mem.device).take_reached();
            again_if(reached, &self.reached);
        }
    }

    fn obey(&mut self) {
        let MemoryDevices {
            balloon,
            mem,
            slots,
        } = &mut self.devices;
        for (command, answer) in self.incoming.take() {
            let result = match command {
                Command::Resize(bytes) => lock(&mem.device)
                    .resize(bytes, |piece| slots.add(piece))
                    .map_err(|error| error.to_string()),
                Command::Inflate(pages) => {
                    lock(&balloon.device).set_target(pages);
                    Ok(())
                }
            };
            // Who asked may have given up; it is done all the same.
            let _ = answer.send(result);
        }
    }
}
