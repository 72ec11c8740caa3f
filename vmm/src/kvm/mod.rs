//! KVM with the parts that need `unsafe` wrapped: opening by descriptor, memory slots,
//! and taking a vCPU out of the guest from another thread.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::memory::{GuestRam, Piece};

/// The only KVM interface version there is since 2007.
const API_VERSION: i32 = 12;

/// What the VMM needs of KVM, with the words for its absence.
const REQUIRED: [(Cap, &str); 5] = [
    (Cap::Irqchip, "an in-kernel interrupt controller"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::UserMemory, "user memory regions"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not /dev/kvm, or a KVM of another world.
    #[error(
        "the kvm descriptor answers API version {0}, not {API_VERSION}: is it /dev/kvm? run joeyctl doctor"
    )]
    Version(i32),
    /// A capability is missing.
    #[error("this kernel's KVM has no {0}: run joeyctl doctor")]
    Missing(&'static str),
    /// A model-specific register of a saved vCPU.
    #[error("KVM does not take the value of model-specific register {0:#x}")]
    Msr(u32),
    /// A call failed.
    #[error("KVM cannot {what}: {source}")]
    Call {
        /// What was asked for.
        what: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
}

/// Makes the `map_err` argument for a call that does `what`.
pub fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { what, source }
}

/// Takes an open /dev/kvm and checks that it can run our VMs.
pub fn open(fd: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: ownership of the descriptor moves to `Kvm`.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    for (capability, name) in REQUIRED {
        if !kvm.check_extension(capability) {
            return Err(KvmError::Missing(name));
        }
    }
    // More than this needs a permission that nobody here asks for.
    if kvm.check_extension_int(Cap::Xsave2) > size_of::<kvm_xsave>() as i32 {
        return Err(KvmError::Missing("vector registers of 4096 bytes at most"));
    }
    Ok(kvm)
}

/// Has a vCPU leave KVM_RUN, and not enter it again, until it is let.
#[derive(Clone, Copy, Debug)]
pub struct Leash(NonNull<u8>);

// SAFETY: the byte belongs to no thread; it is only ever accessed atomically, by KVM too.
unsafe impl Send for Leash {}

impl Leash {
    /// The leash of a vCPU that is never dropped.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit))
    }

    /// The vCPU does not enter the guest any more. One that is there leaves at the next
    /// signal to its thread.
    pub fn pull(self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    /// The vCPU may enter the guest.
    pub fn loosen(self) {
        self.flag().store(0, Ordering::SeqCst);
    }

    /// Whether it may not.
    pub fn pulled(self) -> bool {
        self.flag().load(Ordering::SeqCst) != 0
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the byte is in the page that KVM shares with this process, which stays
        // mapped as long as the vCPU, that is for ever.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr()) }
    }
}

/// Makes the guest's memory the VM's.
pub fn add_memory(vm: &VmFd, ram: GuestRam) -> Result<(), KvmError> {
    for (slot, (start, length, host)) in (0..).zip(ram.regions()) {
        add_slot(vm, slot, start, length, host)?;
    }
    Ok(())
}

fn add_slot(vm: &VmFd, slot: u32, start: u64, length: u64, host: u64) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: start,
        memory_size: length,
        userspace_addr: host,
    };
    // SAFETY: the host range is guest memory, which stays mapped for ever, and
    // the slots do not overlap.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("add guest memory"))
}

/// Adds memory to a VM that runs. The guest reaches nothing that is not in a slot.
pub struct MemorySlots {
    vm: Arc<VmFd>,
    next: u32,
}

impl MemorySlots {
    /// Slots behind those of [`add_memory`].
    pub fn new(vm: Arc<VmFd>, ram: GuestRam) -> Self {
        Self {
            vm,
            next: ram.regions().count() as u32,
        }
    }

    /// Adds a piece.
    pub fn add(&mut self, piece: Piece) -> Result<(), KvmError> {
        add_slot(&self.vm, self.next, piece.start, piece.length, piece.host)?;
        self.next += 1;
        Ok(())
    }
}
