//! What a sandbox costs the host, from its processes' smaps.

use std::io;

use super::report::Cost;

/// Files that the VMM maps into guest memory.
const GUEST_FILES: [&str; 2] = ["/vmlinux", "/agent.cpio"];
/// The flag by which the VMM keeps guest memory out of dumps.
const NO_DUMP: &str = "dd";

/// What the sandbox whose VMM is `vmm` costs. Its shim is the VMM's parent. Another
/// sandbox must be there, else what all of them share counts as this one's own.
pub fn cost_of_sandbox(vmm: u32) -> io::Result<Cost> {
    let smaps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/smaps"));
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status"))?;
    let shim = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("no PPid in a process's status"))?;
    let (of_vmm, of_shim) = (smaps(vmm)?, smaps(shim)?);
    Ok(Cost {
        vmm: bytes(&of_vmm, PRIVATE, |guest| !guest),
        shim: bytes(&of_shim, PRIVATE, |_| true),
        guest_private: bytes(&of_vmm, PRIVATE, |guest| guest),
        shared: bytes(&of_vmm, SHARED, |_| true) + bytes(&of_shim, SHARED, |_| true),
    })
}

/// Lines of smaps.
const PRIVATE: [&str; 2] = ["Private_Clean:", "Private_Dirty:"];
const SHARED: [&str; 2] = ["Shared_Clean:", "Shared_Dirty:"];

/// Adds up these lines of the mappings that `counts` accepts, told whether they are
/// guest memory.
fn bytes(smaps: &str, lines: [&str; 2], counts: impl Fn(bool) -> bool) -> u64 {
    let (mut total, mut here, mut is_file) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            // The last line of a mapping.
            (Some("VmFlags:"), _) => {
                let guest = is_file || line.split_whitespace().any(|flag| flag == NO_DUMP);
                if counts(guest) {
                    total += here;
                }
            }
            (Some(key), Some(kib)) if lines.contains(&key) => {
                here += kib.parse::<u64>().unwrap_or(0) * 1024;
            }
            // A mapping's first line is the only one whose first word is no key.
            (Some(word), _) if !word.ends_with(':') => {
                here = 0;
                is_file = GUEST_FILES.iter().any(|name| line.ends_with(name));
            }
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::{PRIVATE, SHARED, bytes};

    const SMAPS: &str = "1000-2000 rw-p 00000000 00:00 0\n\
        Size: 262144 kB\nPrivate_Dirty: 9000 kB\nVmFlags: rd wr mr mw me nr dd\n\
        2000-3000 rw-p 00000000 fe:00 7   /usr/local/share/joey/vmlinux\nPrivate_Dirty: 100 kB\nVmFlags: rd wr\n\
        3000-4000 rw-p 00000000 00:00 0\nSize: 128 kB\nShared_Clean: 50 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 8 kB\nVmFlags: rd wr\n";

    #[test]
    fn tells_the_guests_memory_from_the_vmms() {
        assert_eq!(bytes(SMAPS, PRIVATE, |_| true), 9112 * 1024);
        assert_eq!(bytes(SMAPS, PRIVATE, |guest| !guest), 12 * 1024);
        assert_eq!(bytes(SMAPS, PRIVATE, |guest| guest), 9100 * 1024);
        assert_eq!(bytes(SMAPS, SHARED, |_| true), 50 * 1024);
    }
}
