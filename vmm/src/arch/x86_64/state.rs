//! What a vCPU and the interrupt controllers hold: taken down, and put into new ones.
//! Only between two runs of the vCPU, by nobody else at the same time. The orders are
//! those that KVM asks for (Documentation/virt/kvm/api.rst).
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::msrs::{self, SavedMsrs};
use crate::kvm::{KvmError, failed};

/// A vCPU between two runs.
#[derive(Serialize, Deserialize)]
pub struct SavedCpu {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: SavedMsrs,
    events: kvm_vcpu_events,
}

impl SavedCpu {
    /// Takes a vCPU down. `indices`: the registers that this KVM saves.
    pub fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self, KvmError> {
        // Asking for the state of the processor has KVM settle pending INIT and SIPI,
        // and so change what is read after it.
        let mp_state = vcpu.get_mp_state().map_err(failed("read a vCPU's state"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(failed("read registers"))?,
            sregs: vcpu.get_sregs().map_err(failed("read segment registers"))?,
            xsave: vcpu.get_xsave().map_err(failed("read vector registers"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("read control registers"))?,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(failed("read debug registers"))?,
            lapic: vcpu.get_lapic().map_err(failed("read the local APIC"))?,
            msrs: msrs::save(vcpu, indices)?,
            // Reading other state may still change these.
            events: vcpu
                .get_vcpu_events()
                .map_err(failed("read a vCPU's events"))?,
        })
    }

    /// Puts everything into a new vCPU, whose CPUID is set.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        vcpu.set_mp_state(self.mp_state)
            .map_err(failed("set a vCPU's state"))?;
        vcpu.set_regs(&self.regs).map_err(failed("set registers"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(failed("set segment registers"))?;
        // SAFETY: KVM reads as many bytes as the guest's vector registers take, which
        // are no more than `kvm_xsave` has: `kvm::open` refuses a KVM with more.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(failed("set vector registers"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(failed("set control registers"))?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(failed("set debug registers"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(failed("set the local APIC"))?;
        // After the local APIC, whose timer is one of them.
        msrs::restore(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("set a vCPU's events"))?;
        // Else a guest that stood still would find one of its CPUs stuck. KVM refuses
        // where the guest has no such clock.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }
}

/// What KVM keeps for the VM as a whole.
#[derive(Serialize, Deserialize)]
pub struct SavedChips {
    chips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

impl SavedChips {
    /// Takes them down, while no vCPU runs.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let mut chips = Vec::new();
        for chip_id in [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ] {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(failed("read an interrupt controller"))?;
            chips.push(chip);
        }
        let mut clock = vm.get_clock().map_err(failed("read the VM's clock"))?;
        // The guest's time goes on where it stopped, as the TSC does: KVM is not to add
        // the time in between.
        clock.flags = 0;
        Ok(Self { chips, clock })
    }

    /// Puts them into a new VM, whose vCPUs are restored already.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        vm.set_clock(&self.clock)
            .map_err(failed("set the VM's clock"))?;
        for chip in &self.chips {
            vm.set_irqchip(chip)
                .map_err(failed("set an interrupt controller"))?;
        }
        Ok(())
    }
}
