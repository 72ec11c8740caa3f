//! CPUID as the guest sees it: what KVM supports on this host, with the topology of
//! the VM (one package, one thread a core, APIC id = index) and without what the VM
//! does not have. No assumption about the vendor.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

use crate::kvm::{KvmError, failed};

/// Leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const PERF_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// Kinds of levels in leaf 0xb.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves for all vCPUs; made once a VM.
#[derive(Clone, Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u8,
}

impl Template {
    /// Asks KVM what it supports and fits it to a VM of `vcpus`.
    pub fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("list CPUID leaves"))?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_entries(
            supported.as_slice(),
            vcpus,
            deadline_timer,
        ))
    }

    /// Fits host leaves to a VM.
    fn from_entries(supported: &[kvm_cpuid_entry2], vcpus: u8, deadline_timer: bool) -> Self {
        let mut entries: Vec<_> = supported
            .iter()
            .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
            .copied()
            .collect();
        let vendor = supported.iter().find(|e| e.function == 0);
        let max_leaf = vendor.map_or(0, |e| e.eax);
        // "AuthenticAMD" and "HygonGenuine": their extended leaves hold the topology.
        let amd = vendor.is_some_and(|e| matches!(e.ebx, 0x6874_7541 | 0x6f67_7948));
        for entry in &mut entries {
            fit(entry, vcpus, deadline_timer, amd);
        }
        if max_leaf >= 0xb {
            entries.extend(topology_leaves(vcpus));
        }
        Self { entries, vcpus }
    }

    /// The leaves of one vCPU.
    pub fn for_cpu(&self, cpu: u8) -> Result<CpuId, KvmError> {
        let mut entries = self.entries.clone();
        let id = u32::from(cpu);
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
                0xb => entry.edx = id,
                0x8000_001e => {
                    entry.eax = id;
                    entry.ebx = id;
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        debug_assert!(cpu < self.vcpus);
        CpuId::from_entries(&entries).map_err(|_| KvmError::Missing("room for CPUID leaves"))
    }
}

/// Bits that number `count` things.
fn width(count: u8) -> u32 {
    u8::BITS - (count - 1).leading_zeros()
}

/// Changes what is the same for all vCPUs.
fn fit(entry: &mut kvm_cpuid_entry2, vcpus: u8, deadline_timer: bool, amd: bool) {
    let others = u32::from(vcpus) - 1;
    match entry.function {
        1 => {
            entry.ecx |= HYPERVISOR | X2APIC;
            entry.ecx &= !(MONITOR | VMX);
            // KVM leaves this bit to the VMM, since it depends on the in-kernel APIC.
            if deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.ebx = entry.ebx & 0xffff | u32::from(vcpus) << 16;
            entry.edx = if others > 0 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        }
        // Caches: levels 1 and 2 are a core's own, level 3 is the package's.
        4 if entry.eax & 0x1f != 0 => {
            let sharers = if entry.eax >> 5 & 7 >= 3 { others } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharers << 14 | others.min(63) << 26;
        }
        // No performance counters: they are the host's.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !(SVM | PERF_COUNTERS);
            if amd && others > 0 {
                entry.ecx |= CMP_LEGACY;
            } else {
                entry.ecx &= !CMP_LEGACY;
            }
        }
        0x8000_0008 if amd => {
            entry.ecx = width(vcpus) << 12 | others;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharers = if entry.eax >> 5 & 7 >= 3 { others } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharers << 14;
        }
        _ => {}
    }
}

/// Leaf 0xb: the levels of the topology. The x2APIC id is set per vCPU.
fn topology_leaves(vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, width(vcpus), u32::from(vcpus), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn host(vendor: u32) -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xd, vendor, 0, 0]),
            leaf(1, 0, [0, 0x0710_0800, VMX | MONITOR, 0]),
            leaf(4, 0, [0x1c00_4121, 0, 0, 0]),
            leaf(4, 3, [0x1c03_c163, 0, 0, 0]),
            leaf(0xa, 0, [7, 7, 7, 7]),
            leaf(0xb, 0, [1, 2, 3, 9]),
            leaf(0x8000_0001, 0, [0, 0, SVM, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0, 0]),
            leaf(0x8000_001e, 0, [9, 9, 9, 9]),
        ]
    }

    fn find(entries: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_cpu_has_its_apic_id_everywhere() {
        let template = Template::from_entries(&host(0x6874_7541), 6, true);
        let cpu = template.for_cpu(5).unwrap();
        assert_eq!(find(&cpu, 1, 0).ebx >> 24, 5);
        for index in 0..3 {
            assert_eq!(find(&cpu, 0xb, index).edx, 5);
        }
        assert_eq!(find(&cpu, 0x8000_001e, 0).eax, 5);
        assert_eq!(find(&cpu, 0xb, 1).eax, 3);
        assert_eq!(find(&cpu, 0x8000_0008, 0).ecx, 3 << 12 | 5);
    }

    #[test]
    fn one_cpu_needs_no_bits() {
        let cpu = Template::from_entries(&host(0x756e_6547), 1, false)
            .for_cpu(0)
            .unwrap();
        assert_eq!(find(&cpu, 0xb, 1).eax, 0);
        assert_eq!(find(&cpu, 1, 0).edx & HTT, 0);
        assert_eq!(find(&cpu, 1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!(find(&cpu, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn nested_virtualization_and_counters_are_hidden() {
        let cpu = Template::from_entries(&host(0x756e_6547), 2, true)
            .for_cpu(0)
            .unwrap();
        let one = find(&cpu, 1, 0);
        assert_eq!(one.ecx & (VMX | MONITOR), 0);
        assert_eq!(one.ecx & HYPERVISOR, HYPERVISOR);
        assert_eq!(find(&cpu, 0xa, 0).eax, 0);
        assert_eq!(find(&cpu, 0x8000_0001, 0).ecx & SVM, 0);
    }

    #[test]
    fn caches_are_shared_as_the_topology_says() {
        let cpu = Template::from_entries(&host(0x756e_6547), 4, true)
            .for_cpu(0)
            .unwrap();
        let l1 = find(&cpu, 4, 0).eax;
        let l3 = find(&cpu, 4, 3).eax;
        assert_eq!((l1 >> 14 & 0xfff, l1 >> 26), (0, 3));
        assert_eq!((l3 >> 14 & 0xfff, l3 >> 26), (3, 3));
    }
}
