//! The socket on which a container says that it is ready: the protocol of `sd_notify(3)`.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::Mode;
use rustix::process::umask;

/// Its directory, in the state directory of the container.
pub(crate) const DIR: &str = "notify";
const SOCKET: &str = "notify.sock";
/// The directory in the container, where runc has it.
const INSIDE: &str = "/run/notify";

/// What the command finds it by.
pub const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET=/run/notify/notify.sock";

/// Shows the directory to the container, read-only: what is in there stays the caller's.
pub(crate) fn add(spec: &mut Spec, dir: PathBuf) {
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
    let mut mount = Mount::default();
    mount
        .set_destination(INSIDE.into())
        .set_typ(None)
        .set_source(Some(dir))
        .set_options(Some(options.map(str::to_owned).into()));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(NOTIFY_VARIABLE.to_owned());
        process.set_env(Some(env));
    }
}

/// Makes the directory for all users: the container's may be any.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
}

/// Makes the socket; `None` without a directory for it.
pub(crate) fn bind(dir: &Path) -> io::Result<Option<UnixDatagram>> {
    let dir = match std::fs::File::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // By descriptor: the path itself may be longer than an address can be.
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    // All users write to it; with a mode from the first moment there is nothing to change by name.
    let before = umask(Mode::empty());
    let socket = UnixDatagram::bind(path.join(OsStr::new(SOCKET)));
    umask(before);
    let socket = socket?;
    socket.set_nonblocking(true)?;
    Ok(Some(socket))
}
