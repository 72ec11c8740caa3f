//! joey in a test host: what is installed, and where it comes from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::testbed::{Error, Layer, repository};

/// Programs, in [`BINARIES`]' order the way `make install` places them.
pub const BIN: &str = "/usr/local/bin";
/// Guest kernel and agent archive.
pub const SHARE: &str = "/usr/local/share/joey";
/// What goes to [`BIN`].
pub const BINARIES: [&str; 4] = ["containerd-shim-joey-v2", "joey-vmm", "joeyctl", "joey"];
/// The first of [`BINARIES`] by the name that stands for pods on the host's kernel.
pub const SHARED_KERNEL: &str = "containerd-shim-joey-runc-v2";
/// What goes to [`SHARE`].
pub const GUEST: [&str; 2] = ["vmlinux", "agent.cpio"];
/// Where the tests find `treesum` in the test host.
pub const TREESUM: &str = "/usr/local/libexec/treesum";

/// Names a directory that holds [`BINARIES`] and [`GUEST`] already, so that nothing
/// is built: make has done it, or somebody tests what was built elsewhere.
pub const PARTS: &str = "JOEY_PARTS";

/// Builds joey (quick when nothing changed) and returns the directory that holds
/// [`BINARIES`] and [`GUEST`].
pub fn build() -> Result<PathBuf, Error> {
    if std::env::var_os(PARTS).is_some() {
        return Ok(directory());
    }
    let script = repository().join("scripts/build.sh");
    let failed = |reason: String| Error::Build {
        script: script.display().to_string(),
        reason,
    };
    let status = Command::new(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(failed(format!("{status}, see its messages above")));
    }
    Ok(directory())
}

/// Where the build puts one of [`BINARIES`] or [`GUEST`].
pub fn binary(name: &str) -> PathBuf {
    directory().join(name)
}

fn directory() -> PathBuf {
    if let Some(parts) = std::env::var_os(PARTS) {
        return parts.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    repository().join(Path::new(&target)).join("joey")
}

/// Builds joey and adds it to a test host's files, with the tools that the tests
/// run inside.
pub fn add_joey(layer: Layer) -> Result<Layer, Error> {
    let from = build()?;
    let treesum = crate::testbed::build("testhost/build-init.sh", &["treesum"])?;
    let layer = layer.file(
        from.join(BINARIES[0]),
        format!("{BIN}/{SHARED_KERNEL}"),
        0o755,
    );
    let layer = BINARIES.iter().fold(layer, |layer, name| {
        layer.file(from.join(name), format!("{BIN}/{name}"), 0o755)
    });
    let layer = GUEST.iter().fold(layer, |layer, name| {
        layer.file(from.join(name), format!("{SHARE}/{name}"), 0o644)
    });
    Ok(layer.file(treesum, TREESUM, 0o755))
}
