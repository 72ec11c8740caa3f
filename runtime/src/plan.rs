//! From a spec to a [`Plan`]: everything that can be checked without making anything is checked
//! here, so that a wrong spec fails before any process, cgroup or mount exists.

mod mounts;
mod namespaces;
mod process;

pub use mounts::mount_options;
pub(crate) use mounts::{IdMappings, MountKind, MountPlan};
pub(crate) use namespaces::{IdMapping, NamespaceKind, NamespacePlan};
pub(crate) use process::{ProcessPlan, has_selinux};

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Hooks, Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxResources, Process, Spec,
};
use thiserror::Error;

use crate::cgroup::{self, CgroupError, Setting, Version};
use crate::resctrl::Group;
use crate::rootfs::clean;
use crate::seccomp::Filter;

/// Why a spec cannot be carried out.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct PlanError {
    /// The field of the spec, for example `process.cwd`.
    pub field: String,
    /// What is wrong with it and what is allowed.
    pub problem: String,
}

impl PlanError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl From<CgroupError> for PlanError {
    fn from(error: CgroupError) -> Self {
        match error {
            CgroupError::Invalid { field, problem } => Self::new(format!("linux.{field}"), problem),
            other => Self::new("linux.resources", other.to_string()),
        }
    }
}

/// A device node to make in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePlan {
    /// Where; absolute.
    pub path: PathBuf,
    /// What: `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner, as the container sees it.
    pub uid: u32,
    /// Group, as the container sees it.
    pub gid: u32,
}

/// A network device of the host that a container takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetDevice {
    /// Its name on the host.
    pub host: String,
    /// Its name in the container.
    pub name: String,
}

/// Limits and device rules, ready to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResourcePlan {
    /// Values for the files of the cgroup.
    pub settings: Vec<Setting>,
    /// Device rules, in their order.
    pub devices: Vec<cgroup::devices::Rule>,
}

impl ResourcePlan {
    /// For a cgroup of this version.
    pub(crate) fn new(
        resources: Option<&LinuxResources>,
        version: Version,
    ) -> Result<Self, CgroupError> {
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        Ok(Self {
            settings: resources
                .map(|resources| cgroup::settings(version, resources))
                .transpose()?
                .unwrap_or_default(),
            devices: cgroup::devices::rules(rules.unwrap_or_default())?,
        })
    }
}

/// A validated spec.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The root file system's directory; absolute, without symbolic links.
    pub rootfs: PathBuf,
    /// Whether the root is read-only.
    pub readonly_root: bool,
    /// The `MS_*` propagation that the spec asks for, and whether for all mounts in the root too.
    pub root_propagation: Option<(u64, bool)>,
    /// Namespaces made and joined.
    pub namespaces: NamespacePlan,
    /// Mounts, in their order.
    pub mounts: Vec<MountPlan>,
    /// SELinux label of file systems made for the container.
    pub mount_label: Option<String>,
    /// Device nodes beside the default ones.
    pub devices: Vec<DevicePlan>,
    /// Paths to hide.
    pub masked_paths: Vec<PathBuf>,
    /// Paths to make read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// Host name.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: Option<String>,
    /// Network devices of the host that the container takes over.
    pub net_devices: Vec<NetDevice>,
    /// Files below /proc/sys and their values.
    pub sysctls: Vec<(PathBuf, String)>,
    /// The cgroup, relative to the hierarchy's root.
    pub cgroup: PathBuf,
    /// Its limits.
    pub resources: ResourcePlan,
    /// Its share of caches and of memory bandwidth.
    pub shares: Option<Group>,
    /// Hooks.
    pub hooks: Hooks,
    /// The first process.
    pub process: ProcessPlan,
    /// The system call filter of every process.
    pub seccomp: Option<Filter>,
}

impl Plan {
    /// Validates a spec for a container called `id` whose bundle is `bundle`.
    pub(crate) fn new(spec: &Spec, bundle: &Path, id: &str) -> Result<Self, PlanError> {
        if spec.version().split('.').next() != Some("1") {
            return Err(PlanError::new(
                "ociVersion",
                format!("{:?} is not supported; use 1.x", spec.version()),
            ));
        }
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| PlanError::new("linux", "is missing; only Linux containers are run"))?;
        let namespaces = NamespacePlan::new(linux)?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| PlanError::new("process", "is missing"))?;
        let name = |field: &str, name: &Option<String>| {
            /// What the kernel keeps of a name.
            const LONGEST: usize = 64;
            let name = name.clone().filter(|name| !name.is_empty());
            if let Some(name) = name.as_ref().filter(|name| name.len() > LONGEST) {
                return Err(PlanError::new(
                    field,
                    format!("{name:?} is longer than {LONGEST} bytes"),
                ));
            }
            if name.is_some() && !namespaces.is_private(NamespaceKind::Uts) {
                return Err(PlanError::new(
                    field,
                    "needs a uts namespace of the container's own in linux.namespaces",
                ));
            }
            Ok(name)
        };
        Ok(Self {
            rootfs: rootfs(spec, bundle)?,
            readonly_root: spec
                .root()
                .as_ref()
                .and_then(|root| root.readonly())
                .unwrap_or(false),
            root_propagation: root_propagation(linux)?,
            mounts: MountPlan::all(spec, bundle, &namespaces)?,
            mount_label: linux
                .mount_label()
                .clone()
                .filter(|label| !label.is_empty()),
            devices: devices(linux)?,
            masked_paths: absolute_paths("linux.maskedPaths", linux.masked_paths())?,
            readonly_paths: absolute_paths("linux.readonlyPaths", linux.readonly_paths())?,
            hostname: name("hostname", spec.hostname())?,
            domainname: name("domainname", spec.domainname())?,
            net_devices: net_devices(linux, &namespaces)?,
            sysctls: sysctls(linux.sysctl().as_ref(), &namespaces)?,
            cgroup: cgroup::container_path(
                linux.cgroups_path().as_deref(),
                id,
                cgroup::start_of_relative,
            )
            .map_err(|problem| PlanError::new("linux.cgroupsPath", problem))?,
            resources: ResourcePlan::new(linux.resources().as_ref(), Version::of_host())?,
            shares: Group::new(spec, id)?,
            hooks: hooks(spec)?,
            process: {
                let process = ProcessPlan::new(process, None, Some(linux))?;
                namespaces.check_user(process.uid, process.gid, &process.groups)?;
                process
            },
            seccomp: seccomp(linux)?,
            namespaces,
        })
    }
}

/// The plan of a process that joins a container made from `spec`.
pub(crate) fn join(
    process: &Process,
    spec: &Spec,
) -> Result<(ProcessPlan, Option<Filter>), PlanError> {
    let linux = spec.linux().as_ref();
    let plan = ProcessPlan::new(process, spec.process().as_ref(), linux)?;
    let filter = linux.map(seccomp).transpose()?.flatten();
    Ok((plan, filter))
}

fn seccomp(linux: &Linux) -> Result<Option<Filter>, PlanError> {
    let profile = linux.seccomp().as_ref();
    Ok(profile.map(Filter::compile).transpose()?.flatten())
}

fn rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf, PlanError> {
    let path = spec
        .root()
        .as_ref()
        .map(|root| root.path())
        .filter(|path| !path.as_os_str().is_empty())
        .ok_or_else(|| PlanError::new("root.path", "is missing"))?;
    let path = clean(&bundle.join(path));
    let rootfs = path
        .canonicalize()
        .map_err(|error| PlanError::new("root.path", format!("{}: {error}", path.display())))?;
    if !rootfs.is_dir() {
        return Err(PlanError::new(
            "root.path",
            format!("{} is not a directory", rootfs.display()),
        ));
    }
    if rootfs == Path::new("/") {
        return Err(PlanError::new(
            "root.path",
            "is the root of the host; give the container a directory of its own",
        ));
    }
    Ok(rootfs)
}

fn root_propagation(linux: &Linux) -> Result<Option<(u64, bool)>, PlanError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(name) => mounts::propagation(name).map(Some).ok_or_else(|| {
            PlanError::new(
                "linux.rootfsPropagation",
                format!("{name:?} is not one of shared, slave, private, unbindable"),
            )
        }),
    }
}

fn absolute_paths(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<PathBuf>, PlanError> {
    paths
        .iter()
        .flatten()
        .map(|path| {
            if path.starts_with('/') {
                Ok(PathBuf::from(path))
            } else {
                Err(PlanError::new(field, format!("{path:?} is not absolute")))
            }
        })
        .collect()
}

fn devices(linux: &Linux) -> Result<Vec<DevicePlan>, PlanError> {
    linux.devices().iter().flatten().map(device).collect()
}

fn device(device: &LinuxDevice) -> Result<DevicePlan, PlanError> {
    let field = format!("linux.devices[{}]", device.path().display());
    if !device.path().is_absolute() || device.path().file_name().is_none() {
        return Err(PlanError::new(field, "the path is not absolute"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(PlanError::new(
                field,
                "type a is for rules; use b, c, u or p",
            ));
        }
    };
    let number = |name: &str, number: i64| {
        u32::try_from(number)
            .map_err(|_| PlanError::new(&field, format!("{name} {number} is not a device number")))
    };
    let fifo = kind == libc::S_IFIFO;
    Ok(DevicePlan {
        path: device.path().clone(),
        kind,
        major: if fifo {
            0
        } else {
            number("major", device.major())?
        },
        minor: if fifo {
            0
        } else {
            number("minor", device.minor())?
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn sysctls(
    sysctls: Option<&HashMap<String, String>>,
    namespaces: &NamespacePlan,
) -> Result<Vec<(PathBuf, String)>, PlanError> {
    const IPC: &[&str] = &[
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    let mut files = Vec::new();
    for (name, value) in sysctls.into_iter().flatten() {
        let path = sysctl_path(name);
        if path == "kernel/hostname" {
            return Err(PlanError::new(
                format!("linux.sysctl[{name}]"),
                "is what hostname sets; use that",
            ));
        }
        // Whatever is not the container's own would change the host.
        let kind = if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
            NamespaceKind::Ipc
        } else if path.starts_with("net/") {
            NamespaceKind::Network
        } else if path == "kernel/domainname" {
            NamespaceKind::Uts
        } else {
            return Err(PlanError::new(
                format!("linux.sysctl[{name}]"),
                "is not in a namespace; allowed are net.*, fs.mqueue.* and the IPC and UTS ones \
                 of kernel.*",
            ));
        };
        if !namespaces.is_private(kind) || namespaces.is_of_the_caller(kind) {
            return Err(PlanError::new(
                format!("linux.sysctl[{name}]"),
                format!("needs a {kind} namespace of the container's own in linux.namespaces"),
            ));
        }
        let path = PathBuf::from(path);
        if !path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(PlanError::new(
                format!("linux.sysctl[{name}]"),
                "must not contain \"..\"",
            ));
        }
        files.push((path, value.clone()));
    }
    files.sort();
    Ok(files)
}

fn net_devices(linux: &Linux, namespaces: &NamespacePlan) -> Result<Vec<NetDevice>, PlanError> {
    let mut devices: Vec<NetDevice> = Vec::new();
    for (host, device) in linux.net_devices().iter().flatten() {
        let field = format!("linux.netDevices[{host}]");
        let own = device.name().clone().filter(|name| !name.is_empty());
        let name = own.unwrap_or_else(|| host.clone());
        for name in [host, &name] {
            if !is_device_name(name) {
                return Err(PlanError::new(
                    field,
                    format!(
                        "{name:?} is not a name of a network device: 1 to 15 bytes without /, : \
                         and blanks"
                    ),
                ));
            }
        }
        if devices.iter().any(|other| other.name == name) {
            return Err(PlanError::new(
                field,
                format!("there are two devices with the name {name} for the container"),
            ));
        }
        let host = host.clone();
        devices.push(NetDevice { host, name });
    }
    let network = NamespaceKind::Network;
    if !devices.is_empty()
        && (!namespaces.is_private(network) || namespaces.is_of_the_caller(network))
    {
        return Err(PlanError::new(
            "linux.netDevices",
            "needs a network namespace of the container's own in linux.namespaces",
        ));
    }
    devices.sort_by(|one, other| one.host.cmp(&other.host));
    Ok(devices)
}

/// What the kernel takes.
fn is_device_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace())
}

/// The file of a sysctl. Names are written with dots, or with slashes when a part (an interface)
/// has a dot itself; the first separator tells which.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn hooks(spec: &Spec) -> Result<Hooks, PlanError> {
    let hooks = spec.hooks().clone().unwrap_or_default();
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = || format!("hooks.{kind}[{index}]");
            if !hook.path().is_absolute() {
                return Err(PlanError::new(
                    field(),
                    format!("path {} is not absolute", hook.path().display()),
                ));
            }
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                return Err(PlanError::new(field(), "timeout is not above 0 seconds"));
            }
        }
    }
    Ok(hooks)
}

/// Mappings of a user namespace.
pub(crate) fn id_mappings(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<IdMapping> {
    mappings
        .iter()
        .flatten()
        .map(|mapping| IdMapping {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            length: mapping.size(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
