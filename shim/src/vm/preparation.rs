//! What a VM needs of the host, each part made on its own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use network::Attachment;
use tokio::task::spawn_blocking;
use vmm::{Place, Vmm};

use super::{Plan, set_oom_score};
use crate::error::{Error, Result, chain};
use crate::host::cgroup::{self, Cgroup};
use crate::host::record::Record;
use crate::host::uids::UidLease;
use crate::host::{files, no_network, scratch};
use crate::stages::Stages;

/// The VM's files, apart from its TAP.
pub(super) struct Files {
    pub(super) kvm: File,
    pub(super) kernel: File,
    pub(super) agent: File,
    pub(super) scratch: File,
}

/// A VMM that waits for its spec.
pub(super) struct Spawned {
    pub(super) vmm: Vmm,
    pub(super) cgroup: Cgroup,
    pub(super) uid: UidLease,
    /// Where its messages can be read.
    pub(super) log: OwnedFd,
}

impl Spawned {
    /// Ends it, before anything else hangs on it.
    pub(super) async fn undo(self) {
        let Self { vmm, cgroup, .. } = self;
        let undone = spawn_blocking(move || {
            drop(vmm);
            remove_cgroup(&cgroup);
        });
        // It cannot be cancelled, and does not panic.
        let _ = undone.await;
    }
}

/// The sandbox's record, before anything of it is there.
pub(super) fn record(plan: &Plan) -> Result<Record> {
    Ok(Record {
        cgroup: cgroup::place(&plan.cgroups_path).map_err(Error::failed)?,
        netns: plan.netns.clone(),
        pod: plan.pod.0.clone(),
        pod_namespace: plan.pod.1.clone(),
        vcpus: plan.size.vcpus,
        memory_mib: plan.size.memory_mib,
        socket: plan.socket.clone(),
        ..Record::new(&plan.namespace, &plan.id)
    })
}

/// Makes one part on a thread of its own, timed.
pub(super) async fn blocking<T: Send + 'static>(
    plan: &Plan,
    stages: &Arc<Stages>,
    name: &'static str,
    part: impl FnOnce(&Plan) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (plan, stages) = (plan.clone(), stages.clone());
    spawn_blocking(move || stages.time_blocking(name, || part(&plan)))
        .await
        .map_err(Error::failed)?
}

/// Connects the pod's network namespace, if it has one.
pub(super) fn attach_network(plan: &Plan) -> Result<Option<Attachment>> {
    let Some(netns) = &plan.netns else {
        return Ok(None);
    };
    let attachment = network::attach(netns, &network::Options::default()).map_err(Error::failed)?;
    if let Some(attachment) = &attachment
        && !attachment.left_out().is_empty()
    {
        tracing::warn!(
            sandbox = plan.id,
            interfaces = ?attachment.left_out(),
            "only one interface of the pod is given to the guest"
        );
    }
    Ok(attachment)
}

/// Opens what the VM is booted from, and makes its scratch disk.
pub(super) fn open_files(plan: &Plan) -> Result<Files> {
    let config = &plan.config;
    Ok(Files {
        kvm: files::kvm().map_err(Error::failed)?,
        kernel: files::kernel(&config.kernel).map_err(Error::failed)?,
        agent: files::agent(&config.agent).map_err(Error::failed)?,
        scratch: scratch::create(&config.data_dir, config.scratch_mib).map_err(Error::failed)?,
    })
}

/// Starts a VMM in a cgroup and with a user of its own.
pub(super) fn spawn_vmm(plan: &Plan) -> Result<Spawned> {
    let config = &plan.config;
    files::vmm(&config.vmm).map_err(Error::failed)?;
    let uid = UidLease::take(
        &config.state_dir,
        &plan.id,
        config.uid_base,
        config.uid_count,
    )
    .map_err(Error::failed)?;
    let network = no_network::open(&config.state_dir).map_err(Error::failed)?;
    let cgroup = Cgroup::create(&plan.cgroups_path).map_err(Error::failed)?;
    let spawned =
        limit_memory(plan, &cgroup).and_then(|()| spawn_in(&config.vmm, &cgroup, network.as_fd()));
    match spawned {
        Ok((vmm, log)) => Ok(Spawned {
            vmm,
            log,
            cgroup,
            uid,
        }),
        Err(error) => {
            remove_cgroup(&cgroup);
            Err(error)
        }
    }
}

fn remove_cgroup(cgroup: &Cgroup) {
    if let Err(error) = cgroup.remove() {
        tracing::warn!(error = chain(&error), "removing the cgroup");
    }
}

/// Bounds what the VMM and what serves it may take. A scratch disk in memory is theirs.
fn limit_memory(plan: &Plan, cgroup: &Cgroup) -> Result<()> {
    let config = &plan.config;
    let disk = match scratch::is_in_memory(&config.data_dir) {
        true => config.scratch_mib,
        false => 0,
    };
    cgroup
        .set_memory_limit(u64::from(plan.size.memory_mib) + disk)
        .map_err(Error::failed)
}

/// Starts the VMM; the other result is where its messages can be read.
fn spawn_in(binary: &Path, cgroup: &Cgroup, network: BorrowedFd<'_>) -> Result<(Vmm, OwnedFd)> {
    let open = |path: &Path, error| Error::Failed(format!("{}: {error}", path.display()));
    let dir = cgroup.vmm_dir();
    let dir = File::open(&dir).map_err(|error| open(&dir, error))?;
    let (messages, log) = std::io::pipe()
        .map_err(|error| Error::Failed(format!("cannot make a pipe for the VMM: {error}")))?;
    let log = File::from(OwnedFd::from(log));
    let place = Place {
        cgroup: Some(dir.as_fd()),
        network: Some(network),
    };
    let vmm = Vmm::spawn(binary, place, Some(log)).map_err(Error::failed)?;
    // It inherits our own score, which protects it from the kernel's killer: a
    // guest that eats the host's memory shall not be protected.
    set_oom_score(vmm.pid(), 0);
    Ok((vmm, messages.into()))
}
