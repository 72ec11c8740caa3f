//! The VM as its owner sees it: it runs, stands still, and can be written to files.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use crate::arch::x86_64::state::SavedChips;
use crate::cpus::Cpus;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{Block, FileDisk};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::Vsock;
use crate::files::RunFiles;
use crate::kvm;
use crate::memory::{GuestRam, ranges};
use crate::poll::lock;
use crate::snapshot::{self, Snapshot, SnapshotError};
use crate::spec::VmSpec;
use crate::vm::CpuFactory;

/// Everything that runs and stops together.
pub struct Machine {
    /// Its shape.
    pub spec: VmSpec,
    /// Its vCPUs.
    pub cpus: Cpus,
    /// The VM behind them.
    pub factory: CpuFactory,
    /// vdb.
    pub scratch: Arc<Mutex<Block>>,
    /// The NIC.
    pub net: Arc<Mutex<Net>>,
    /// The socket device.
    pub vsock: Arc<Mutex<Vsock>>,
    /// The file system device.
    pub fs: Arc<Mutex<Fs>>,
    /// The balloon.
    pub balloon: Arc<Mutex<Balloon>>,
    /// Plugged memory.
    pub mem: Arc<Mutex<Mem>>,
    /// It was given its files.
    pub ran: bool,
    /// It goes on in another process.
    pub left: bool,
}

impl Machine {
    /// Lets it run for the first time, on these files.
    pub fn run(&mut self, scratch: u64, files: RunFiles<OwnedFd>) -> Result<(), String> {
        if self.ran {
            return Err("the VM runs on its files already: use resume".into());
        }
        let disk = FileDisk::scratch(File::from(files.scratch), scratch);
        let disk = disk.map_err(|error| format!("scratch: {error}"))?;
        lock(&self.scratch).replace(Box::new(disk));
        let listener = UnixListener::from(files.vsock_listener);
        let listening = lock(&self.vsock).listen(listener);
        listening.map_err(|error| format!("the vsock listener: {error}"))?;
        if let Some(tap) = files.tap {
            lock(&self.net).set_tap(File::from(tap));
        }
        // What goes wrong from here on leaves devices half at work: it is not tried again.
        self.ran = true;
        let bus = &self.factory.shared.bus;
        bus.resume().map_err(|error| error.to_string())?;
        self.cpus.resume().map_err(|error| error.to_string())
    }

    /// Stops all vCPUs.
    pub fn pause(&mut self) -> Result<(), String> {
        self.check_ran()?;
        self.cpus.pause().map_err(|error| error.to_string())
    }

    /// Lets them go on.
    pub fn resume(&mut self) -> Result<(), String> {
        self.check_ran()?;
        self.cpus.resume().map_err(|error| error.to_string())
    }

    /// Makes a vCPU, so that the guest can start it.
    pub fn online(&mut self, cpu: u8) -> Result<(), String> {
        self.check_ran()?;
        self.cpus.online(cpu).map_err(|error| error.to_string())
    }

    /// Goes on with saved connections, before it runs.
    pub fn take_over(&mut self, ports: &[u32], sockets: Vec<OwnedFd>) -> Result<(), String> {
        if self.ran || ports.len() != sockets.len() {
            return Err("a VM that has not run yet takes over as many sockets as ports".into());
        }
        let mut vsock = lock(&self.vsock);
        for (port, socket) in ports.iter().zip(sockets) {
            match vsock.take_over(*port, UnixStream::from(socket)) {
                Ok(true) => {}
                Ok(false) => return Err(format!("no connection of port {port} was saved")),
                Err(error) => return Err(format!("the connection of port {port}: {error}")),
            }
        }
        Ok(())
    }

    /// Writes it to two files. It must be paused. `leave`: it goes on in another process.
    pub fn save(
        &mut self,
        ram: GuestRam,
        memory: OwnedFd,
        state: OwnedFd,
        leave: bool,
    ) -> Result<(), String> {
        self.check_ran()?;
        let cpus = self.cpus.save().map_err(|error| error.to_string())?;
        let bus = &self.factory.shared.bus;
        let devices = bus.save();
        let save = || -> Result<(), String> {
            let chips = SavedChips::save(&self.factory.vm).map_err(|error| error.to_string())?;
            let cpuid = self.factory.cpuid.for_cpu(0);
            let snapshot = Snapshot {
                spec: self.spec.clone(),
                cpuid: cpuid
                    .map_err(|error| error.to_string())?
                    .as_slice()
                    .to_vec(),
                cpus,
                chips,
                devices,
                vsock: lock(&self.vsock).save(),
                fs: lock(&self.fs).save(),
                balloon: lock(&self.balloon).save(),
                mem: lock(&self.mem).save(),
            };
            ram.save(memory.as_fd())
                .map_err(SnapshotError::from)
                .and_then(|_| snapshot.write(File::from(state)))
                .map_err(|error| error.to_string())
        };
        let saved = save().and_then(|()| {
            if leave {
                let left = lock(&self.vsock).leave();
                left.map_err(|error| format!("the socket device: {error}"))?;
                self.left = true;
            }
            Ok(())
        });
        if !self.left {
            // They go on, whether it was saved or not.
            bus.resume().map_err(|error| error.to_string())?;
        }
        saved
    }

    /// Remembers from now on which pages are written to. It must be paused.
    pub fn log_writes(&self, ram: GuestRam) -> Result<(), String> {
        self.check_paused()?;
        kvm::log_writes(&self.factory.vm, ram).map_err(|error| error.to_string())
    }

    /// Writes to a file which pages were written to since then: by the guest, or, as they
    /// differ from those of the file that it was saved to, by its devices. It must be paused.
    pub fn changes(&self, ram: GuestRam, memory: OwnedFd, list: OwnedFd) -> Result<(), String> {
        self.check_paused()?;
        let mut pages = kvm::written(&self.factory.vm, ram).map_err(|error| error.to_string())?;
        let changes = ram.changes(&File::from(memory)).and_then(|changed| {
            pages.extend(changed);
            snapshot::write_changes(&ranges(pages), File::from(list))
        });
        changes.map_err(|error| format!("the list of changes: {error}"))
    }

    fn check_paused(&self) -> Result<(), String> {
        self.check_ran()?;
        self.cpus.check_paused().map_err(|error| error.to_string())
    }

    fn check_ran(&self) -> Result<(), String> {
        if self.ran {
            return Ok(());
        }
        Err("the VM does not run yet: send run first".into())
    }
}
