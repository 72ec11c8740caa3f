//! The `linux` part of a spec: namespaces, resources and devices.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIdMapping, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp,
};

use super::{Pod, SpecError};
use crate::volumes::DiskSource;

/// Majors of character devices that mean the same in every kernel: memory
/// devices (null, zero, random ...), terminals, pseudo-terminals.
const CHARACTER_MAJORS: [i64; 3] = [1, 5, 136];

/// Misc devices that the guest has too: (major, minor) of TUN and FUSE.
const MISC_DEVICES: [(i64, i64); 2] = [(10, 200), (10, 229)];

/// Files of a cgroup that a spec may set in the guest. The kubelet's memory QoS and
/// its grouping of kills come this way.
const UNIFIED: [&str; 11] = [
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.weight.nice",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.oom.group",
    "pids.max",
];

/// Beginnings of those that are about the host's hardware, or about swap, which a
/// guest has not: left out, like the fields of the same meaning.
const UNIFIED_OF_HOST: [&str; 7] = [
    "cpuset.",
    "hugetlb.",
    "io.",
    "memory.swap.",
    "memory.zswap.",
    "misc.",
    "rdma.",
];

/// Refuses a sandbox that leaves out a namespace, which means the host's.
pub(super) fn check_pod_namespaces(linux: &Linux) -> Result<(), SpecError> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    for (kind, name, setting) in [
        (LinuxNamespaceType::Network, "network", "hostNetwork"),
        (LinuxNamespaceType::Pid, "pid", "hostPID"),
        (LinuxNamespaceType::Ipc, "ipc", "hostIPC"),
        (LinuxNamespaceType::Uts, "uts", "hostNetwork"),
    ] {
        if find(namespaces, kind).is_none() {
            return Err(SpecError::HostNamespace(name, setting));
        }
    }
    check_root_is_mapped(&mapped(linux.uid_mappings()), &mapped(linux.gid_mappings()))
}

fn mapped(list: &Option<Vec<LinuxIdMapping>>) -> Vec<u32> {
    let list = list.as_deref().unwrap_or_default();
    list.iter().map(LinuxIdMapping::container_id).collect()
}

/// Refuses a user namespace without a root: nobody could set up its containers. Takes
/// the first id inside of each mapping.
pub(crate) fn check_root_is_mapped(uids: &[u32], gids: &[u32]) -> Result<(), SpecError> {
    for (ids, kind) in [(uids, "user"), (gids, "group")] {
        if !ids.is_empty() && !ids.contains(&0) {
            return Err(SpecError::RootIsNotMapped(kind));
        }
    }
    Ok(())
}

/// Whether the edited spec gives the container a UTS namespace of its own.
pub(super) fn has_new_uts(linux: &Linux) -> bool {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    find(namespaces, LinuxNamespaceType::Uts).is_some()
}

/// The guest's `linux` for the host's.
pub(super) fn edit(
    host: &Linux,
    id: &str,
    pod: &Pod,
    disks: &mut Vec<DiskSource>,
) -> Result<Linux, SpecError> {
    let namespaces = edit_namespaces(host.namespaces().as_deref().unwrap_or_default(), pod)?;
    let resources = host.resources().as_ref();
    let devices = edit_devices(
        host.devices().as_deref().unwrap_or_default(),
        resources,
        disks,
    )?;

    let mut guest = Linux::default();
    if find(&namespaces, LinuxNamespaceType::User).is_some() {
        guest
            .set_uid_mappings(host.uid_mappings().clone())
            .set_gid_mappings(host.gid_mappings().clone());
    }
    guest
        .set_namespaces(Some(namespaces))
        .set_devices(Some(devices))
        .set_resources(resources.map(edit_resources).transpose()?)
        .set_cgroups_path(Some(Path::new("/").join(id)))
        .set_sysctl(host.sysctl().clone())
        .set_seccomp(host.seccomp().as_ref().map(edit_seccomp))
        .set_rootfs_propagation(host.rootfs_propagation().clone())
        .set_masked_paths(host.masked_paths().clone())
        .set_readonly_paths(host.readonly_paths().clone())
        .set_personality(host.personality().clone())
        .set_time_offsets(host.time_offsets().clone());
    Ok(guest)
}

/// CPU, memory and process limits hold in the guest as they are. Limits on the
/// host's disks, RDMA devices and network classes do not, nor do the host's CPU and
/// memory-node numbers. A guest has no swap and no huge pages: limits on swap are
/// held anyway, and a container that asks for huge pages is refused.
pub(super) fn edit_resources(host: &LinuxResources) -> Result<LinuxResources, SpecError> {
    let pages = host.hugepage_limits().iter().flatten();
    if let Some(page) = pages.into_iter().find(|page| page.limit() > 0) {
        return Err(SpecError::HugePages(page.page_size().clone()));
    }
    let mut guest = LinuxResources::default();
    guest.set_memory(host.memory().map(|mut memory| {
        memory.set_swap(None);
        memory
    }));
    guest.set_pids(*host.pids());
    guest.set_unified(host.unified().as_ref().map(edit_unified).transpose()?);
    guest.set_cpu(host.cpu().clone().map(|mut cpu| {
        cpu.set_cpus(None);
        cpu.set_mems(None);
        cpu
    }));
    guest.set_devices(host.devices().as_ref().map(|rules| {
        let every = allows_every_device(host);
        rules
            .iter()
            .filter(|rule| every || keeps_meaning(rule))
            .cloned()
            .collect()
    }));
    Ok(guest)
}

/// The files of a cgroup that a spec may name itself: those that mean in the guest
/// what they mean on the host.
fn edit_unified(host: &HashMap<String, String>) -> Result<HashMap<String, String>, SpecError> {
    let mut guest = HashMap::new();
    for (file, value) in host {
        if UNIFIED.contains(&file.as_str()) {
            guest.insert(file.clone(), value.clone());
        } else if !UNIFIED_OF_HOST.iter().any(|part| file.starts_with(part)) {
            return Err(SpecError::Unified(file.clone()));
        }
    }
    Ok(guest)
}

fn edit_namespaces(host: &[LinuxNamespace], pod: &Pod) -> Result<Vec<LinuxNamespace>, SpecError> {
    for (kind, name, setting) in [
        (LinuxNamespaceType::Mount, "mount", "it"),
        (LinuxNamespaceType::Network, "network", "hostNetwork"),
        (LinuxNamespaceType::Pid, "pid", "hostPID"),
        (LinuxNamespaceType::Ipc, "ipc", "hostIPC"),
        (LinuxNamespaceType::Uts, "uts", "hostNetwork"),
    ] {
        if find(host, kind).is_none() {
            return Err(SpecError::HostNamespace(name, setting));
        }
    }
    let mut guest = Vec::new();
    for namespace in host {
        let path = namespace
            .path()
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty());
        match namespace.typ() {
            LinuxNamespaceType::User => {
                if let Some(path) = path.filter(|path| !is_pods(path, pod, "user")) {
                    return Err(foreign("user", path));
                }
                // The guest makes one for each container, all with the pod's ids.
                let mut new = namespace.clone();
                new.set_path(None);
                guest.push(new);
            }
            // The VM's own, which the whole pod shares. The network is that of
            // the pod even where containerd names a new one: the VM has no other.
            LinuxNamespaceType::Network => match path {
                Some(path) if !pod.alone && !is_pods(path, pod, "net") => {
                    return Err(foreign("network", path));
                }
                _ => {}
            },
            LinuxNamespaceType::Ipc => keep_new(&mut guest, namespace, path, pod, "ipc")?,
            LinuxNamespaceType::Uts => keep_new(&mut guest, namespace, path, pod, "uts")?,
            LinuxNamespaceType::Pid => match path {
                Some(path) if joins_container(path, pod) => guest.push(namespace.clone()),
                _ => keep_new(&mut guest, namespace, path, pod, "pid")?,
            },
            LinuxNamespaceType::Mount => new_only(&mut guest, namespace, path, "mount")?,
            LinuxNamespaceType::Cgroup => new_only(&mut guest, namespace, path, "cgroup")?,
            LinuxNamespaceType::Time => new_only(&mut guest, namespace, path, "time")?,
        }
    }
    Ok(guest)
}

/// A new namespace stays, the pod's is dropped: that is the one the agent is in.
fn keep_new(
    guest: &mut Vec<LinuxNamespace>,
    namespace: &LinuxNamespace,
    path: Option<&Path>,
    pod: &Pod,
    kind: &'static str,
) -> Result<(), SpecError> {
    match path {
        None => guest.push(namespace.clone()),
        Some(path) if is_pods(path, pod, kind) => {}
        Some(path) => return Err(foreign(kind, path)),
    }
    Ok(())
}

fn new_only(
    guest: &mut Vec<LinuxNamespace>,
    namespace: &LinuxNamespace,
    path: Option<&Path>,
    kind: &'static str,
) -> Result<(), SpecError> {
    match path {
        None => {
            guest.push(namespace.clone());
            Ok(())
        }
        Some(path) => Err(foreign(kind, path)),
    }
}

fn is_pods(path: &Path, pod: &Pod, kind: &str) -> bool {
    let is_of = |pid: &u32| path == Path::new(&format!("/proc/{pid}/ns/{kind}"));
    pod.sandbox_pids.iter().any(is_of)
}

/// containerd names the pid namespace of a container by that container's pid,
/// which is one of the guest, so the path is right there as it stands.
fn joins_container(path: &Path, pod: &Pod) -> bool {
    pod.container_pids
        .iter()
        .any(|pid| *pid != 0 && path == Path::new(&format!("/proc/{pid}/ns/pid")))
}

fn foreign(kind: &'static str, path: &Path) -> SpecError {
    SpecError::ForeignNamespace {
        kind,
        path: path.display().to_string(),
    }
}

fn find(namespaces: &[LinuxNamespace], kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    namespaces.iter().find(|namespace| namespace.typ() == kind)
}

/// A privileged container is given every device of the host; in a VM that means
/// every device of the guest, so the host's list is dropped. A block device that is
/// asked for by name becomes a disk of the VM; anything else must exist in the guest.
fn edit_devices(
    host: &[LinuxDevice],
    resources: Option<&LinuxResources>,
    disks: &mut Vec<DiskSource>,
) -> Result<Vec<LinuxDevice>, SpecError> {
    let privileged = resources.is_some_and(allows_every_device);
    let mut guest = Vec::new();
    for device in host {
        let character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        if character && exists_everywhere(device.major(), Some(device.minor())) {
            guest.push(device.clone());
        } else if privileged && is_hosts_own(device) {
            continue;
        } else if device.typ() == LinuxDeviceType::B {
            disks.push(disk(device, resources));
        } else {
            return Err(SpecError::Device(device.path().display().to_string()));
        }
    }
    Ok(guest)
}

/// Whether a device has the same path on the host: as all have that a privileged
/// container gets without having asked for them by name.
fn is_hosts_own(device: &LinuxDevice) -> bool {
    let there = std::fs::symlink_metadata(device.path());
    there.is_ok_and(|metadata| metadata.rdev() == number(device))
}

fn number(device: &LinuxDevice) -> u64 {
    // What is no number of a device is none that exists.
    let part = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    nix::sys::stat::makedev(part(device.major()), part(device.minor()))
}

fn disk(device: &LinuxDevice, resources: Option<&LinuxResources>) -> DiskSource {
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let access = |rule: &LinuxDeviceCgroup| {
        let this = rule.allow()
            && rule.typ() == Some(LinuxDeviceType::B)
            && rule.major() == Some(device.major())
            && rule.minor() == Some(device.minor());
        this.then(|| rule.access().clone().unwrap_or_else(|| "rwm".into()))
    };
    let last = rules.unwrap_or_default().iter().rev().find_map(access);
    DiskSource {
        path: device.path().clone(),
        number: number(device),
        mode: device.file_mode().unwrap_or(0o660) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        access: last.unwrap_or_default(),
    }
}

fn exists_everywhere(major: i64, minor: Option<i64>) -> bool {
    CHARACTER_MAJORS.contains(&major)
        || minor.is_some_and(|minor| MISC_DEVICES.contains(&(major, minor)))
}

fn allows_every_device(resources: &LinuxResources) -> bool {
    let wild = |number: Option<i64>| number.is_none_or(|number| number < 0);
    resources.devices().as_ref().is_some_and(|rules| {
        rules.iter().any(|rule| {
            rule.allow()
                && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
                && wild(rule.major())
                && wild(rule.minor())
                && rule
                    .access()
                    .as_deref()
                    .is_none_or(|access| access == "rwm")
        })
    })
}

/// A rule that opens a device by the host's numbers could open another one in
/// the guest: its own disks, for one.
fn keeps_meaning(rule: &LinuxDeviceCgroup) -> bool {
    if !rule.allow() || rule.access().as_deref() == Some("m") {
        return true;
    }
    matches!(rule.typ(), Some(LinuxDeviceType::C | LinuxDeviceType::U))
        && rule
            .major()
            .is_some_and(|major| exists_everywhere(major, rule.minor()))
}

/// Without the address of a notification listener: it is a socket of the host.
fn edit_seccomp(host: &LinuxSeccomp) -> LinuxSeccomp {
    let mut guest = host.clone();
    guest.set_listener_path(None::<PathBuf>);
    guest.set_listener_metadata(None);
    guest
}
