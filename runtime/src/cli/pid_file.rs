//! The file in which a caller finds a process's id.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes the file, whole or not at all: who waits for it must not read half a number.
pub(super) fn write(path: &Path, pid: u32) -> Result<()> {
    let name = path.file_name().context("the pid file has no name")?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let new = path.with_file_name(hidden);
    let write = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&new)?
            .write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&new, path)
    };
    write().map_err(|error| {
        // What is left when the name could not be given.
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(&new);
        }
        anyhow::Error::new(error).context(format!("write the pid file {}", path.display()))
    })
}
