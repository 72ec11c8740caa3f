//! `containerd-shim-joey-v2 start`: binds the pod's socket, leaves a process of
//! ours behind that serves it, and tells containerd where.

mod version;

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim::{Flags, socket_address};
use protocol::ids;
use serde::{Deserialize, Serialize};

use crate::host::oom_score;
use crate::pod::SANDBOX_ID;

/// Keeps the C library from giving each thread a heap of its own: the server is
/// there for the whole life of a pod, and should be small.
const MALLOC: [(&str, &str); 2] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// The file in a bundle from which containerd 1.7 learns our address when it is
/// started anew.
const ADDRESS: &str = "address";

/// The file in a bundle that keeps the runtime handler's options for the server: the
/// Sandbox API hands them to `start` alone.
pub const OPTIONS: &str = "joey-options";

/// Most options that are read, in bytes.
const MAX_OPTIONS: u64 = 1 << 20;

/// Why no process could be left behind.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// containerd's arguments are not its own.
    #[error("-{flag} is {value:?}, which is not valid; this program is started by containerd")]
    Flag {
        /// Its name.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// The bundle is unreadable.
    #[error("cannot read {}", .0.display())]
    Bundle(PathBuf, #[source] io::Error),
    /// The bundle cannot be written to.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// containerd's options cannot be read.
    #[error("cannot read the runtime's options from standard input")]
    Options(#[source] io::Error),
    /// The bundle's spec is not JSON.
    #[error("{} is not valid", .0.display())]
    Spec(PathBuf, #[source] serde_json::Error),
    /// A container's sandbox is gone.
    #[error("sandbox {0} is not running")]
    NoSandbox(String),
    /// The socket cannot be had.
    #[error("cannot listen on {}", .0.display())]
    Socket(PathBuf, #[source] io::Error),
    /// The server cannot be started.
    #[error("cannot start the shim's server")]
    Spawn(#[source] io::Error),
}

/// What containerd reads from our standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Of the Task API, and of this message.
    pub version: i32,
    /// "unix://" and a path.
    pub address: String,
    /// "ttrpc".
    pub protocol: &'static str,
}

/// The part of a spec that decides whose process serves it.
#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

/// Serves containerd's `start` in the bundle's directory.
///
/// # Errors
/// When the bundle is unreadable, the sandbox of a container is gone, or the
/// server cannot be started.
pub fn start(flags: &Flags, bundle: &Path) -> Result<Answer, BootstrapError> {
    check(flags)?;
    let spec = annotations(bundle)?;
    let group = group(flags, spec.as_ref())?;
    let address = address(flags, &group);
    let path = socket_path(&address);
    let keep = |name: &str, content: &[u8]| {
        let file = bundle.join(name);
        fs::write(&file, content).map_err(|error| BootstrapError::Write(file, error))
    };
    keep(ADDRESS, address.as_bytes())?;
    if spec.is_none() {
        keep(OPTIONS, &options()?)?;
    }
    let answer = Answer {
        version: version::for_caller(),
        address: address.clone(),
        protocol: "ttrpc",
    };
    if group != flags.id {
        // Only the sandbox's own process can hold its containers.
        return match UnixStream::connect(&path) {
            Ok(_) => Ok(answer),
            Err(_) => Err(BootstrapError::NoSandbox(group)),
        };
    }
    let Some(listener) = listen(&path)? else {
        return Ok(answer);
    };
    match serve(flags, bundle, listener) {
        Ok(()) => Ok(answer),
        Err(error) => {
            // Nobody answers on it.
            let _ = fs::remove_file(&path);
            Err(BootstrapError::Spawn(error))
        }
    }
}

/// Refuses ids that could leave a directory.
///
/// # Errors
/// Names the flag.
pub fn check(flags: &Flags) -> Result<(), BootstrapError> {
    for (flag, value) in [("id", &flags.id), ("namespace", &flags.namespace)] {
        if !ids::is_valid(value) {
            return Err(BootstrapError::Flag {
                flag,
                value: value.clone(),
            });
        }
    }
    Ok(())
}

/// The address of a pod's socket, by containerd's convention.
pub fn address(flags: &Flags, group: &str) -> String {
    socket_address(&flags.address, &flags.namespace, group)
}

/// The path in a socket's address.
pub fn socket_path(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap_or(address).into()
}

/// What containerd writes to standard input: the handler's options, an `Any`.
fn options() -> Result<Vec<u8>, BootstrapError> {
    let mut options = Vec::new();
    io::stdin()
        .take(MAX_OPTIONS)
        .read_to_end(&mut options)
        .map_err(BootstrapError::Options)?;
    Ok(options)
}

/// The bundle's annotations; `None`: it has no spec, as a sandbox of the Sandbox
/// API has not.
fn annotations(bundle: &Path) -> Result<Option<Annotations>, BootstrapError> {
    let path = bundle.join("config.json");
    let json = match fs::read(&path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(BootstrapError::Bundle(path, error)),
    };
    serde_json::from_slice(&json).map_err(|error| BootstrapError::Spec(path, error))
}

/// The id of the sandbox whose process serves a bundle.
fn group(flags: &Flags, spec: Option<&Annotations>) -> Result<String, BootstrapError> {
    match spec.and_then(|spec| spec.annotations.get(SANDBOX_ID)) {
        Some(sandbox) if !ids::is_valid(sandbox) => Err(BootstrapError::Flag {
            flag: SANDBOX_ID,
            value: sandbox.clone(),
        }),
        Some(sandbox) => Ok(sandbox.clone()),
        None => Ok(flags.id.clone()),
    }
}

/// Binds the socket; `None`: someone serves it already.
fn listen(path: &Path) -> Result<Option<UnixListener>, BootstrapError> {
    let failed = |error| BootstrapError::Socket(path.to_owned(), error);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            // Its process was killed.
            fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Some(listener))
}

/// Starts this program again, as the server: its standard input is the socket.
fn serve(flags: &Flags, bundle: &Path, listener: UnixListener) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        // Its name is a setting: see `Mode::of_program`.
        .arg0(std::env::args_os().next().unwrap_or_default())
        .args(["-namespace", &flags.namespace])
        .args(["-id", &flags.id])
        .args(["-address", &flags.address])
        .envs(MALLOC)
        .current_dir(bundle)
        .stdin(OwnedFd::from(listener))
        // containerd reads our output to its end, so nobody else may hold it.
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if flags.debug {
        command.arg("-debug");
    }
    let child = command.spawn()?;
    protect(child.id());
    Ok(())
}

/// Makes the server a little more killable than containerd, as shims are.
fn protect(server: u32) {
    if let Ok(score) = oom_score::of(std::os::unix::process::parent_id()) {
        // Without the right to lower it the server keeps what it inherits.
        let _ = oom_score::set(server, (score + 1).min(1000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        containerd_shim::parse(args).unwrap()
    }

    #[test]
    fn containerds_arguments_are_read() {
        let flags = flags(&[
            "-namespace",
            "k8s.io",
            "-address",
            "/run/containerd/containerd.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "abc",
            "-debug",
            "start",
        ]);
        check(&flags).unwrap();
        assert_eq!((flags.action.as_str(), flags.debug), ("start", true));
        let address = address(&flags, "abc");
        assert!(
            address.starts_with("unix:///run/containerd/s/"),
            "{address}"
        );
        assert_eq!(address.len(), "unix:///run/containerd/s/".len() + 64);
    }

    #[test]
    fn ids_that_are_paths_are_refused() {
        for args in [
            ["-namespace", "k8s.io", "-id", "../x"],
            ["-namespace", "", "-id", "x"],
            ["-namespace", "a/b", "-id", "x"],
        ] {
            assert!(check(&flags(&args)).is_err(), "{args:?}");
        }
    }

    #[test]
    fn the_answer_is_what_containerd_parses() {
        let answer = Answer {
            version: 3,
            address: "unix:///run/containerd/s/0".into(),
            protocol: "ttrpc",
        };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"version":3,"address":"unix:///run/containerd/s/0","protocol":"ttrpc"}"#
        );
    }

    #[test]
    fn a_container_is_served_by_its_sandbox() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |json: &str| fs::write(bundle.path().join("config.json"), json).unwrap();
        let flags = flags(&["-namespace", "n", "-id", "c1"]);
        write(r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "s1"}}"#);
        let group = || group(&flags, annotations(bundle.path())?.as_ref());
        assert_eq!(group().unwrap(), "s1");
        // Its sandbox is not there.
        assert!(matches!(
            start(&flags, bundle.path()),
            Err(BootstrapError::NoSandbox(_))
        ));
        // Where it would be, though, is known.
        let known = fs::read_to_string(bundle.path().join(ADDRESS)).unwrap();
        assert_eq!(known, address(&flags, "s1"));
        write("{}");
        assert_eq!(group().unwrap(), "c1");
        write(r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "../s1"}}"#);
        assert!(group().is_err());
        write("[");
        assert!(matches!(group(), Err(BootstrapError::Spec(..))));
        // A sandbox of the Sandbox API.
        fs::remove_file(bundle.path().join("config.json")).unwrap();
        assert_eq!(group().unwrap(), "c1");
    }

    #[test]
    fn a_dead_servers_socket_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/socket");
        let first = listen(&path).unwrap().unwrap();
        assert!(listen(&path).unwrap().is_none(), "it is served");
        drop(first);
        assert!(listen(&path).unwrap().is_some());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
