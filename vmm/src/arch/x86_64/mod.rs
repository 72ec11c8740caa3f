//! x86-64: registers, CPUID, and the tables that the guest kernel reads.

pub mod cpuid;
pub mod layout;
pub mod linux_boot;
pub mod mptable;
pub mod msrs;
pub mod regs;
pub mod state;
