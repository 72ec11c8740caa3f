//! joey-vmm: one microVM, in one jailed process, on KVM.
//!
//! The owner of a VM (the shim) uses [`Vmm`]: it spawns the `joey-vmm` binary,
//! hands it descriptors and a [`VmSpec`], and drives it with [`Action`]s. All
//! other modules are that process: they are public for its tests and fuzzers.

pub mod action;
pub mod arch;
pub mod boot;
pub mod channel;
pub mod client;
pub mod commands;
pub mod cpus;
pub mod devices;
pub mod files;
pub mod jail;
pub mod kernel_log;
pub mod kvm;
pub mod landlock;
mod le;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod place;
pub mod poll;
pub mod probe;
pub mod process;
pub mod resize;
pub mod seccomp;
pub mod slots;
pub mod snapshot;
pub mod spec;
pub mod storage;
pub mod sys;
pub mod vcpu;
pub mod vm;

pub use action::{Action, Event, Reply};
pub use client::{ClientError, Vmm, offloads, reap};
pub use devices::virtio::fs::{Backend as FsBackend, HandshakeError, connect as connect_fs};
pub use devices::virtio::net::{MAC as GUEST_MAC, Offloads};
pub use files::{BootFiles, Outlets, RestoreFiles, RunFiles};
pub use metrics::Stats;
pub use place::Place;
pub use slots::{FS_TAG, SPARE_DISKS};
pub use spec::{SpecError, VmSpec};
