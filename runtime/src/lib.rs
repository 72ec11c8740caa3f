//! OCI runtime engine.
//!
//! A spec becomes a validated plan before anything is made; then one `clone3` makes the container's
//! first process, in its namespaces and in its cgroup, which builds the root file system and waits
//! for [`Container::start`].
//!
//! The engine is synchronous and forks without exec: call it from a process (not a thread) that
//! runs one thread only, because a forked child has only the calling thread while locks of the
//! others (of the allocator, for example) stay held. For a caller that serves others meanwhile,
//! [`Container::begin_exec`] and [`Container::begin_start`] return before the process has become its
//! command, which it does at the pleasure of its container.
//!
//! It needs Linux 5.14 or later, and cgroups of version 2 or 1 (all of the host's controllers in
//! one version). With the feature `systemd` the host's systemd can make them.

mod capabilities;
pub mod cgroup;
mod container;
mod copy;
#[cfg(feature = "criu")]
mod criu;
mod devices;
mod document;
mod error;
mod hooks;
mod mounts;
mod namespaces;
mod network;
mod notify;
mod plan;
mod process;
mod resctrl;
mod rootfs;
mod seccomp;
mod starting;
mod state;
mod sys;
mod tty;

pub use capabilities::capability_names;
pub use cgroup::{
    CgroupDriver, CgroupError, CgroupStats, HugetlbStats, IoStats, MemoryWatch, Pressure, Stall,
};
pub use container::{Container, CreateOptions, ExecOptions, LaunchOptions};
#[cfg(feature = "criu")]
pub use criu::{CgroupMode, CriuError, CriuOptions, DumpOptions, PageServer, RestoreOptions};
pub use document::{parse_process, parse_spec};
pub use error::{CreateError, DeleteError, ExecError, KillError, StartError};
pub use hooks::HookError;
pub use mounts::{map_mount, mapped_mount};
pub use namespaces::is_root_of_the_host;
pub use notify::NOTIFY_VARIABLE;
pub use plan::{PlanError, mount_options};
pub use process::{Io, Launched, Launching, TerminalSize};
pub use seccomp::has_filter_flag;
pub use starting::Starting;
pub use state::{StateError, Status};
pub use sys::{Attributes, set_attributes, trim_heap};
pub use tty::{open_terminal, resize};
