//! Fits the OCI spec that the shim sent to this guest: root, files, cgroup, names.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType,
    Mount, RootBuilder, Spec,
};
use protocol::guest::File;
use protocol::ids::{FILE_SOURCE, VOLUME_SOURCE};
use thiserror::Error;

use crate::storage::IdMappings;
use crate::volumes::{Node, Source};

/// Why a spec cannot be used here.
#[derive(Debug, Error)]
pub enum SpecError {
    /// It is no OCI spec.
    #[error("the spec is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A part that a Linux container needs is absent.
    #[error("the spec has no {0}")]
    Absent(&'static str),
    /// A bind mount names a file or volume that did not come with the request.
    #[error("mount {destination}: {source_name:?} is not one of the {count} {kind} of the request", destination = destination.display())]
    NoFile {
        /// Where it should be mounted.
        destination: PathBuf,
        /// The mount's source.
        source_name: String,
        /// What it should be.
        kind: &'static str,
        /// How many came.
        count: usize,
    },
    /// A file could not be written.
    #[error("write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Parses a config.json.
pub fn parse(json: &[u8]) -> Result<Spec, SpecError> {
    Ok(serde_json::from_slice(json)?)
}

/// Writes the request's files into `directory`, which it makes, and answers with
/// their paths in order.
pub fn write_files(directory: &Path, files: &[File]) -> Result<Vec<PathBuf>, SpecError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SpecError::Write { path, source }
    };
    // Readable for root alone: the files are for one container, and only by its mounts.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(failed(directory))?;
    let write = |(index, file): (usize, &File)| {
        let path = directory.join(index.to_string());
        write_file(&path, file).map_err(failed(&path))?;
        Ok(path)
    };
    files.iter().enumerate().map(write).collect()
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    let mut open = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    open.write_all(&file.data)?;
    std::os::unix::fs::fchown(&open, Some(file.uid), Some(file.gid))?;
    // After the owner: changing it clears set-id bits.
    open.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))
}

/// What a spec is fitted to.
pub struct Place<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Where its root file system is mounted.
    pub rootfs: &'a Path,
    /// Where the request's files are.
    pub files: &'a [PathBuf],
    /// Where its volumes are.
    pub volumes: &'a [Source],
    /// Its disks.
    pub nodes: &'a [Node],
    /// Whether the request asks for a terminal.
    pub terminal: bool,
}

/// Edits `spec` for this guest. The namespaces that it does not list are the pod's,
/// which are the agent's own.
pub fn adapt(spec: &mut Spec, place: &Place<'_>) -> Result<(), SpecError> {
    // A root without the field is writable; the builder's own default is not.
    let read_only = spec.root().as_ref().and_then(|root| root.readonly());
    let root = RootBuilder::default()
        .path(place.rootfs)
        .readonly(read_only.unwrap_or(false));
    spec.set_root(root.build().ok());

    let process = spec
        .process_mut()
        .as_mut()
        .ok_or(SpecError::Absent("process"))?;
    process.set_terminal(Some(place.terminal));

    let linux = spec
        .linux_mut()
        .as_mut()
        .ok_or(SpecError::Absent("linux section"))?;
    // The host's path means nothing here, and the prefix keeps a container's id from
    // being the name of one of cgroup2's own files.
    linux.set_cgroups_path(Some(PathBuf::from(format!("/joey-{}", place.id))));
    add_disks(linux, place.nodes);
    if !has_namespace(spec, LinuxNamespaceType::Uts) {
        // The pod has its name already; a container without a UTS namespace of its
        // own has none to set.
        spec.set_hostname(None);
        spec.set_domainname(None);
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        adapt_mount(mount, place)?;
    }
    Ok(())
}

/// Device nodes of the container's disks, and the rules that let it use them. Rules come
/// last, so they hold against those that forbid.
fn add_disks(linux: &mut Linux, nodes: &[Node]) {
    if nodes.is_empty() {
        return;
    }
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for node in nodes {
        let mut device = LinuxDevice::default();
        device
            .set_path(PathBuf::from(&node.disk.path))
            .set_typ(LinuxDeviceType::B)
            .set_major(node.major)
            .set_minor(node.minor)
            .set_file_mode(Some(node.disk.mode))
            .set_uid(Some(node.disk.uid))
            .set_gid(Some(node.disk.gid));
        devices.push(device);
        if !node.disk.access.is_empty() {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(LinuxDeviceType::B))
                .set_major(Some(node.major))
                .set_minor(Some(node.minor))
                .set_access(Some(node.disk.access.clone()));
            rules.push(rule);
        }
    }
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(devices));
}

fn adapt_mount(mount: &mut Mount, place: &Place<'_>) -> Result<(), SpecError> {
    if mount.typ().as_deref() == Some("cgroup") {
        mount.set_typ(Some("cgroup2".into()));
        mount.set_source(Some("cgroup2".into()));
    }
    let source = mount.source().as_ref().and_then(|source| source.to_str());
    let Some(source) = source else {
        return Ok(());
    };
    let missing = |kind, count| SpecError::NoFile {
        destination: mount.destination().clone(),
        source_name: source.to_owned(),
        kind,
        count,
    };
    if let Some(index) = source.strip_prefix(FILE_SOURCE) {
        let file = at(place.files, index).ok_or_else(|| missing("files", place.files.len()))?;
        own(file, mount).map_err(|source| SpecError::Write {
            path: file.clone(),
            source,
        })?;
        mount.set_source(Some(file.clone()));
        keep_ids(mount);
    } else if let Some(index) = source.strip_prefix(VOLUME_SOURCE) {
        let volume = at(place.volumes, index);
        let volume = volume.ok_or_else(|| missing("volumes", place.volumes.len()))?;
        mount.set_source(Some(volume.path.clone()));
        if volume.shared {
            keep_ids(mount);
        }
    }
    Ok(())
}

fn at<'a, T>(list: &'a [T], index: &str) -> Option<&'a T> {
    list.get(index.parse::<usize>().ok()?)
}

/// Gives a copied file to whom its mount's mapping shows it as: the file system that it is
/// in maps no ids, and nobody else sees it.
fn own(file: &Path, mount: &Mount) -> io::Result<()> {
    let (Some(uids), Some(gids)) = (mount.uid_mappings(), mount.gid_mappings()) else {
        return Ok(());
    };
    let data = fs::metadata(file)?;
    chown(
        file,
        Some(outside(uids, data.uid())),
        Some(outside(gids, data.gid())),
    )?;
    // Changing the owner clears set-id bits.
    fs::set_permissions(file, data.permissions())
}

/// What an id inside of a mapping is outside.
fn outside(mapping: &[LinuxIdMapping], id: u32) -> u32 {
    /// The kernel's id for what has none.
    const NOBODY: u32 = 65534;
    let found = mapping.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id())?;
        (offset < range.size()).then(|| range.host_id().saturating_add(offset))
    });
    found.unwrap_or(NOBODY)
}

/// A mount that shows the ids of its files as they are.
fn keep_ids(mount: &mut Mount) {
    mount.set_uid_mappings(None).set_gid_mappings(None);
    if let Some(options) = mount.options_mut() {
        options.retain(|option| option != "idmap" && option != "ridmap");
    }
}

/// The ids of the user namespace that the container gets, if it gets one.
pub fn user_namespace(spec: &Spec) -> Option<IdMappings<'_>> {
    let linux = spec.linux().as_ref()?;
    match (linux.uid_mappings(), linux.gid_mappings()) {
        (Some(uids), Some(gids)) if !uids.is_empty() && !gids.is_empty() => {
            Some(IdMappings { uids, gids })
        }
        _ => None,
    }
}

/// Whether the container gets a namespace of its own of this kind: listed, and not one
/// that is there already (a path, another container's).
pub fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    let mut namespaces = linux
        .into_iter()
        .filter_map(|linux| linux.namespaces().as_ref())
        .flatten();
    namespaces.any(|namespace| namespace.typ() == kind && namespace.path().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const SPEC: &str = r#"{
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "pod",
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/etc/hosts", "type": "bind", "source": "joey-file:1", "options": ["rbind", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/joey/shm", "options": ["rbind"]}
        ],
        "linux": {"cgroupsPath": "a.slice:cri:b", "namespaces": [{"type": "pid"}, {"type": "mount"}]}
    }"#;

    fn adapted(json: &str, files: &[PathBuf]) -> Result<Spec, SpecError> {
        let mut spec = parse(json.as_bytes())?;
        let place = Place {
            id: "web",
            rootfs: Path::new("/rootfs"),
            files,
            volumes: &[
                Source {
                    path: "/volumes/0".into(),
                    shared: true,
                },
                Source {
                    path: "/volumes/1".into(),
                    shared: false,
                },
            ],
            nodes: &[Node {
                disk: protocol::guest::Disk {
                    path: "/dev/data".into(),
                    mode: 0o660,
                    access: "rw".into(),
                    ..Default::default()
                },
                major: 253,
                minor: 16,
            }],
            terminal: true,
        };
        adapt(&mut spec, &place).map(|()| spec)
    }

    #[test]
    fn a_spec_is_fitted_to_the_guest() {
        let files = ["/files/0".into(), "/files/1".into()];
        let spec = adapted(SPEC, &files).unwrap();
        let root = spec.root().as_ref().unwrap();
        assert_eq!(
            (root.path().as_path(), root.readonly()),
            (Path::new("/rootfs"), Some(true))
        );
        assert_eq!(spec.hostname(), &None);
        assert_eq!(spec.process().as_ref().unwrap().terminal(), Some(true));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(
            linux.cgroups_path().as_deref(),
            Some(Path::new("/joey-web"))
        );
        let mounts = spec.mounts().as_ref().unwrap();
        let sources: Vec<_> = mounts
            .iter()
            .map(|mount| mount.source().as_deref().unwrap())
            .collect();
        assert_eq!(
            sources,
            [
                Path::new("/files/1"),
                Path::new("cgroup2"),
                Path::new("/run/joey/shm")
            ]
        );
        assert_eq!(mounts[1].typ().as_deref(), Some("cgroup2"));
        assert!(has_namespace(&spec, LinuxNamespaceType::Pid));
        assert!(!has_namespace(&spec, LinuxNamespaceType::Network));
        let joined = SPEC.replace(
            r#"{"type": "pid"}"#,
            r#"{"type": "pid", "path": "/proc/9/ns/pid"}"#,
        );
        let spec = parse(joined.as_bytes()).unwrap();
        assert!(!has_namespace(&spec, LinuxNamespaceType::Pid));
    }

    #[test]
    fn ids_are_mapped_by_the_host_or_here_and_never_by_both() {
        let mapped = |volume: &str| {
            let mount = format!(
                r#"{{"destination": "/data", "type": "bind", "source": "{volume}",
                    "options": ["rbind", "ridmap"],
                    "uidMappings": [{{"containerID": 0, "hostID": 1000, "size": 10}}],
                    "gidMappings": [{{"containerID": 0, "hostID": 1000, "size": 10}}]}},"#
            );
            let json = SPEC.replace("\"mounts\": [", &format!("\"mounts\": [{mount}"));
            let files = ["/files/0".into(), "/files/1".into()];
            adapted(&json, &files)
                .unwrap()
                .mounts()
                .clone()
                .unwrap()
                .remove(0)
        };
        let host = mapped("joey-volume:0");
        assert!(host.uid_mappings().is_none() && host.gid_mappings().is_none());
        assert_eq!(host.options().as_deref(), Some(&["rbind".to_owned()][..]));
        let here = mapped("joey-volume:1");
        assert_eq!(here.uid_mappings().as_ref().map(Vec::len), Some(1));
        assert_eq!(here.options().as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn a_copied_file_belongs_to_the_user_namespace() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped, it needs root");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        chown(&path, Some(5), Some(70_000)).unwrap();
        let ids = r#""uidMappings": [{"containerID": 0, "hostID": 1000, "size": 65536}],
                     "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 65536}],"#;
        let json = SPEC.replace(
            "\"destination\": \"/etc/hosts\",",
            &format!("\"destination\": \"/etc/hosts\", {ids}"),
        );
        let spec = adapted(&json, &["/files/0".into(), path.clone()]).unwrap();
        let data = fs::metadata(&path).unwrap();
        assert_eq!((data.uid(), data.gid()), (1005, 65534));
        assert_eq!(data.mode() & 0o7777, 0o640);
        assert!(spec.mounts().as_ref().unwrap()[0].uid_mappings().is_none());
    }

    #[test]
    fn volumes_and_disks_are_those_of_the_request() {
        let files = ["/files/0".into(), "/files/1".into()];
        let spec = adapted(&SPEC.replace("/run/joey/shm", "joey-volume:0"), &files).unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[2].source().as_deref(), Some(Path::new("/volumes/0")));
        let linux = spec.linux().as_ref().unwrap();
        let device = &linux.devices().as_ref().unwrap()[0];
        assert_eq!(device.path(), Path::new("/dev/data"));
        assert_eq!((device.major(), device.minor()), (253, 16));
        let rules = linux.resources().as_ref().unwrap().devices();
        let rule = rules.as_ref().unwrap().last().unwrap();
        assert_eq!(
            (rule.allow(), rule.major(), rule.minor()),
            (true, Some(253), Some(16))
        );
        assert_eq!(rule.access().as_deref(), Some("rw"));

        let error = adapted(&SPEC.replace("/run/joey/shm", "joey-volume:2"), &files).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mount /dev/shm: \"joey-volume:2\" is not one of the 2 volumes of the request"
        );
    }

    #[test]
    fn a_root_is_writable_unless_the_spec_says_otherwise() {
        let silent = SPEC.replace(r#", "readonly": true"#, "");
        let spec = adapted(&silent, &["0".into(), "1".into()]).unwrap();
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
    }

    #[test]
    fn a_uts_namespace_keeps_its_hostname() {
        let spec = adapted(
            &SPEC.replace("\"pid\"", "\"uts\""),
            &["0".into(), "1".into()],
        )
        .unwrap();
        assert_eq!(spec.hostname().as_deref(), Some("pod"));
    }

    #[test]
    fn a_file_that_did_not_come_is_named() {
        let error = adapted(SPEC, &["/files/0".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mount /etc/hosts: \"joey-file:1\" is not one of the 1 files of the request"
        );
        let error = adapted(&SPEC.replace("file:1", "file:../1"), &["/files/0".into()]);
        assert!(matches!(error, Err(SpecError::NoFile { .. })));
    }

    #[test]
    fn files_are_written_with_their_mode() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("files");
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let file = |data: &[u8], mode| File {
            data: data.into(),
            mode,
            uid,
            gid,
            ..Default::default()
        };
        let paths = write_files(&directory, &[file(b"a", 0o644), file(b"secret", 0o440)]).unwrap();
        assert_eq!(paths, [directory.join("0"), directory.join("1")]);
        assert_eq!(fs::read(&paths[1]).unwrap(), b"secret");
        assert_eq!(fs::metadata(&paths[1]).unwrap().mode() & 0o7777, 0o440);
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o700);
    }
}
