//! What a process costs the host: its private memory, from smaps_rollup.

use std::io;

use super::report::Cost;

/// Mappings of guest memory: anonymous memory that the VMM has named, and the
/// kernel and agent that it maps over it.
const GUEST: [&str; 3] = ["[anon:guest memory]", "/vmlinux", "/agent.cpio"];

/// What the sandbox whose VMM is `vmm` costs. Its shim is the VMM's parent.
pub fn cost_of_sandbox(vmm: u32) -> io::Result<Cost> {
    let smaps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/smaps"));
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status"))?;
    let shim = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no PPid in a process's status"))?;
    let of_vmm = smaps(vmm)?;
    Ok(Cost {
        vmm: private_bytes(&of_vmm, |guest| !guest),
        shim: private_bytes(&smaps(shim)?, |_| true),
        guest_private: private_bytes(&of_vmm, |guest| guest),
    })
}

/// Adds up the private lines of the mappings that `counts` accepts, told whether
/// they are guest memory.
fn private_bytes(smaps: &str, counts: impl Fn(bool) -> bool) -> u64 {
    let mut counting = true;
    let mut total = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Private_Clean:" | "Private_Dirty:"), Some(kib)) if counting => {
                total += kib.parse::<u64>().unwrap_or(0) * 1024;
            }
            // A mapping's first line is the only one whose first word is no key.
            (Some(word), _) if !word.ends_with(':') => {
                counting = counts(GUEST.iter().any(|name| line.ends_with(name)));
            }
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::private_bytes;

    const SMAPS: &str = "1000-2000 rw-p 00000000 00:00 0   [anon:guest memory]\n\
        Size: 262144 kB\nPrivate_Dirty: 9000 kB\n\
        2000-3000 rw-p 00000000 fe:00 7   /usr/local/share/joey/vmlinux\nPrivate_Dirty: 100 kB\n\
        3000-4000 rw-p 00000000 00:00 0\nSize: 128 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 8 kB\n";

    #[test]
    fn tells_the_guests_memory_from_the_vmms() {
        assert_eq!(private_bytes(SMAPS, |_| true), 9112 * 1024);
        assert_eq!(private_bytes(SMAPS, |guest| !guest), 12 * 1024);
        assert_eq!(private_bytes(SMAPS, |guest| guest), 9100 * 1024);
    }
}
