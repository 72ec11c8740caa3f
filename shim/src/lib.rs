//! containerd's shim for joey: one process per pod, owner of the pod's microVM, or of its
//! containers on the host's kernel ([`shared`]).

pub mod bootstrap;
pub mod cleanup;
pub mod config;
pub mod error;
pub mod events;
pub mod features;
pub mod forward;
pub mod guest;
pub mod guest_spec;
pub mod host;
pub mod images;
pub mod limit;
pub mod logging;
pub mod metrics;
pub mod pod;
pub mod pool;
pub mod printable;
pub mod process;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod shared;
pub mod stages;
pub mod streams;
pub mod task_state;
pub mod telemetry;
pub mod templates;
pub mod vm;
pub mod vmm_log;
pub mod volumes;
