//! Processes of the host that this runs on.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Pids of the processes whose program has this name.
pub fn running(program: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|path| path.file_name().is_some_and(|name| name == program))
        })
        .collect()
}

/// Kills a process; `false`: it is gone already.
pub fn end(pid: i32) -> bool {
    kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
}
