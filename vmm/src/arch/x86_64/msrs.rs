//! Model-specific registers: those whose reset value does not suit the guest kernel, and
//! all of them when a vCPU is saved.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

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

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Registers of Hyper-V's interface, which our guests do not have: to write one, even
/// with its own value, would switch the interface on.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// Registers and their values, in the order in which they are to be set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedMsrs(Vec<(u32, u64)>);

/// The registers that are saved.
pub fn indices(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(failed("list model-specific registers"))?;
    let mut indices: Vec<u32> = list.as_slice().to_vec();
    indices.retain(|index| !HYPER_V.contains(index));
    // The timer's deadline is in the time of the TSC.
    indices.sort_by_key(|index| (*index == MSR_IA32_TSC_DEADLINE, *index != MSR_IA32_TSC));
    Ok(indices)
}

/// Reads those of the registers that this vCPU has.
pub fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<SavedMsrs, KvmError> {
    let what = "read model-specific registers";
    let mut saved = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Missing(what))?;
        let read = vcpu.get_msrs(&mut msrs).map_err(failed(what))?;
        let read = read.min(rest.len());
        let entries = &msrs.as_slice()[..read];
        saved.extend(entries.iter().map(|entry| (entry.index, entry.data)));
        // KVM stops at the first that the vCPU does not have.
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    rearm(&mut saved);
    Ok(SavedMsrs(saved))
}

/// A timer whose deadline passed while the vCPU stood still reads as none, though the guest
/// has not had its interrupt: it is due at once.
fn rearm(saved: &mut [(u32, u64)]) {
    let now = saved.iter().find(|(index, _)| *index == MSR_IA32_TSC);
    let now = now.map_or(0, |(_, value)| *value);
    for (index, value) in saved {
        if *index == MSR_IA32_TSC_DEADLINE && *value == 0 {
            *value = now;
        }
    }
}

/// Sets the registers of a new vCPU.
pub fn restore(vcpu: &VcpuFd, saved: &SavedMsrs) -> Result<(), KvmError> {
    let what = "set model-specific registers";
    let mut rest = saved.0.as_slice();
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|(index, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                ..Default::default()
            })
            .collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Missing(what))?;
        let done = vcpu.set_msrs(&msrs).map_err(failed(what))?;
        // Some can be read and not be set; as long as nothing is in them, nothing is lost.
        if let Some((index, data)) = rest.get(done)
            && *data != 0
        {
            return Err(KvmError::Msr(*index));
        }
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_overdue_fires_at_once() {
        let mut saved = [(MSR_IA32_TSC, 77), (1, 0), (MSR_IA32_TSC_DEADLINE, 0)];
        rearm(&mut saved);
        assert_eq!(saved[1..], [(1, 0), (MSR_IA32_TSC_DEADLINE, 77)]);
        let mut armed = [(MSR_IA32_TSC, 77), (MSR_IA32_TSC_DEADLINE, 99)];
        rearm(&mut armed);
        assert_eq!(armed[1], (MSR_IA32_TSC_DEADLINE, 99));
    }
}
