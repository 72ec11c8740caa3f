//! One virtual CPU and the loop that runs it.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::Template;
use crate::arch::x86_64::state::SavedCpu;
use crate::arch::x86_64::{msrs, regs};
use crate::devices::bus::{Bus, Outcome};
use crate::kvm::{self, KvmError, Leash, failed};
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
    /// What it has in common with the others.
    shared: Arc<Shared>,
}

/// What all vCPUs of a VM have in common.
pub struct Shared {
    /// Guest memory.
    pub ram: GuestRam,
    /// The devices.
    pub bus: Arc<Bus>,
    /// What the vCPUs do.
    pub counters: Arc<VcpuCounters>,
    /// Model-specific registers that are saved.
    pub msrs: Vec<u32>,
}

impl Vcpu {
    /// Makes a vCPU. One other than CPU 0 waits until the guest starts it.
    pub fn new(
        vm: &VmFd,
        index: u8,
        cpuid: &Template,
        shared: Arc<Shared>,
    ) -> Result<Self, KvmError> {
        let fd = vm
            .create_vcpu(index.into())
            .map_err(failed("make a vCPU"))?;
        fd.set_cpuid2(&cpuid.for_cpu(index)?)
            .map_err(failed("set a vCPU's CPUID"))?;
        msrs::set(&fd)?;
        shared.counters.running.add(1);
        Ok(Self { fd, shared })
    }

    /// Lets the guest reach a vCPU that was made while others run. KVM finds whom an interrupt is
    /// for in a table that it makes before a new vCPU is in its list: until something changes in
    /// another local APIC the INIT and SIPI that start the newest one go nowhere.
    pub fn announce(&self) -> Result<(), KvmError> {
        let lapic = self.fd.get_lapic();
        let lapic = lapic.map_err(failed("read the local APIC"))?;
        self.fd
            .set_lapic(&lapic)
            .map_err(failed("set the local APIC"))
    }

    /// Lets it start at the kernel's first instruction.
    pub fn start_at(&self, entry: u64) -> Result<(), KvmError> {
        regs::set(&self.fd, entry)
    }

    /// Becomes a vCPU that was saved.
    pub fn restore(&self, saved: &SavedCpu) -> Result<(), KvmError> {
        saved.restore(&self.fd)
    }

    /// Maps guest memory as if the vCPU had read it.
    ///
    /// # Errors
    /// Before Linux 6.11.
    pub fn map_ahead(&self, range: Range<u64>) -> io::Result<()> {
        kvm::pre_fault(&self.fd, range)
    }

    /// Takes it down.
    pub fn save(&self) -> Result<SavedCpu, KvmError> {
        SavedCpu::save(&self.fd, &self.shared.msrs)
    }

    /// By which it is stopped. A vCPU with a leash is never dropped.
    pub fn leash(&mut self) -> Leash {
        Leash::of(&mut self.fd)
    }

    /// Runs until the guest is gone, and returns why, or until its leash is pulled.
    pub fn run(&mut self, leash: Leash) -> Option<String> {
        let Shared { bus, counters, .. } = &*self.shared;
        loop {
            let exit = match self.fd.run() {
                Ok(exit) => exit,
                // By then KVM has finished what the last exit began.
                Err(error) if error.errno() == libc::EINTR && leash.pulled() => return None,
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => return Some(format!("vcpu failed: KVM cannot run it: {error}")),
            };
            match exit {
                VcpuExit::MmioRead(address, data) => {
                    counters.mmio_exits.add(1);
                    bus.read(address, data);
                }
                VcpuExit::MmioWrite(address, data) => {
                    counters.mmio_exits.add(1);
                    bus.write(address, data);
                }
                VcpuExit::IoIn(port, data) => {
                    counters.port_exits.add(1);
                    bus.port_in(port, data);
                }
                VcpuExit::IoOut(port, data) => {
                    counters.port_exits.add(1);
                    if bus.port_out(port, data) == Outcome::Reset {
                        return Some(self.reset_reason());
                    }
                }
                VcpuExit::Intr => {}
                VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => return Some(self.reset_reason()),
                other => return Some(format!("vcpu failed: unexpected exit {other:?}")),
            }
        }
    }

    /// Tells a panic from a reboot that the guest wanted.
    fn reset_reason(&self) -> String {
        match self.shared.ram.read_obj::<u16>(REBOOT_MODE) {
            Ok(WARM) => "guest panic".into(),
            _ => "guest reset".into(),
        }
    }
}
