//! One virtual CPU and the loop that runs it.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::Template;
use crate::arch::x86_64::{msrs, regs};
use crate::devices::bus::{Bus, Outcome};
use crate::kvm::{KvmError, failed};
use crate::memory::GuestRam;
use crate::metrics::VcpuCounters;

/// Where a kernel leaves its reboot mode for the firmware; a panicking one leaves
/// [`WARM`] there because of `reboot=panic_warm` on its command line.
const REBOOT_MODE: GuestAddress = GuestAddress(0x472);
const WARM: u16 = 0x1234;

/// How a vCPU thread tells the others that the guest is gone.
#[derive(Debug)]
pub struct Stop {
    /// Readable once the guest is gone.
    pub event: EventFd,
    reason: Mutex<Option<String>>,
}

impl Stop {
    /// A guest that runs.
    pub fn new(event: EventFd) -> Self {
        Self {
            event,
            reason: Mutex::new(None),
        }
    }

    /// The guest is gone. The first reason counts.
    pub fn tell(&self, reason: String) {
        // A panic ends the process, so the lock is never poisoned.
        if let Ok(mut slot) = self.reason.lock() {
            slot.get_or_insert(reason);
        }
        // It fails only when it is readable already.
        let _ = self.event.write(1);
    }

    /// Why the guest is gone.
    pub fn reason(&self) -> String {
        let reason = self.reason.lock().ok().and_then(|slot| slot.clone());
        reason.unwrap_or_else(|| "guest reset".into())
    }
}

/// A vCPU.
pub struct Vcpu {
    fd: VcpuFd,
    ram: GuestRam,
    bus: Arc<Bus>,
    counters: Arc<VcpuCounters>,
}

impl Vcpu {
    /// Makes a vCPU. One other than CPU 0 waits until the guest starts it.
    pub fn new(
        vm: &VmFd,
        index: u8,
        cpuid: &Template,
        ram: GuestRam,
        bus: Arc<Bus>,
        counters: Arc<VcpuCounters>,
    ) -> Result<Self, KvmError> {
        let fd = vm
            .create_vcpu(index.into())
            .map_err(failed("make a vCPU"))?;
        fd.set_cpuid2(&cpuid.for_cpu(index)?)
            .map_err(failed("set a vCPU's CPUID"))?;
        msrs::set(&fd)?;
        Ok(Self {
            fd,
            ram,
            bus,
            counters,
        })
    }

    /// Lets it start at the kernel's first instruction.
    pub fn start_at(&self, entry: u64) -> Result<(), KvmError> {
        regs::set(&self.fd, entry)
    }

    /// Runs until the guest is gone; returns why.
    pub fn run(&mut self) -> String {
        self.counters.running.add(1);
        loop {
            let exit = match self.fd.run() {
                Ok(exit) => exit,
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => return format!("vcpu failed: KVM cannot run it: {error}"),
            };
            match exit {
                VcpuExit::MmioRead(address, data) => {
                    self.counters.mmio_exits.add(1);
                    self.bus.read(address, data);
                }
                VcpuExit::MmioWrite(address, data) => {
                    self.counters.mmio_exits.add(1);
                    self.bus.write(address, data);
                }
                VcpuExit::IoIn(port, data) => {
                    self.counters.port_exits.add(1);
                    self.bus.port_in(port, data);
                }
                VcpuExit::IoOut(port, data) => {
                    self.counters.port_exits.add(1);
                    if self.bus.port_out(port, data) == Outcome::Reset {
                        return self.reset_reason();
                    }
                }
                VcpuExit::Intr => {}
                VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => return self.reset_reason(),
                other => return format!("vcpu failed: unexpected exit {other:?}"),
            }
        }
    }

    /// Tells a panic from a reboot that the guest wanted.
    fn reset_reason(&self) -> String {
        match self.ram.read_obj::<u16>(REBOOT_MODE) {
            Ok(WARM) => "guest panic".into(),
            _ => "guest reset".into(),
        }
    }
}
