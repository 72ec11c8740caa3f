//! How willingly the host's kernel kills a process when it is out of memory: from -1000,
//! never, to 1000, first (proc_pid_oom_score_adj(5)). A child inherits it.

use std::fs;
use std::io;

/// A process with this score is never killed.
pub const NEVER: i32 = -1000;

/// The score of a process.
///
/// # Errors
/// When the process is gone.
pub fn of(pid: u32) -> io::Result<i32> {
    let score = fs::read_to_string(path(pid))?;
    score.trim().parse().map_err(io::Error::other)
}

/// Gives a process another.
///
/// # Errors
/// When the process is gone, or without the right to make it less willing.
pub fn set(pid: u32, score: i32) -> io::Result<()> {
    fs::write(path(pid), score.to_string())
}

fn path(pid: u32) -> String {
    format!("/proc/{pid}/oom_score_adj")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_score_is_read_back() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        set(child.id(), 500).unwrap();
        let score = of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(score.unwrap(), 500);
        assert!(of(child.id()).is_err());
    }
}
