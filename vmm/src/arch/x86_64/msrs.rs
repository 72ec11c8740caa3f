//! Model-specific registers whose reset value does not suit the guest kernel.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, failed};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
/// Without it Linux on Intel gives up `rep movs` for copies.
const MISC_ENABLE_FAST_STRING: u64 = 1;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, all memory write-back: what firmware would leave.
const MTRR_WRITE_BACK: u64 = 0x800 | 6;

/// Sets them on a new vCPU.
pub fn set(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let what = "set model-specific registers";
    let entries = [
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Missing(what))?;
    let done = vcpu.set_msrs(&msrs).map_err(failed(what))?;
    if done != entries.len() {
        return Err(KvmError::Missing(
            "the registers MISC_ENABLE and MTRR_DEF_TYPE",
        ));
    }
    Ok(())
}
