//! The system calls that need `unsafe`, each behind a safe function. Everything else goes through
//! rustix.

#![allow(unsafe_code)]

mod bpf;
mod clone;
mod filter;
mod mount;
mod namespace;
mod process;
mod signal;

pub(crate) use bpf::{
    Instruction, attach_device_program, attached_device_programs, detach_device_program,
    load_device_program,
};
pub(crate) use clone::{NewProcess, spawn};
pub(crate) use filter::{install_filter, knows_filter_flags};
pub use mount::{Attributes, set_attributes};
pub(crate) use namespace::{namespace_type, set_namespace, unshare};
pub use process::trim_heap;
pub(crate) use process::{
    SchedulerAttributes, close_all_from, close_inherited, close_on_exec_from, execute, is_dumpable,
    new_session_keyring, set_affinity, set_dumpable, set_io_priority, set_memory_policy,
    set_personality, set_scheduler,
};
pub(crate) use signal::{collect_children, reset_signals, send_signal};

use std::io;

/// The result of a raw system call as an `io::Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
