//! Keeps containers from writing to this very program, which runs as root for all of them: a
//! container can have it executed (a script whose interpreter is /proc/self/exe) and then reach its
//! file by /proc/<pid>/exe (CVE-2019-5736).
//!
//! The program runs itself again from a place that nobody can write to: a read-only mount of its
//! file that is attached nowhere, so that no process can ever make it writable again; or, for
//! callers who may not mount, a sealed copy in memory. The mount shares the pages of the file and
//! costs one exec.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use nix::fcntl::AtFlags;
use runtime::Attributes;
use rustix::fs::{
    MemfdFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, fstatvfs,
    memfd_create,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

const OWN_FILE: &str = "/proc/self/exe";

/// Returns in a process whose program's file nobody can write to.
pub(super) fn protect() -> Result<()> {
    let own = File::open(OWN_FILE).context("open this program's file")?;
    if is_protected(&own)? {
        return Ok(());
    }
    let program = match read_only_mount() {
        // The caller may not mount.
        Err(Errno::PERM) => sealed_copy(own).context("copy this program into memory")?,
        other => other.context("mount this program's file read-only")?,
    };
    run(&program)
}

fn is_protected(own: &File) -> Result<bool> {
    if fcntl_get_seals(own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
        return Ok(true);
    }
    let mount = fstatvfs(own).context("look at this program's mount")?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn read_only_mount() -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, OWN_FILE, flags)?;
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    runtime::set_attributes(tree.as_fd(), attributes, false, None)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(tree)
}

fn sealed_copy(mut own: File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match memfd_create("joey", flags | MemfdFlags::EXEC) {
        // A kernel before 6.3: every such file can be executed there.
        Err(Errno::INVAL) => memfd_create("joey", flags)?,
        other => other?,
    };
    let mut copy = File::from(copy);
    own.rewind()?;
    io::copy(&mut own, &mut copy)?;
    fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(copy.into())
}

/// Runs the program anew with the same arguments and environment.
fn run(program: &OwnedFd) -> Result<()> {
    let args: Vec<CString> = std::env::args_os()
        .map(|arg| CString::new(arg.into_vec()))
        .collect::<Result<_, _>>()?;
    let env: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            CString::new(name.into_vec())
        })
        .collect::<Result<_, _>>()?;
    nix::unistd::execveat(program, c"", &args, &env, AtFlags::AT_EMPTY_PATH)
        .context("run this program again")?;
    Ok(())
}
