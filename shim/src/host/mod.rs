//! What a sandbox has on the host: a cgroup, a scratch disk, a user id, a
//! directory with its record, and with all others a network without anything.

pub mod cgroup;
pub mod dead;
pub mod files;
pub mod lock;
pub mod memory;
pub mod no_network;
pub mod oom_score;
pub mod record;
pub mod remains;
pub mod scratch;
pub mod uids;
