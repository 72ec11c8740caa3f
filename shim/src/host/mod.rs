//! What a sandbox has on the host: a cgroup, a scratch disk, a user id, a
//! directory with its record.

pub mod cgroup;
pub mod dead;
pub mod files;
pub mod lock;
pub mod memory;
pub mod oom_score;
pub mod record;
pub mod remains;
pub mod scratch;
pub mod uids;
