//! Finding a command the way a shell does, in the container and as its user.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::message::{Failure, FailureKind, Step};
use crate::plan::ProcessPlan;

/// Where commands are looked for when the process has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file of the process's command, or why there is none. The messages are those that callers
/// of other engines look for.
pub(super) fn find(process: &ProcessPlan) -> Step<CString> {
    let name = OsStr::from_bytes(process.args[0].to_bytes());
    if name.as_bytes().contains(&b'/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(process.args[0].clone()),
            Err(error) => Err(failure(name, error)),
        };
    }
    let path = process.variable("PATH").unwrap_or(OsStr::new(DEFAULT_PATH));
    path.as_bytes()
        .split(|byte| *byte == b':')
        // An empty entry would mean the working directory, which the image's user may not expect.
        .filter(|entry| !entry.is_empty() && !name.is_empty())
        .map(|entry| PathBuf::from(OsStr::from_bytes(entry)).join(name))
        .find(|path| executable(path).is_ok())
        .and_then(|path| CString::new(path.into_os_string().into_vec()).ok())
        .ok_or_else(|| Failure {
            kind: FailureKind::CommandNotFound,
            stage: "find the command".to_owned(),
            text: format!("exec: {name:?}: executable file not found in $PATH"),
        })
}

fn executable(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(
        match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
            // Seccomp profiles that are older than faccessat2 refuse it. The other call leaves out
            // capabilities of those who are not root.
            Err(Errno::PERM) => accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()),
            result => result,
        }?,
    )
}

fn failure(name: &OsStr, error: io::Error) -> Failure {
    let (kind, text) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (
            FailureKind::CommandNotFound,
            format!(
                "exec: {name:?}: stat {}: no such file or directory",
                name.display()
            ),
        ),
        io::ErrorKind::IsADirectory => (
            FailureKind::CommandNotExecutable,
            format!("exec: {name:?}: is a directory"),
        ),
        io::ErrorKind::PermissionDenied => (
            FailureKind::CommandNotExecutable,
            format!("exec: {name:?}: permission denied"),
        ),
        _ => (
            FailureKind::CommandNotExecutable,
            format!("exec: {name:?}: {error}"),
        ),
    };
    Failure {
        kind,
        stage: "find the command".to_owned(),
        text,
    }
}

/// What the kernel's refusal to execute `path` means.
pub(super) fn refused(path: &CString, error: &io::Error) -> Failure {
    let path = path.to_string_lossy();
    let (kind, text) = match error.raw_os_error() {
        // The file was there a moment ago: what is missing is its interpreter.
        Some(libc::ENOENT) => (FailureKind::CommandNotFound, "no such file or directory"),
        Some(libc::ENOEXEC) => (FailureKind::CommandNotExecutable, "exec format error"),
        Some(libc::EACCES) => (FailureKind::CommandNotExecutable, "permission denied"),
        _ => (FailureKind::CommandNotExecutable, ""),
    };
    Failure {
        kind,
        stage: "execute the command".to_owned(),
        text: match text {
            "" => format!("exec {path}: {error}"),
            text => format!("exec {path}: {text}"),
        },
    }
}

/// The user's home directory according to the container's /etc/passwd, read without the C library's
/// name services, which a static program does not have.
pub(super) fn home(uid: u32) -> Option<String> {
    use std::io::Read;
    const LONGEST: u64 = 1 << 20;
    // The image chooses what is at this path: a pipe must not hold the process up.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/etc/passwd")
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_that_of_the_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/ann"));
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 5), None);
    }
}
