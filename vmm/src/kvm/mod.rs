//! KVM with the parts that need `unsafe` wrapped: opening by descriptor, memory slots and
//! what of them is mapped ahead, and taking a vCPU out of the guest from another thread.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, kvm_pre_fault_memory, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::memory::{GuestRam, PAGE, Piece};

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

/// KVM_PRE_FAULT_MEMORY (Documentation/virt/kvm/api.rst, 4.143).
const PRE_FAULT_MEMORY: libc::Ioctl =
    nix::request_code_readwrite!(0xae, 0xd5, size_of::<kvm_pre_fault_memory>());

/// Maps guest memory as if a vCPU had read it.
///
/// # Errors
/// Where KVM cannot, as before Linux 6.11.
pub fn pre_fault(vcpu: &VcpuFd, range: Range<u64>) -> io::Result<()> {
    let mut rest = kvm_pre_fault_memory {
        gpa: range.start,
        size: range.end.saturating_sub(range.start),
        ..Default::default()
    };
    while rest.size > 0 {
        // SAFETY: KVM reads and writes this structure alone; what it maps is memory that
        // the guest has already.
        if unsafe { libc::ioctl(vcpu.as_raw_fd(), PRE_FAULT_MEMORY, &mut rest) } == 0 {
            continue;
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
    Ok(())
}

/// Makes the guest's memory the VM's.
pub fn add_memory(vm: &VmFd, ram: GuestRam) -> Result<(), KvmError> {
    for (slot, (start, length, host)) in (0..).zip(ram.regions()) {
        set_slot(vm, slot, 0, start, length, host)?;
    }
    Ok(())
}

/// Has KVM remember which pages the guest writes to from now on. What was plugged is left
/// out.
pub fn log_writes(vm: &VmFd, ram: GuestRam) -> Result<(), KvmError> {
    for (slot, (start, length, host)) in (0..).zip(ram.first_regions()) {
        set_slot(vm, slot, KVM_MEM_LOG_DIRTY_PAGES, start, length, host)?;
    }
    Ok(())
}

/// The addresses of those pages.
pub fn written(vm: &VmFd, ram: GuestRam) -> Result<Vec<u64>, KvmError> {
    let mut pages = Vec::new();
    for (slot, (start, length, _)) in (0..).zip(ram.first_regions()) {
        let words = vm
            .get_dirty_log(slot, length as usize)
            .map_err(failed("tell what the guest has written"))?;
        let bits = words.into_iter().enumerate().flat_map(|(index, word)| {
            let set = (0..u64::BITS).filter(move |bit| word >> bit & 1 != 0);
            set.map(move |bit| index as u64 * 64 + u64::from(bit))
        });
        pages.extend(bits.map(|page| start + page * PAGE));
    }
    Ok(pages)
}

fn set_slot(
    vm: &VmFd,
    slot: u32,
    flags: u32,
    start: u64,
    length: u64,
    host: u64,
) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
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
        set_slot(
            &self.vm,
            self.next,
            0,
            piece.start,
            piece.length,
            piece.host,
        )?;
        self.next += 1;
        Ok(())
    }
}
