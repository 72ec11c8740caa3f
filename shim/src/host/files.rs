//! The files that a VM is made of, opened and looked at before the VMM gets them, and those
//! that it writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// An ELF header up to the machine: magic, class, data, ..., type, machine.
const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
const ELF_X86_64: u16 = 62;

/// What a newc cpio archive starts with, without and with checksums.
const CPIO_MAGIC: [&[u8]; 2] = [b"070701", b"070702"];

/// A file that a VM cannot be made of.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened.
    #[error("cannot open the {what} {}; {hint}", path.display())]
    Open {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("the {what} {} is not {wanted}; {hint}", path.display())]
    Format {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
        /// What to do.
        hint: &'static str,
    },
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// When it is missing or not for this process.
pub fn kvm() -> Result<File, FileError> {
    let path = Path::new("/dev/kvm");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| {
            let hint = match source.kind() {
                io::ErrorKind::NotFound => {
                    "enable virtualization in the firmware and load kvm_intel or kvm_amd; \
                     `joeyctl doctor` tells more"
                }
                io::ErrorKind::PermissionDenied => "run containerd as root",
                _ => "`joeyctl doctor` tells more",
            };
            FileError::Open {
                what: "KVM device",
                path: path.into(),
                hint,
                source,
            }
        })
}

/// Opens the guest kernel.
///
/// # Errors
/// When it is missing or no x86-64 ELF.
pub fn kernel(path: &Path) -> Result<File, FileError> {
    let (what, hint) = (
        "guest kernel",
        "build it with scripts/kernel/build.sh or set `kernel` in the configuration",
    );
    let file = open(path, what, hint)?;
    if !is_x86_64_elf(&file) {
        return Err(FileError::Format {
            what,
            path: path.into(),
            wanted: "an uncompressed ELF image (vmlinux) for x86-64",
            hint,
        });
    }
    Ok(file)
}

/// Opens the initramfs with the agent.
///
/// # Errors
/// When it is missing or no cpio archive.
pub fn agent(path: &Path) -> Result<File, FileError> {
    let (what, hint) = ("agent", "install it or set `agent` in the configuration");
    let file = open(path, what, hint)?;
    let mut magic = [0; 6];
    if file.read_exact_at(&mut magic, 0).is_err() || !CPIO_MAGIC.contains(&&magic[..]) {
        return Err(FileError::Format {
            what,
            path: path.into(),
            wanted: "an uncompressed cpio archive (newc)",
            hint,
        });
    }
    Ok(file)
}

/// Looks whether the VMM can be run.
///
/// # Errors
/// When it is missing or no executable for x86-64.
pub fn vmm(path: &Path) -> Result<(), FileError> {
    let (what, hint) = ("VMM", "install it or set `vmm` in the configuration");
    let file = open(path, what, hint)?;
    let executable = file
        .metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0);
    if !executable || !is_x86_64_elf(&file) {
        return Err(FileError::Format {
            what,
            path: path.into(),
            wanted: "an executable for x86-64",
            hint,
        });
    }
    Ok(())
}

/// A new file in a directory, without a name: it goes when the last process closes it.
///
/// # Errors
/// When the directory cannot be written, or its filesystem has no such files.
pub fn unnamed(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
}

fn open(path: &Path, what: &'static str, hint: &'static str) -> Result<File, FileError> {
    File::open(path).map_err(|source| FileError::Open {
        what,
        path: path.into(),
        hint,
        source,
    })
}

fn is_x86_64_elf(file: &File) -> bool {
    let mut head = [0u8; 20];
    file.read_exact_at(&mut head, 0).is_ok()
        && head.starts_with(ELF_MAGIC)
        && head[4] == ELF_CLASS_64
        && head[5] == ELF_LITTLE_ENDIAN
        && u16::from_le_bytes([head[18], head[19]]) == ELF_X86_64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_wrong_kind_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for error in [kernel(&path).unwrap_err(), agent(&path).unwrap_err()] {
            assert!(matches!(error, FileError::Open { .. }));
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
        std::fs::write(&path, "#!/bin/sh\n # padding to a header").unwrap();
        for error in [
            kernel(&path).unwrap_err(),
            agent(&path).unwrap_err(),
            vmm(&path).unwrap_err(),
        ] {
            assert!(matches!(error, FileError::Format { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
    }

    #[test]
    fn another_machines_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        let mut head = [0u8; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[18] = 183; // AArch64
        std::fs::write(&path, head).unwrap();
        assert!(kernel(&path).is_err());
        head[18] = 62;
        std::fs::write(&path, head).unwrap();
        kernel(&path).unwrap();
    }
}
