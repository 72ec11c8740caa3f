//! The OCI spec as the guest may see it.
//!
//! containerd writes a spec for this host: its namespaces, its devices, its
//! paths. Only what is listed here crosses into the guest; the rest is dropped
//! where it means nothing there, and refused where dropping it would change
//! what the pod asked for.

mod arguments;
mod kubelet;
mod linux;
mod mounts;

use std::collections::HashMap;

use oci_spec::runtime::{Hooks, LinuxResources, Process, Root, Spec};
use protocol::guest::File;
use protocol::ids;

pub(crate) use linux::check_root_is_mapped;

use crate::pod::Etc;
use crate::volumes::{DiskSource, VolumeSource};

pub(crate) use mounts::add_pods;

/// Annotations that the guest may read.
const ANNOTATIONS: [&str; 7] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-uid",
];

/// A spec that cannot be honoured in a VM.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not an OCI spec.
    #[error("{what} is not valid JSON of the OCI runtime spec")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// A part that every Linux container needs is absent.
    #[error("the OCI spec has no `{0}`")]
    Missing(&'static str),
    /// The pod wants a namespace of the host.
    #[error(
        "the pod asks for the host's {0} namespace, which a VM cannot share; \
         run it with a shared-kernel runtime handler or without {1}"
    )]
    HostNamespace(&'static str, &'static str),
    /// A user namespace that no container can be set up in.
    #[error("the pod's user namespace has no {0} id 0: map the container's id 0 too")]
    RootIsNotMapped(&'static str),
    /// A namespace that is neither new nor the pod's.
    #[error("the OCI spec joins {path}: a {kind} namespace outside of the pod's VM")]
    ForeignNamespace {
        /// The kind of namespace.
        kind: &'static str,
        /// Where it is bound.
        path: String,
    },
    /// Hooks run on the host, where the container is not.
    #[error("the OCI spec has {0} hooks, which cannot run for a container in a VM; remove them")]
    Hooks(&'static str),
    /// A device node of the host.
    #[error("the host's device {0} cannot be passed into the VM; remove it from the container")]
    Device(String),
    /// Huge pages of the host.
    #[error(
        "the container asks for huge pages of {0}, which a guest does not have; \
         remove hugepages-* from its limits"
    )]
    HugePages(String),
    /// A file of the container's cgroup that is not known here.
    #[error("resources.unified names {0}, which is not passed into the VM; remove it")]
    Unified(String),
    /// More arguments and environment than a program can be started with.
    #[error(
        "argument list too long: {what} has {size} bytes, and Linux starts no program with more \
         than {limit}; pass the data in a file"
    )]
    Arguments {
        /// Which.
        what: String,
        /// How much it is.
        size: usize,
        /// How much it may be.
        limit: usize,
    },
    /// A mount that has no form in the guest.
    #[error("mount {destination} (from {source_path}): {reason}")]
    Mount {
        /// Where in the container.
        destination: String,
        /// Where on the host.
        source_path: String,
        /// Why not.
        reason: String,
    },
}

/// What of a pod decides how its containers' specs read.
#[derive(Clone, Debug)]
pub struct Pod<'a> {
    /// The host pids that containerd may know the sandbox by: it names the pod's
    /// namespaces as `/proc/<pid>/ns/...`.
    pub sandbox_pids: [u32; 2],
    /// Guest pids of the pod's containers, for a container that joins another's
    /// pid namespace.
    pub container_pids: &'a [u32],
    /// Whether the container has the pod to itself: then new network, IPC and
    /// UTS namespaces mean the VM's own.
    pub alone: bool,
    /// What the container finds in /etc, where containerd does not mount it.
    pub etc: Option<&'a Etc>,
}

/// A container's spec for the guest.
#[derive(Debug)]
pub struct GuestSpec {
    /// `config.json`.
    pub json: Vec<u8>,
    /// What it needs of the host.
    pub wanted: Wanted,
}

/// What a container's spec needs of the host, in the order in which it names them.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Contents of the small files that it binds.
    pub files: Vec<File>,
    /// Those of them, by index, that the container may write: they get what it leaves.
    pub given_back: HashMap<u32, std::fs::File>,
    /// Directories and other files that it binds.
    pub volumes: Vec<VolumeSource>,
    /// Block devices that become device nodes.
    pub disks: Vec<DiskSource>,
}

/// Reads a `config.json`.
///
/// # Errors
/// When it is not one.
pub fn parse(json: &[u8]) -> Result<Spec, SpecError> {
    serde_json::from_slice(json).map_err(|source| SpecError::Json {
        what: "config.json",
        source,
    })
}

/// Refuses a sandbox whose pod wants namespaces of the host.
///
/// # Errors
/// Names the namespace.
pub fn check_sandbox(spec: &Spec) -> Result<(), SpecError> {
    let linux = spec.linux().as_ref().ok_or(SpecError::Missing("linux"))?;
    linux::check_pod_namespaces(linux)
}

/// Turns a container's spec into the guest's.
///
/// # Errors
/// Names what cannot be honoured.
pub fn container(spec: &Spec, id: &str, pod: &Pod) -> Result<GuestSpec, SpecError> {
    if let Some(hooks) = spec.hooks() {
        refuse_hooks(hooks)?;
    }
    let host_linux = spec.linux().as_ref().ok_or(SpecError::Missing("linux"))?;
    let host_process = spec
        .process()
        .as_ref()
        .ok_or(SpecError::Missing("process"))?;

    arguments::check(host_process)?;
    let mut wanted = Wanted::default();
    let mut mounts = mounts::edit(spec.mounts().as_deref().unwrap_or_default(), &mut wanted)?;
    if let Some(etc) = pod.etc {
        let files = &mut wanted.files;
        add_pods(&mut mounts, etc, ids::SHM_PATH, |_, data| {
            files.push(File {
                data: data.to_vec(),
                mode: 0o644,
                ..Default::default()
            });
            format!("{}{}", ids::FILE_SOURCE, files.len() - 1)
        });
    }
    let linux = linux::edit(host_linux, id, pod, &mut wanted.disks)?;

    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(spec.root().as_ref().and_then(Root::readonly));

    // Built from nothing: a field that the spec gains later stays out until it
    // is listed here.
    let mut guest = Spec::default();
    guest.set_version(spec.version().clone());
    guest.set_root(Some(root));
    guest.set_mounts(Some(mounts));
    guest.set_process(Some(edit_process(host_process)));
    // The pod's UTS namespace has its name already; only a container with a
    // namespace of its own sets one.
    let own_name = linux::has_new_uts(&linux);
    guest.set_hostname(spec.hostname().clone().filter(|_| own_name));
    guest.set_domainname(spec.domainname().clone().filter(|_| own_name));
    guest.set_hooks(None);
    guest.set_annotations(Some(edit_annotations(spec.annotations().as_ref())));
    guest.set_linux(Some(linux));

    let json = serde_json::to_vec(&guest).map_err(|source| SpecError::Json {
        what: "the edited config.json",
        source,
    })?;
    Ok(GuestSpec { json, wanted })
}

/// Turns an exec's process document into the guest's.
///
/// # Errors
/// When it is not one.
pub fn process(json: &[u8]) -> Result<Vec<u8>, SpecError> {
    let host: Process = serde_json::from_slice(json).map_err(|source| SpecError::Json {
        what: "the exec's process",
        source,
    })?;
    arguments::check(&host)?;
    serde_json::to_vec(&edit_process(&host)).map_err(|source| SpecError::Json {
        what: "the exec's process",
        source,
    })
}

/// Reads the resources of an update.
///
/// # Errors
/// When they are not an OCI `LinuxResources`.
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, SpecError> {
    serde_json::from_slice(json).map_err(|source| SpecError::Json {
        what: "the update's resources",
        source,
    })
}

/// Turns an update's resources into the guest's.
///
/// # Errors
/// Names what cannot be honoured.
pub fn resources(host: &LinuxResources) -> Result<Vec<u8>, SpecError> {
    let error = |source| SpecError::Json {
        what: "the update's resources",
        source,
    };
    serde_json::to_vec(&linux::edit_resources(host)?).map_err(error)
}

/// Everything but the host's security labels and CPU numbers.
fn edit_process(host: &Process) -> Process {
    let mut guest = Process::default();
    guest
        .set_terminal(host.terminal())
        .set_console_size(host.console_size())
        .set_user(host.user().clone())
        .set_args(host.args().clone())
        .set_env(host.env().clone())
        .set_cwd(host.cwd().clone())
        .set_capabilities(host.capabilities().clone())
        .set_rlimits(host.rlimits().clone())
        .set_no_new_privileges(host.no_new_privileges())
        .set_oom_score_adj(host.oom_score_adj())
        .set_io_priority(*host.io_priority())
        .set_scheduler(host.scheduler().clone());
    guest
}

fn edit_annotations(host: Option<&HashMap<String, String>>) -> HashMap<String, String> {
    let Some(host) = host else {
        return HashMap::new();
    };
    ANNOTATIONS
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), host.get(*key)?.clone())))
        .collect()
}

fn refuse_hooks(hooks: &Hooks) -> Result<(), SpecError> {
    #[allow(deprecated)] // Still in use by those who write specs.
    let prestart = hooks.prestart();
    for (name, list) in [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(SpecError::Hooks(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
