//! Puts a VM together: memory, interrupt controllers, devices and the boot CPU.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::Template;
use crate::arch::x86_64::layout::{DEVICE_SIZE, DEVICES, FIRST_IRQ, SERIAL_IRQ, TSS};
use crate::boot::{self, BootError};
use crate::devices::bus::Bus;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::{Balloon, BalloonCounters};
use crate::devices::virtio::block::{Block, BlockCounters, Disk, FileDisk, Window};
use crate::devices::virtio::fs::{Fs, FsCounters};
use crate::devices::virtio::mem::{Mem, MemCounters};
use crate::devices::virtio::mmio::{QUEUE_NOTIFY, Transport};
use crate::devices::virtio::net::{Net, NetCounters};
use crate::devices::virtio::rng::{Rng, RngCounters};
use crate::devices::virtio::vsock::{Vsock, VsockCounters};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::files::BootFiles;
use crate::kvm::{self, KvmError, MemorySlots, failed};
use crate::memory::{GuestRam, MemoryError};
use crate::metrics::{Stats, VcpuCounters};
use crate::resize::MemoryDevices;
use crate::slots;
use crate::spec::VmSpec;
use crate::sys;
use crate::vcpu::Vcpu;

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
    vm: Arc<VmFd>,
    cpuid: Template,
    ram: GuestRam,
    bus: Arc<Bus>,
    counters: Arc<VcpuCounters>,
}

impl CpuFactory {
    /// Makes vCPU `index`.
    pub fn make(&self, index: u8) -> Result<Vcpu, KvmError> {
        Vcpu::new(
            &self.vm,
            index,
            &self.cpuid,
            self.ram,
            Arc::clone(&self.bus),
            Arc::clone(&self.counters),
        )
    }
}

/// A VM that is ready to run.
pub struct Vm {
    /// CPU 0, at the kernel's first instruction.
    pub boot_cpu: Vcpu,
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
    /// Puts a VM together from a valid spec.
    pub fn build(spec: &VmSpec, files: BootFiles<OwnedFd>) -> Result<Self, VmError> {
        let counters = Counters::default();
        let mib = |count: u32| u64::from(count) << 20;
        let ram = GuestRam::with_hotplug(mib(spec.memory_mib), mib(spec.hotplug_mib))?;
        let kvm = kvm::open(files.kvm)?;
        let vm = kvm.create_vm().map_err(failed("make a VM"))?;
        // Before the interrupt controllers: they leave an SRCU grace period under
        // way, for which a change of memory would wait a tick or more.
        kvm::add_memory(&vm, ram)?;
        vm.set_tss_address(TSS).map_err(failed("place the TSS"))?;
        vm.create_irq_chip()
            .map_err(failed("make the interrupt controllers"))?;

        let window = Window::new();
        let scratch = FileDisk::scratch(File::from(files.scratch)).map_err(broken("scratch"))?;
        let disk = |disk: Box<dyn Disk>, counters: &Arc<BlockCounters>, name| {
            Slot::new(Block::new(ram, disk, Arc::clone(counters)), name)
        };
        let disks = Disks {
            window: disk(
                Box::new(window.clone()),
                &counters.window,
                "the image window",
            )?,
            scratch: disk(Box::new(scratch), &counters.scratch, "scratch")?,
        };
        let tap = files.tap.map(File::from).zip(spec.net.clone());
        let net = Net::new(ram, tap, Arc::clone(&counters.net)).map_err(broken("the TAP"))?;
        let listener = UnixListener::from(files.vsock_listener);
        let vsock = Vsock::new(ram, listener, Arc::clone(&counters.vsock))
            .map_err(broken("the vsock listener"))?;
        let peripherals = Peripherals {
            net: Slot::new(net, "the NIC")?,
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
        let serial = files.serial.map(|file| serial(&vm, file)).transpose()?;

        let kernel = File::from(files.kernel);
        let entry = boot::load(
            ram,
            spec,
            &kernel,
            &File::from(files.initramfs),
            transports.len(),
        )?;
        let vm = Arc::new(vm);
        let slots = MemorySlots::new(Arc::clone(&vm), ram);
        let cpus = CpuFactory {
            cpuid: Template::new(&kvm, spec.vcpus)?,
            vm,
            ram,
            bus: Arc::new(Bus::new(transports, serial)),
            counters: Arc::clone(&counters.vcpus),
        };
        let boot_cpu = cpus.make(0)?;
        boot_cpu.start_at(entry)?;
        Ok(Self {
            boot_cpu,
            cpus,
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
            kernel,
        })
    }
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
        ));
        Ok(())
    }
}

/// The serial port, writing to `file`.
fn serial(vm: &VmFd, file: OwnedFd) -> Result<SerialPort<Box<dyn Write + Send>>, VmError> {
    let line = sys::event().map_err(broken("the serial port"))?;
    vm.register_irqfd(&line, SERIAL_IRQ)
        .map_err(failed("attach the serial port's interrupt line"))?;
    Ok(SerialPort::new(line, Box::new(File::from(file))))
}
