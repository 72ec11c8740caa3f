//! Which version of the Task API to announce.
//!
//! containerd 1.7 refuses a shim that announces version 3, and does not say so
//! beforehand: the MAX_SHIM_VERSION that it sets is 2 in containerd 2 as well.
//! Version 2 works with both, but makes containerd 2 run the shim's binary for
//! each container's start and end. So the program that started us is looked at:
//! Go records in it which packages it was built from.

use std::fs::File;
use std::path::{Path, PathBuf};

use containerd_shim_protos::TASK_API_VERSION;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ReadCache};

/// What every containerd takes.
const OLDEST: i32 = 2;

/// The Go module that containerd 2 is, alone or within another program.
const CONTAINERD_2: &[u8] = b"github.com/containerd/containerd/v2";

/// Where Go keeps a program's build information.
const BUILD_INFO: &str = ".go.buildinfo";

/// Most that is read of it, in bytes; containerd's own has less than one thousand,
/// programs that list their dependencies have tens of thousands.
const MAX_BUILD_INFO: u64 = 1 << 20;

/// The version for the containerd that started this process.
pub fn for_caller() -> i32 {
    let parent = std::os::unix::process::parent_id();
    of(&PathBuf::from(format!("/proc/{parent}/exe")))
}

/// The version for a program: the newest where it is known to take it.
fn of(program: &Path) -> i32 {
    let is_2 = build_info(program).is_some_and(|info| {
        info.windows(CONTAINERD_2.len())
            .any(|part| part == CONTAINERD_2)
    });
    if is_2 { TASK_API_VERSION } else { OLDEST }
}

fn build_info(program: &Path) -> Option<Vec<u8>> {
    let cache = ReadCache::new(File::open(program).ok()?);
    let elf: ElfFile64<'_, object::Endianness, _> = ElfFile64::parse(&cache).ok()?;
    let section = elf.section_by_name(BUILD_INFO)?;
    let data = (section.size() <= MAX_BUILD_INFO).then(|| section.data());
    data?.ok().map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// An ELF file whose only section of note is `name` with `content`.
    fn elf(name: &str, content: &[u8]) -> tempfile::NamedTempFile {
        let names = format!("\0{name}\0.shstrtab\0");
        let mut file = vec![0u8; 64];
        file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        let put = |file: &mut Vec<u8>, at: usize, value: &[u8]| {
            file[at..at + value.len()].copy_from_slice(value);
        };
        let content_at = file.len() as u64;
        file.extend(content);
        let names_at = file.len() as u64;
        file.extend(names.as_bytes());
        let sections_at = file.len() as u64;
        let mut section = |name: u32, kind: u32, offset: u64, size: u64| {
            let mut header = vec![0u8; 64];
            put(&mut header, 0, &name.to_le_bytes());
            put(&mut header, 4, &kind.to_le_bytes());
            put(&mut header, 24, &offset.to_le_bytes());
            put(&mut header, 32, &size.to_le_bytes());
            file.extend(header);
        };
        section(0, 0, 0, 0);
        section(1, 1, content_at, content.len() as u64);
        let last = u32::try_from(name.len() + 2).unwrap();
        section(last, 3, names_at, names.len() as u64);
        put(&mut file, 16, &2u16.to_le_bytes());
        put(&mut file, 18, &62u16.to_le_bytes());
        put(&mut file, 20, &1u32.to_le_bytes());
        put(&mut file, 40, &sections_at.to_le_bytes());
        put(&mut file, 52, &64u16.to_le_bytes());
        put(&mut file, 58, &64u16.to_le_bytes());
        put(&mut file, 60, &3u16.to_le_bytes());
        put(&mut file, 62, &2u16.to_le_bytes());
        let temporary = tempfile::NamedTempFile::new().unwrap();
        fs::write(temporary.path(), file).unwrap();
        temporary
    }

    #[test]
    fn version_3_is_for_containerd_2_alone() {
        let two = b"\xff Go buildinf:path\tgithub.com/containerd/containerd/v2/cmd/containerd\n";
        assert_eq!(of(elf(BUILD_INFO, two).path()), 3);
        let part =
            b"path\tgithub.com/k3s-io/k3s\ndep\tgithub.com/containerd/containerd/v2\tv2.1.4\n";
        assert_eq!(of(elf(BUILD_INFO, part).path()), 3);
        let one = b"path\tgithub.com/containerd/containerd/cmd/containerd\n";
        assert_eq!(of(elf(BUILD_INFO, one).path()), 2);
    }

    #[test]
    fn whoever_is_not_known_gets_what_all_take() {
        assert_eq!(of(elf(".data", CONTAINERD_2).path()), 2);
        assert_eq!(of(Path::new("/etc/passwd")), 2);
        assert_eq!(of(Path::new("/none")), 2);
        assert_eq!(for_caller(), 2, "cargo is no containerd");
    }
}
