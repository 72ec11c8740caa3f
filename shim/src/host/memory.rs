//! What a process costs the host, from its smaps; a VMM's guest apart from itself.

use std::fs;
use std::io;
use std::path::Path;

/// Private bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Private {
    /// Of the guest's memory.
    pub guest: u64,
    /// Of the process itself.
    pub own: u64,
}

/// The flag by which the VMM keeps guest memory out of dumps.
const NO_DUMP: &str = "dd";

/// What process `pid` holds alone and the host cannot drop: pages of its program are not
/// counted, which the next pod shares. `guest_files` are mapped into guest memory.
///
/// # Errors
/// When the process is gone.
pub fn private(pid: i32, guest_files: &[&Path]) -> io::Result<Private> {
    Ok(count(
        &fs::read_to_string(format!("/proc/{pid}/smaps"))?,
        guest_files,
    ))
}

fn count(smaps: &str, guest_files: &[&Path]) -> Private {
    let mut private = Private::default();
    let (mut here, mut is_file) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            // The last line of a mapping.
            (Some("VmFlags:"), _) => {
                let guest = is_file || line.split_ascii_whitespace().any(|flag| flag == NO_DUMP);
                if guest {
                    private.guest += here;
                } else {
                    private.own += here;
                }
            }
            (Some("Private_Dirty:"), Some(kib)) => {
                here += kib.parse::<u64>().unwrap_or(0) * 1024;
            }
            // A mapping's first line is the only one whose first word is no key.
            (Some(word), _) if !word.ends_with(':') => {
                here = 0;
                is_file = guest_files
                    .iter()
                    .any(|file| Some(*file) == line.rsplit(' ').next().map(Path::new));
            }
            _ => {}
        }
    }
    private
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_told_from_the_vmms() {
        let smaps = "1000-2000 rw-p 00000000 00:00 0\n\
            Size: 262144 kB\nPrivate_Dirty: 9000 kB\nVmFlags: rd wr mr mw me nr dd\n\
            2000-3000 rw-p 00000000 fe:00 7   /joey/vmlinux\nPrivate_Dirty: 100 kB\nVmFlags: rd\n\
            3000-4000 rw-p 00000000 00:00 0\nPrivate_Clean: 4 kB\nPrivate_Dirty: 8 kB\nVmFlags: rd\n";
        let private = count(smaps, &[Path::new("/joey/vmlinux")]);
        assert_eq!((private.guest, private.own), (9100 << 10, 8 << 10));
    }
}
