//! Puts a VM together: memory, interrupt controllers, devices and the first vCPUs, to boot
//! a kernel or to go on from a snapshot.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::Template;
use crate::arch::x86_64::layout::{DEVICE_SIZE, DEVICES, FIRST_IRQ, SERIAL_IRQ, TSS};
use crate::arch::x86_64::msrs;
use crate::boot::{self, BootError};
use crate::devices::bus::Bus;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::{Balloon, BalloonCounters};
use crate::devices::virtio::block::{Block, BlockCounters, Window};
use crate::devices::virtio::fs::{Fs, FsCounters};
use crate::devices::virtio::mem::{Mem, MemCounters, ResizeError};
use crate::devices::virtio::mmio::{QUEUE_NOTIFY, Transport};
use crate::devices::virtio::net::{Net, NetCounters};
use crate::devices::virtio::rng::{Rng, RngCounters};
use crate::devices::virtio::vsock::{Vsock, VsockCounters};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::files::{BootFiles, RestoreFiles};
use crate::kvm::{self, KvmError, MemorySlots, failed};
use crate::memory::{GuestRam, MemoryError};
use crate::metrics::{Stats, VcpuCounters};
use crate::poll::lock;
use crate::resize::MemoryDevices;
use crate::slots;
use crate::snapshot::{self, Snapshot, SnapshotError};
use crate::spec::VmSpec;
use crate::sys;
use crate::vcpu::{Shared, Vcpu};

/// Why a VM cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory cannot be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initramfs cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The snapshot is none of this VM's.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Plugged memory is not to be had back.
    #[error(transparent)]
    Plugged(#[from] ResizeError),
    /// The backing of a device is unusable.
    #[error("cannot set up {device}: {source}")]
    Device {
        /// Which device.
        device: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Makes the error of a device.
fn broken(device: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Device { device, source }
}

/// A device with the event that the driver's kicks become.
pub struct Slot<D> {
    /// The device; vCPU threads touch it while a driver sets it up.
    pub device: Arc<Mutex<D>>,
    /// Written by KVM when the driver kicks a queue.
    pub kick: EventFd,
}

impl<D> Slot<D> {
    fn new(device: D, name: &'static str) -> Result<Self, VmError> {
        Ok(Self {
            device: Arc::new(Mutex::new(device)),
            kick: sys::event().map_err(broken(name))?,
        })
    }
}

/// What the two disks do and hold.
pub struct Disks {
    /// vda.
    pub window: Slot<Block>,
    /// vdb.
    pub scratch: Slot<Block>,
}

/// What has no backing until one is attached.
pub struct Spares {
    /// The file system device.
    pub fs: Slot<Fs>,
    /// Written when the file system daemon is lost.
    pub fs_lost: EventFd,
    /// Disks for volumes.
    pub disks: Vec<Slot<Block>>,
}

/// Everything but CPUs and disks that a thread looks after.
pub struct Peripherals {
    /// The NIC.
    pub net: Slot<Net>,
    /// The socket device.
    pub vsock: Slot<Vsock>,
    /// The entropy source.
    pub rng: Slot<Rng>,
}

/// Counters of the whole VM.
#[derive(Clone, Default)]
pub struct Counters {
    vcpus: Arc<VcpuCounters>,
    window: Arc<BlockCounters>,
    scratch: Arc<BlockCounters>,
    volumes: Arc<BlockCounters>,
    fs: Arc<FsCounters>,
    net: Arc<NetCounters>,
    vsock: Arc<VsockCounters>,
    rng: Arc<RngCounters>,
    balloon: Arc<BalloonCounters>,
    mem: Arc<MemCounters>,
}

impl Counters {
    /// Their values now.
    pub fn stats(&self) -> Stats {
        Stats {
            vcpus: self.vcpus.stats(),
            window: self.window.stats(),
            scratch: self.scratch.stats(),
            volumes: self.volumes.stats(),
            fs: self.fs.stats(),
            net: self.net.stats(),
            vsock: self.vsock.stats(),
            rng: self.rng.stats(),
            balloon: self.balloon.stats(),
            mem: self.mem.stats(),
        }
    }
}

/// What it takes to make a vCPU.
#[derive(Clone)]
pub struct CpuFactory {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// What its vCPUs can do.
    pub cpuid: Template,
    /// What they have in common.
    pub shared: Arc<Shared>,
}

impl CpuFactory {
    /// Makes vCPU `index`.
    pub fn make(&self, index: u8) -> Result<Vcpu, KvmError> {
        Vcpu::new(&self.vm, index, &self.cpuid, Arc::clone(&self.shared))
    }
}

/// A VM that is ready to run, but for the files behind scratch, vsock and NIC.
pub struct Vm {
    /// The vCPUs that there are, by number: CPU 0 at the kernel's first instruction, or
    /// those of the snapshot.
    pub made: Vec<(u8, Vcpu)>,
    /// Makes the other CPUs.
    pub cpus: CpuFactory,
    /// The disks.
    pub disks: Disks,
    /// What volumes are attached to.
    pub spares: Spares,
    /// The other devices.
    pub peripherals: Peripherals,
    /// What guest memory is resized by.
    pub memory: MemoryDevices,
    /// Where images are mapped.
    pub window: Window,
    /// Counters of everything.
    pub counters: Counters,
    /// Guest memory.
    pub ram: GuestRam,
    /// The kernel's file, whose symbols tell where its log is.
    pub kernel: File,
}

impl Vm {
    /// Puts a VM together from a valid spec, to boot a kernel.
    pub fn boot(spec: &VmSpec, files: BootFiles<OwnedFd>) -> Result<Self, VmError> {
        let ram = GuestRam::with_hotplug(mib(spec.memory_mib), mib(spec.hotplug_mib))?;
        let serial = files.serial.map(File::from);
        let mut vm = Self::assemble(spec, ram, kvm::open(files.kvm)?, files.kernel, serial)?;
        let devices = vm.cpus.shared.bus.devices();
        let initramfs = File::from(files.initramfs);
        let entry = boot::load(ram, spec, &vm.kernel, &initramfs, devices)?;
        let boot_cpu = vm.cpus.make(0)?;
        boot_cpu.start_at(entry)?;
        vm.made.push((0, boot_cpu));
        Ok(vm)
    }

    /// Puts a VM together from a valid spec, to go on from a snapshot of one with the
    /// same spec. `ahead`: nobody waits for it yet.
    pub fn restore(
        spec: &VmSpec,
        files: RestoreFiles<OwnedFd>,
        ahead: bool,
    ) -> Result<Self, VmError> {
        let snapshot = Snapshot::read(&File::from(files.state))?;
        snapshot.check(spec)?;
        let memory = File::from(files.memory);
        snapshot.check_memory(&memory)?;
        let bytes = mib(spec.memory_mib);
        let ram = GuestRam::with_hotplug(bytes, mib(spec.hotplug_mib))?;
        let mut vm = Self::assemble(spec, ram, kvm::open(files.kvm)?, files.kernel, None)?;
        snapshot.check_cpu(&vm.cpus.cpuid.for_cpu(0)?)?;
        let MemoryDevices {
            balloon,
            mem,
            slots,
        } = &mut vm.memory;
        lock(&balloon.device).restore(snapshot.balloon);
        lock(&mem.device).restore(&snapshot.mem, |piece| slots.add(piece))?;
        // Also what was plugged.
        let mapped = ram.load(memory.as_fd())?;
        for (index, saved) in &snapshot.cpus {
            let vcpu = vm.cpus.make(*index)?;
            vcpu.restore(saved)?;
            vm.made.push((*index, vcpu));
        }
        snapshot.chips.restore(&vm.cpus.vm)?;
        let restored = vm.cpus.shared.bus.restore(&snapshot.devices);
        restored.map_err(SnapshotError::from)?;
        lock(&vm.peripherals.vsock.device).restore(snapshot.vsock);
        lock(&vm.spares.fs.device).restore(snapshot.fs);
        let changes = match files.changes {
            Some(changes) => snapshot::read_changes(&File::from(changes))?,
            None => Vec::new(),
        };
        // What this host cannot, as older kernels, the guest waits for when it runs.
        let _ = vm.map(&changes, if ahead { &mapped } else { &[] });
        Ok(vm)
    }

    /// Does at once what else the guest would leave for, page by page: these are its own, those
    /// it reads.
    fn map(&self, own: &[Range<u64>], read: &[Range<u64>]) -> io::Result<()> {
        let Some((_, vcpu)) = self.made.first() else {
            return Ok(());
        };
        for range in own {
            self.ram.make_own(range)?;
        }
        for range in own.iter().chain(read) {
            vcpu.map_ahead(range.clone())?;
        }
        Ok(())
    }

    /// Everything but the vCPUs and what is in memory.
    fn assemble(
        spec: &VmSpec,
        ram: GuestRam,
        kvm: Kvm,
        kernel: OwnedFd,
        serial: Option<File>,
    ) -> Result<Self, VmError> {
        let counters = Counters::default();
        let vm = kvm.create_vm().map_err(failed("make a VM"))?;
        // Before the interrupt controllers: they leave an SRCU grace period under
        // way, for which a change of memory would wait a tick or more.
        kvm::add_memory(&vm, ram)?;
        vm.set_tss_address(TSS).map_err(failed("place the TSS"))?;
        vm.create_irq_chip()
            .map_err(failed("make the interrupt controllers"))?;

        let window = Window::new();
        let disks = Disks {
            window: Slot::new(
                Block::new(ram, Box::new(window.clone()), Arc::clone(&counters.window)),
                "the image window",
            )?,
            scratch: Slot::new(Block::spare(ram, Arc::clone(&counters.scratch)), "scratch")?,
        };
        let vsock = Vsock::new(ram, Arc::clone(&counters.vsock)).map_err(broken("vsock"))?;
        let peripherals = Peripherals {
            net: Slot::new(
                Net::new(ram, spec.offloads, Arc::clone(&counters.net)),
                "the NIC",
            )?,
            vsock: Slot::new(vsock, "vsock")?,
            rng: Slot::new(Rng::new(ram, Arc::clone(&counters.rng)), "rng")?,
        };
        let spares = Spares::new(ram, &counters)?;
        let balloon = Balloon::new(ram, Arc::clone(&counters.balloon));
        let balloon = Slot::new(balloon, "the balloon")?;
        let mem = Slot::new(Mem::new(ram, Arc::clone(&counters.mem)), "memory")?;

        let mut wiring = Wiring {
            vm: &vm,
            ram,
            transports: Vec::new(),
        };
        wiring.attach(&disks.window)?;
        wiring.attach(&disks.scratch)?;
        wiring.attach(&peripherals.net)?;
        wiring.attach(&peripherals.vsock)?;
        wiring.attach(&peripherals.rng)?;
        debug_assert_eq!(wiring.transports.len(), slots::FS);
        wiring.attach(&spares.fs)?;
        for disk in &spares.disks {
            wiring.attach(disk)?;
        }
        debug_assert_eq!(wiring.transports.len(), slots::BALLOON);
        wiring.attach(&balloon)?;
        wiring.attach(&mem)?;
        let transports = wiring.transports;
        let serial = serial.map(|file| serial_port(&vm, file)).transpose()?;
        let shared = Shared {
            ram,
            bus: Arc::new(Bus::new(transports, serial)),
            counters: Arc::clone(&counters.vcpus),
            msrs: msrs::indices(&kvm)?,
        };
        let vm = Arc::new(vm);
        let slots = MemorySlots::new(Arc::clone(&vm), ram);
        Ok(Self {
            made: Vec::new(),
            cpus: CpuFactory {
                cpuid: Template::new(&kvm, spec.vcpus)?,
                vm,
                shared: Arc::new(shared),
            },
            disks,
            spares,
            peripherals,
            memory: MemoryDevices {
                balloon,
                mem,
                slots,
            },
            window,
            counters,
            ram,
            kernel: File::from(kernel),
        })
    }
}

fn mib(count: u32) -> u64 {
    u64::from(count) << 20
}

impl Spares {
    fn new(ram: GuestRam, counters: &Counters) -> Result<Self, VmError> {
        let fs_lost = sys::event().map_err(broken("the file system device"))?;
        let lost = fs_lost
            .try_clone()
            .map_err(broken("the file system device"))?;
        let fs = Fs::new(ram, lost, Arc::clone(&counters.fs));
        let disk = || Slot::new(Block::spare(ram, Arc::clone(&counters.volumes)), "a disk");
        Ok(Self {
            fs: Slot::new(fs, "the file system device")?,
            fs_lost,
            disks: (0..slots::SPARE_DISKS)
                .map(|_| disk())
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Gives devices their addresses and interrupt lines, in order.
struct Wiring<'a> {
    vm: &'a VmFd,
    ram: GuestRam,
    transports: Vec<Transport>,
}

impl Wiring<'_> {
    fn attach<D: VirtioDevice + 'static>(&mut self, slot: &Slot<D>) -> Result<(), VmError> {
        let index = self.transports.len();
        let address = DEVICES + index as u64 * DEVICE_SIZE;
        let line = sys::event().map_err(broken("an interrupt"))?;
        self.vm
            .register_irqfd(&line, FIRST_IRQ + index as u32)
            .map_err(failed("attach an interrupt line"))?;
        self.vm
            .register_ioevent(
                &slot.kick,
                &IoEventAddress::Mmio(address + QUEUE_NOTIFY),
                NoDatamatch,
            )
            .map_err(failed("attach a queue notification"))?;
        self.transports.push(Transport::new(
            self.ram,
            slot.device.clone(),
            Arc::new(Interrupt::new(line)),
            slot.kick.try_clone().map_err(broken("a kick"))?,
        ));
        Ok(())
    }
}

/// The serial port, writing to `file`.
fn serial_port(vm: &VmFd, file: File) -> Result<SerialPort<Box<dyn Write + Send>>, VmError> {
    let line = sys::event().map_err(broken("the serial port"))?;
    vm.register_irqfd(&line, SERIAL_IRQ)
        .map_err(failed("attach the serial port's interrupt line"))?;
    Ok(SerialPort::new(line, Box::new(file)))
}
