//! Writes cpio archives of the kind that the kernel unpacks as its initramfs.

/// An archive in the "newc" format, deterministic: entries keep their order, and
/// owners and times are zero.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_600;

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents come first: the kernel makes none by itself.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file with the given permissions.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, REGULAR | permissions, (0, 0), content);
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER, (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let fields = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            1, // links
            0, // modification time
            content.len() as u32,
            0, // device, major and minor
            0,
            device.0, // the device that the node stands for
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused in newc
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lays_entries_out_as_newc() {
        let mut archive = Archive::new();
        archive.directory("/dev");
        archive.character_device("/dev/console", 5, 1);
        archive.file("init", 0o755, b"abc");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);

        let mut at = 0;
        let mut seen = Vec::new();
        while at < bytes.len() {
            let header = &bytes[at..at + 110];
            assert_eq!(&header[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&header[6 + index * 8..][..8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = std::str::from_utf8(&bytes[at + 110..][..name_size - 1]).unwrap();
            let start = (at + 110 + name_size).next_multiple_of(4);
            let content = bytes[start..start + size].to_vec();
            seen.push((name.to_owned(), field(1), field(9), field(10), content));
            at = (start + size).next_multiple_of(4);
        }
        assert_eq!(seen.pop().unwrap().0, "TRAILER!!!");
        assert_eq!(
            seen,
            [
                ("dev".into(), 0o040_755, 0, 0, vec![]),
                ("dev/console".into(), 0o020_600, 5, 1, vec![]),
                ("init".into(), 0o100_755, 0, 0, b"abc".to_vec()),
            ]
        );
    }
}
