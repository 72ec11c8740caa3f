//! What a sandbox costs the host, from the smaps of its processes: the guest's memory apart
//! from the VMM's own.

use std::fs;
use std::io;
use std::path::Path;

/// Bytes of the host's memory that a sandbox uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the VMM holds alone, without its guest's memory.
    pub vmm: u64,
    /// What the shim holds alone.
    pub shim: u64,
    /// What the guest has written to: its own, and its copies of what all guests share.
    pub guest_private: u64,
    /// Pages of files that VMM, shim and guest have mapped: programs, the guest kernel, the
    /// agent, templates, images. Other sandboxes map the same ones.
    pub shared: u64,
}

impl Memory {
    /// Of the processes with these ids; of one that is gone, nothing. `guest_files` are
    /// mapped into guest memory. The kernel walks all pages of both: milliseconds.
    pub fn of(vmm: Option<i32>, shim: Option<i32>, guest_files: &[&Path]) -> Memory {
        let read = |pid: Option<i32>| pid.and_then(|pid| smaps(pid).ok()).unwrap_or_default();
        Memory::in_smaps(&read(vmm), &read(shim), guest_files)
    }

    fn in_smaps(vmm: &str, shim: &str, guest_files: &[&Path]) -> Memory {
        let (vmm, shim) = (parse(vmm), parse(shim));
        let is_guests =
            |mapping: &&Mapping| mapping.is_undumped || guest_files.contains(&mapping.file);
        let (guests, own): (Vec<_>, Vec<_>) = vmm.iter().partition(is_guests);
        Memory {
            vmm: own.into_iter().map(Mapping::private).sum(),
            shim: shim.iter().map(Mapping::private).sum(),
            guest_private: guests.into_iter().map(Mapping::private).sum(),
            shared: vmm.iter().chain(&shim).map(Mapping::shared).sum(),
        }
    }

    /// Each number under its name.
    pub fn parts(&self) -> [(&'static str, u64); 4] {
        [
            ("vmm", self.vmm),
            ("shim", self.shim),
            ("guest_private", self.guest_private),
            ("shared", self.shared),
        ]
    }
}

fn smaps(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/smaps"))
}

/// The flag by which the VMM keeps guest memory out of dumps.
const NO_DUMP: &str = "dd";

/// A mapping, in bytes.
#[derive(Debug)]
struct Mapping<'a> {
    file: &'a Path,
    is_undumped: bool,
    /// Whether what is written stays with the process (MAP_PRIVATE).
    is_private: bool,
    resident: u64,
    anonymous: u64,
    clean_alone: u64,
    dirty_alone: u64,
}

impl Mapping<'_> {
    /// What the process holds alone and the host cannot drop. In a private mapping these are
    /// anonymous pages: the process's copies. A file's page that nobody else has mapped yet
    /// is no cost of this process, the next one shares it; and on a tmpfs it looks dirty.
    fn private(&self) -> u64 {
        match self.is_private {
            // Less than the anonymous ones where a child has not written since its fork.
            true => self.anonymous.min(self.clean_alone + self.dirty_alone),
            false => self.dirty_alone,
        }
    }

    fn shared(&self) -> u64 {
        self.resident.saturating_sub(self.private())
    }
}

fn parse(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        // A mapping's first line is the only one whose first word is no key.
        if !key.ends_with(':') {
            mappings.push(Mapping {
                // Behind offset, device and inode, if there is one.
                file: Path::new(words.nth(3).unwrap_or_default()),
                is_undumped: false,
                is_private: value.ends_with('p'),
                resident: 0,
                anonymous: 0,
                clean_alone: 0,
                dirty_alone: 0,
            });
            continue;
        }
        let Some(mapping) = mappings.last_mut() else {
            continue;
        };
        let bytes = || value.parse::<u64>().unwrap_or(0) * 1024;
        match key {
            "Rss:" => mapping.resident = bytes(),
            "Anonymous:" => mapping.anonymous = bytes(),
            "Private_Clean:" => mapping.clean_alone = bytes(),
            "Private_Dirty:" => mapping.dirty_alone = bytes(),
            "VmFlags:" => mapping.is_undumped = value == NO_DUMP || words.any(|f| f == NO_DUMP),
            _ => {}
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::AsRawFd;
    use std::process::{self, Command, Stdio};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    /// Guest memory, the kernel's file, the program, the VMM's heap, an arena that virtiofsd
    /// has mapped too.
    const VMM: &str = "1000-2000 rw-p 00000000 00:00 0\n\
        Size: 262144 kB\nRss: 9000 kB\nPrivate_Dirty: 9000 kB\nAnonymous: 9000 kB\n\
        VmFlags: rd wr mr mw me nr dd\n\
        2000-3000 rw-p 00000000 fe:00 7                          /joey/vmlinux\n\
        Rss: 700 kB\nShared_Clean: 600 kB\nPrivate_Dirty: 100 kB\nAnonymous: 100 kB\nVmFlags: rd wr\n\
        3000-4000 r-xp 00000000 fe:00 8                          /joey/joey-vmm\n\
        Rss: 500 kB\nPrivate_Clean: 500 kB\nAnonymous: 0 kB\nVmFlags: rd ex\n\
        4000-5000 rw-p 00000000 00:00 0                          [heap]\n\
        Rss: 12 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 8 kB\nAnonymous: 12 kB\nVmFlags: rd wr\n\
        5000-6000 rw-s 00000000 00:01 9                          /memfd:arena (deleted)\n\
        Rss: 50 kB\nShared_Dirty: 30 kB\nPrivate_Dirty: 20 kB\nAnonymous: 0 kB\nVmFlags: rd wr sh\n";
    /// A template's memory: 40 KiB are copied, 60 nobody else has mapped yet, 900 others too.
    const RESTORED: &str = "1000-2000 rw-p 00000000 00:19 7      /run/joey/templates/a/memory\n\
        Size: 262144 kB\nRss: 1000 kB\nShared_Clean: 0 kB\nShared_Dirty: 900 kB\n\
        Private_Clean: 0 kB\nPrivate_Dirty: 100 kB\nAnonymous: 40 kB\nVmFlags: rd wr dd\n";
    const SHIM: &str = "1000-2000 rw-p 00000000 00:00 0\n\
        Rss: 30 kB\nShared_Clean: 10 kB\nPrivate_Dirty: 20 kB\nAnonymous: 30 kB\nVmFlags: rd wr\n";

    #[test]
    fn the_guests_memory_is_told_from_the_vmms() {
        let memory = Memory::in_smaps(VMM, SHIM, &[Path::new("/joey/vmlinux")]);
        let expected = [
            ("vmm", 32 << 10),
            ("shim", 20 << 10),
            ("guest_private", 9100 << 10),
            ("shared", (600 + 500 + 30 + 10) << 10),
        ];
        assert_eq!(memory.parts(), expected);
    }

    #[test]
    fn pages_of_a_template_are_private_when_they_are_copied() {
        let memory = Memory::in_smaps(RESTORED, "", &[]);
        assert_eq!(
            (memory.guest_private, memory.shared),
            (40 << 10, 960 << 10),
            "{memory:?}"
        );
        assert_eq!((memory.vmm, memory.shim), (0, 0));
    }

    /// A program on a tmpfs that nobody else has mapped looks dirty and private, as a
    /// template's memory does under its first sandbox.
    #[test]
    fn what_is_mapped_from_a_tmpfs_is_no_copy() {
        let mut file = File::from(memfd_create("template", MemfdFlags::empty()).unwrap());
        file.write_all(&fs::read("/bin/bash").unwrap()).unwrap();
        // A file that is open for writing is not executed.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let program = File::open(&path).unwrap();
        drop(file);
        let mut child = Command::new(format!(
            "/proc/{}/fd/{}",
            process::id(),
            program.as_raw_fd()
        ))
        .args(["-c", "echo there; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");

        let pid = i32::try_from(child.id()).unwrap();
        let memory = Memory::of(Some(pid), None, &[Path::new("/memfd:template")]);
        drop(child.stdin.take());
        child.wait().unwrap();
        // Its data segment is copied where it is written to.
        assert!(
            (4096..200 << 10).contains(&memory.guest_private),
            "{memory:?}"
        );
        assert!(memory.shared > 300 << 10, "{memory:?}");
        assert!(memory.vmm > 0, "{memory:?}");
    }
}
