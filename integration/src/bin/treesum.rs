//! Prints one line for each path below a directory, sorted: type, mode, owner,
//! device number, link target, extended attributes and the content's SHA-256.
//! Static, so that it runs in any container: two runtimes show the same tree if
//! and only if the lines are equal.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// Mounted or written by every runtime on its own, or by this very test.
const SKIPPED: [&str; 7] = [
    "/proc",
    "/sys",
    "/dev",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/tmp/treesum",
];

fn main() -> anyhow::Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .context("usage: treesum DIRECTORY")?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    walk(Path::new(&root), &mut out)?;
    out.flush()?;
    Ok(())
}

fn walk(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    if SKIPPED.iter().any(|skipped| path == Path::new(skipped)) {
        return Ok(());
    }
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let kind = meta.file_type();
    let (letter, content) = if kind.is_file() {
        let mut hash = Sha256::new();
        io::copy(&mut fs::File::open(path)?, &mut hash)?;
        ('f', hex(&hash.finalize()))
    } else if kind.is_symlink() {
        ('l', fs::read_link(path)?.display().to_string())
    } else if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_char_device() {
        ('c', meta.rdev().to_string())
    } else if kind.is_block_device() {
        ('b', meta.rdev().to_string())
    } else {
        ('p', String::new())
    };
    let mut attributes: Vec<String> = Vec::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        attributes.push(format!("{}={}", name.to_string_lossy(), hex(&value)));
    }
    attributes.sort();
    // A directory's link count differs between file systems, a file's is content.
    let links = if kind.is_file() { meta.nlink() } else { 0 };
    writeln!(
        out,
        "{} {letter} {:o} {}:{} links={links} [{}] {content}",
        path.display(),
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        attributes.join(" "),
    )?;
    if kind.is_dir() {
        let mut children: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        children.sort();
        for child in children {
            walk(&child, out)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
