//! Runs the repository's scripts that build what the test host is made of. Each
//! keeps its result in the cache and returns at once when it is there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Error;

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
}

/// Runs `scripts/<name>`; what it says on standard error goes to ours.
/// Returns the path that it prints last.
pub fn build(name: &str, arguments: &[&str]) -> Result<PathBuf, Error> {
    let path = repository().join("scripts").join(name);
    let failed = |reason: String| Error::Build {
        script: path.display().to_string(),
        reason,
    };
    let output = Command::new(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}, see its messages above", output.status)));
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    match printed.lines().last() {
        Some(line) if Path::new(line).exists() => Ok(PathBuf::from(line)),
        last => Err(failed(format!("it printed no existing path: {last:?}"))),
    }
}
