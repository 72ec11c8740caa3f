//! PID 1 of joey's microVM.
//!
//! One thread, one event loop: the OCI engine forks, and a fork is only safe when
//! no other thread can hold a lock. What blocks (mounts, the engine) is short and
//! runs on that thread; everything that waits for someone else is a future.
//!
//! * [`boot`] makes the machine usable, [`service`] and [`guest_service`] answer
//!   the host over ttrpc, [`tasks`] is what they act on.
//! * [`streams`] and [`stdio`] carry bytes between processes and the host, [`forward`]
//!   does for connections to the pod's loopback.
//! * [`console`] runs the host's debug shell, if the host has one.
//! * [`storage`] mounts root file systems, [`volumes`] what containers mount beside
//!   them, [`spec`] fits the OCI spec to both.
//! * [`reaper`], [`oom`] and [`events`] tell the host what happened.

pub mod boot;
pub mod clock;
pub mod console;
pub mod events;
pub mod forward;
pub mod guest_service;
pub mod logger;
pub mod metrics;
mod netlink;
pub mod network;
pub mod oom;
pub mod process;
pub mod reaper;
pub mod resources;
pub mod server;
pub mod service;
pub mod spec;
pub mod stdio;
pub mod storage;
pub mod streams;
mod sys;
pub mod tasks;
mod trash;
pub mod volumes;
