//! Restore: a container made from what criu has saved.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{
    ContainerState, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Spec, State,
};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::wire::option;
use super::{
    Criu, CriuError, CriuOptions, RESTORE, Request, Result, STREAMS, mounts, program, system,
};
use crate::cgroup::Cgroup;
use crate::container::{Container, CreateOptions, Making, keep, limit};
use crate::error::CreateError;
use crate::hooks;
use crate::mounts::mapped_mount;
use crate::network::{self, Devices};
use crate::plan::{NamespaceKind, Plan};
use crate::process::message::Failure;
use crate::process::{self, Io, Launched};
use crate::rootfs::Root;
use crate::sys::{self, NewProcess};

/// How a container is restored.
#[derive(Debug)]
pub struct RestoreOptions {
    /// What the container is to be; its spec is that of the one that was saved.
    pub create: CreateOptions,
    /// As for a checkpoint.
    pub common: CriuOptions,
    /// The profile of a security module instead of the saved one, as `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// The context of mounts instead of the saved one.
    pub lsm_mount_context: Option<String>,
}

impl Container {
    /// Makes a container from what [`Container::checkpoint`] has saved. It runs then.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left behind then.
    pub fn restore(options: RestoreOptions) -> std::result::Result<(Self, Launched), CreateError> {
        let RestoreOptions {
            create,
            common,
            lsm_profile,
            lsm_mount_context,
        } = options;
        let program = program()?;
        let mut request = Request::new("restore", RESTORE, &common, create.spec.annotations());
        request
            .options
            .flag(option::EVASIVE_DEVICES, true)
            .flag(option::RST_SIBLING, true);
        for (field, value) in [
            (option::LSM_PROFILE, &lsm_profile),
            (option::LSM_MOUNT_CONTEXT, &lsm_mount_context),
        ] {
            if let Some(value) = value {
                request.options.text(field, value);
            }
        }
        let streams = saved_streams(&common)?;
        Self::make(create, |making| {
            bring_back(making, request, &program, &streams)
        })
    }
}

/// What the standard streams were.
fn saved_streams(common: &CriuOptions) -> Result<Vec<String>> {
    let path = common.images.join(STREAMS);
    let text = std::fs::read(&path).map_err(system(format!(
        "read {}; is there a checkpoint",
        path.display()
    )))?;
    serde_json::from_slice(&text)
        .map_err(|error| system(format!("read {}", path.display()))(error.into()))
}

fn bring_back(
    making: Making<'_>,
    mut request: Request,
    program: &CString,
    streams: &[String],
) -> std::result::Result<(OwnedFd, Launched), CreateError> {
    let Making {
        plan,
        dir,
        saved,
        io,
        options,
        cgroup,
        shown,
    } = making;
    let none = || CriuError::Unsupported("a container is restored into a cgroup only".to_owned());
    limit(plan, options, cgroup)?;
    let cgroup = cgroup.as_mut().ok_or_else(none)?;
    if !plan.namespaces.is_private(NamespaceKind::Mount) {
        return Err(CriuError::Unsupported(
            "a container without a mount namespace cannot be restored".to_owned(),
        )
        .into());
    }
    mounts::make_places(plan)?;
    for (name, source) in mounts::sources(plan, cgroup, &shown) {
        let (name, source) = (name.as_os_str(), source.as_os_str());
        request.options.pair(
            option::EXT_MNT,
            name.as_encoded_bytes(),
            source.as_encoded_bytes(),
        );
    }
    request.mapped = readable_images(&request, plan, &saved.spec)?;
    let rootfs = plan.rootfs.as_os_str().as_encoded_bytes();
    request.options.text(option::ROOT, rootfs);
    let namespaces = join(&mut request, plan)?;
    if let Io::Files { .. } = &io {
        for (number, stream) in (0..3).zip(streams) {
            if stream.contains("pipe:") {
                inherit(&mut request, stream, number);
            }
        }
    }

    let criu = start(
        program,
        plan,
        cgroup,
        &io,
        options.keep_keyring,
        &namespaces,
    )?;
    drop(io);
    set_cgroup_roots(&mut request, criu.pid)?;
    let state = saved.state(ContainerState::Creating);
    let mut terminal = None;
    let mut devices = None;
    let restored = criu.request(&request, |what, pid, fd| {
        match what {
            "setup-namespaces" => devices = set_up(plan, &state, pid)?,
            "orphan-pts-master" => terminal = fd,
            _ => {}
        }
        Ok(())
    });
    cgroup.inhabited();
    let pid = restored?;
    let pidfd = process::open(pid).map_err(system("open the restored process"))?;
    let launched = Launched {
        pid,
        pidfd,
        terminal,
    };
    note_time_namespace(&mut saved.spec, pid);
    let first = share(plan, pid)
        .and_then(|()| keep(dir, saved, &launched))
        // It is this process's child: nobody else ends or collects it.
        .inspect_err(|_| process::end(launched.pidfd.as_fd()))?;
    if let Some(devices) = devices {
        devices.keep();
    }
    Ok((first, launched))
}

/// Starts criu in the container's cgroup, where what it restores begins, and in a mount namespace of
/// its own: there the container's root is a mount point, as criu wants it, and nowhere else.
fn start(
    program: &CString,
    plan: &Plan,
    cgroup: &Cgroup,
    io: &Io,
    keep_keyring: bool,
    namespaces: &[OwnedFd],
) -> std::result::Result<Criu, CreateError> {
    let how = NewProcess {
        namespaces: libc::CLONE_NEWNS as u64,
        cgroup: cgroup.birthplace(),
        ..NewProcess::default()
    };
    let kept: Vec<BorrowedFd<'_>> = namespaces.iter().map(OwnedFd::as_fd).collect();
    let text = |failure: Failure| io::Error::other(format!("{}: {}", failure.stage, failure.text));
    let criu = Criu::start(program, how, &kept, || {
        match io {
            Io::Files { .. } => process::connect(io).map_err(text)?,
            Io::Terminal { .. } => connect_to_nothing()?,
        }
        if !keep_keyring {
            // What is restored would have the caller's.
            sys::new_session_keyring()?;
        }
        Root::prepare(plan).map(drop).map_err(text)
    })?;
    if cgroup.birthplace().is_none() {
        cgroup.add(criu.pid)?;
    }
    Ok(criu)
}

/// In a user namespace the container's first process reads images too: first as the host's user
/// that criu is, without rights over other users' files, then as the container's root. A directory
/// that its owner and its group may search serves both, when the group is the container's.
fn readable_images(request: &Request, plan: &Plan, spec: &Spec) -> Result<Option<OwnedFd>> {
    let linux = spec.linux().as_ref();
    let linux = linux.filter(|_| plan.namespaces.makes(NamespaceKind::User));
    let mapped = linux.map(|linux| {
        let same = LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(0u32)
            .size(u32::MAX)
            .build()
            .map_err(io::Error::other)?;
        let gids = linux.gid_mappings().clone().unwrap_or_default();
        mapped_mount(&request.images, &[same], &gids)
    });
    mapped
        .transpose()
        .map_err(system("show the images to the container's user namespace"))
}

fn connect_to_nothing() -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = openat(CWD, "/dev/null", flags, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn inherit(request: &mut Request, name: &str, fd: i32) {
    let mut message = super::Message::default();
    message.text(1, name).number(2, fd as u64);
    request.options.message(option::INHERIT_FD, &message);
}

/// Names the namespaces that are joined. Returns those that criu inherits.
fn join(request: &mut Request, plan: &Plan) -> Result<Vec<OwnedFd>> {
    let mut inherited = Vec::new();
    for (kind, path) in &plan.namespaces.join {
        let name = match kind {
            NamespaceKind::Network | NamespaceKind::Pid => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = openat(CWD, path, flags, Mode::empty()).map_err(|error| {
                    system(format!("open the namespace {}", path.display()))(error.into())
                })?;
                inherit(request, super::external_name(*kind), file.as_raw_fd());
                inherited.push(file);
                continue;
            }
            NamespaceKind::Cgroup => {
                return Err(CriuError::Unsupported(
                    "criu cannot join a cgroup namespace: give the container one of its own"
                        .to_owned(),
                ));
            }
            NamespaceKind::Mount => "mnt",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::User => "user",
            NamespaceKind::Time => "time",
        };
        request
            .options
            .pair(option::JOIN_NS, name, path.as_os_str().as_encoded_bytes());
    }
    Ok(inherited)
}

/// Says where the saved cgroups are now: where criu itself is.
fn set_cgroup_roots(request: &mut Request, criu: u32) -> Result<()> {
    let file = format!("/proc/{criu}/cgroup");
    let table = std::fs::read_to_string(&file).map_err(system(format!("read {file}")))?;
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
            for controller in controllers.split(',') {
                request.options.pair(option::CG_ROOT, controller, path);
            }
        }
    }
    Ok(())
}

/// What is not criu's when the namespaces of the first process, `pid`, are there.
fn set_up(plan: &Plan, state: &State, pid: u32) -> Result<Option<Devices>> {
    let failed = |what: &str, problem: String| CriuError::System {
        what: what.to_owned(),
        source: io::Error::other(problem),
    };
    if plan.namespaces.makes(NamespaceKind::Network) {
        network::raise_loopback_of(pid).map_err(system("switch the loopback on"))?;
    }
    let mut devices = None;
    if !plan.net_devices.is_empty() {
        let taken = Devices::take(&plan.net_devices, pid);
        devices = Some(taken.map_err(|failure| failed(&failure.stage, failure.text))?);
    }
    let mut state = state.clone();
    state.set_pid(Some(pid as i32));
    hooks::run_before_entry(&plan.hooks, &state)?;
    Ok(devices)
}

fn share(plan: &Plan, pid: u32) -> std::result::Result<(), CreateError> {
    let shares = plan.shares.as_ref().map(|group| group.enter(pid));
    if let Some(shares) = shares
        .transpose()
        .map_err(system("join the resctrl group"))?
    {
        shares.keep();
    }
    Ok(())
}

/// criu keeps the clocks going where they were, in a time namespace that the spec may not have: who
/// is added to the container has to find it.
fn note_time_namespace(spec: &mut Spec, pid: u32) {
    let time = LinuxNamespaceType::Time;
    if NamespaceKind::Time.is_shared_with(pid) {
        return;
    }
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        if namespaces.iter().all(|namespace| namespace.typ() != time) {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(time).set_path(None);
            namespaces.push(namespace);
            linux.set_namespaces(Some(namespaces));
        }
    }
}
