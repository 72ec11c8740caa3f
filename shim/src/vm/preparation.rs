//! What a VM needs of the host, each part made on its own.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use network::Attachment;
use tokio::task::spawn_blocking;
use vmm::{BootFiles, Place, RestoreFiles, VmSpec, Vmm};

use super::{DOCTOR, Plan, set_oom_score};
use crate::config::Config;
use crate::error::{Error, Result, chain};
use crate::host::cgroup::{self, Cgroup};
use crate::host::record::{self, Record};
use crate::host::uids::UidLease;
use crate::host::{files, no_network, scratch};
use crate::pool;
use crate::stages::Stages;
use crate::templates::recipe::Recipe;
use crate::templates::{self, Template};
use crate::vmm_log;

/// Name in the state directory of what the guest writes to its serial port.
const CONSOLE: &str = "console.log";

/// A VMM whose VM has not run yet.
pub(super) struct Made {
    pub(super) vmm: Vmm,
    /// Its kernel has not booted yet; else it goes on from a template.
    pub(super) boots: bool,
    pub(super) cgroup: Cgroup,
    /// It is not in its cgroup yet.
    pub(super) stray: bool,
    /// Where its messages can be read.
    pub(super) log: OwnedFd,
}

/// Ends a VM, before anything else hangs on it.
pub(super) async fn undo(vmm: Vmm, cgroup: Cgroup) {
    let undone = spawn_blocking(move || {
        drop(vmm);
        remove_cgroup(&cgroup);
    });
    // It cannot be cancelled, and does not panic.
    let _ = undone.await;
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

/// Makes the VM's scratch disk.
pub(super) fn make_scratch(plan: &Plan) -> Result<File> {
    let config = &plan.config;
    scratch::create(&config.data_dir, config.scratch_mib).map_err(Error::failed)
}

/// The shape of a VM of this node, whose VMM runs as this user.
pub fn shape(config: &Config, uid: u32) -> VmSpec {
    VmSpec {
        // The same for all pods: what one asks for comes while it runs.
        vcpus: config.guest_vcpus(),
        memory_mib: config.memory_mib,
        hotplug_mib: config.hotplug_mib(),
        offloads: vmm::offloads(),
        uid,
        gid: uid,
        console: config.console,
    }
}

/// Makes a VM in the pod's cgroup: from the node's template, or else one that boots.
pub(super) fn make_vm(plan: &Plan, stages: &Stages) -> Result<Made> {
    let cgroup = Cgroup::create(&plan.cgroups_path, 1).map_err(Error::failed)?;
    let made = limit_memory(&plan.config, &cgroup, plan.size.memory_mib)
        .and_then(|()| from_template(plan, stages, &cgroup))
        .and_then(|made| made.map_or_else(|| to_boot(plan, stages, &cgroup), Ok));
    match made {
        Ok((vmm, log, origin)) => Ok(Made {
            vmm,
            boots: origin == Origin::Kernel,
            stray: origin == Origin::Pool,
            log,
            cgroup,
        }),
        Err(error) => {
            remove_cgroup(&cgroup);
            Err(error)
        }
    }
}

/// Where a VM comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Kernel,
    Template,
    Pool,
}

/// A VM from the node's template: one that waits for a pod, or a new one. `None`: there is
/// no template that can be used.
fn from_template(
    plan: &Plan,
    stages: &Stages,
    cgroup: &Cgroup,
) -> Result<Option<(Vmm, OwnedFd, Origin)>> {
    let config = &plan.config;
    let Some(template) = plan.templates.then(|| find_template(config)).flatten() else {
        return Ok(None);
    };
    let (messages, log) = pipe()?;
    let taken = stages.time_blocking("take", || pool::take(config, &template.key, log));
    if let Some(vmm) = taken {
        return Ok(Some((vmm, messages, Origin::Pool)));
    }
    match restore(
        config,
        &plan.id,
        &template,
        &cgroup.vmm_dir(),
        false,
        stages,
    ) {
        Ok((vmm, log)) => Ok(Some((vmm, log, Origin::Template))),
        Err(error) => {
            discard_template(config, &template.key, &error);
            Ok(None)
        }
    }
}

/// Makes a VM that goes on from a template. `name`: whoever it is for; the other result
/// is where the VMM's messages can be read. `ahead`: nobody waits for it yet.
pub(crate) fn restore(
    config: &Config,
    name: &str,
    template: &Template,
    cgroup: &Path,
    ahead: bool,
    stages: &Stages,
) -> Result<(Vmm, OwnedFd)> {
    let kvm = files::kvm().map_err(Error::failed)?;
    let kernel = files::kernel(&config.kernel).map_err(Error::failed)?;
    let (mut vmm, log, uid) = stages.time_blocking("spawn", || spawn_in(config, name, cgroup))?;
    let files = RestoreFiles {
        kvm: kvm.as_fd(),
        kernel: kernel.as_fd(),
        memory: template.memory.as_fd(),
        state: template.state.as_fd(),
        changes: Some(template.changes.as_fd()),
    };
    let spec = shape(config, uid);
    let restored = stages.time_blocking("restore", || vmm.restore(&spec, files, ahead));
    restored.map_err(Error::failed)?;
    Ok((vmm, log))
}

/// Makes a VM that boots.
fn to_boot(plan: &Plan, stages: &Stages, cgroup: &Cgroup) -> Result<(Vmm, OwnedFd, Origin)> {
    let config = &plan.config;
    let kvm = files::kvm().map_err(Error::failed)?;
    let kernel = files::kernel(&config.kernel).map_err(Error::failed)?;
    let agent = files::agent(&config.agent).map_err(Error::failed)?;
    let serial = console_log(plan)?;
    files::vmm(&config.vmm).map_err(Error::failed)?;
    let spawn = || spawn_in(config, &plan.id, &cgroup.vmm_dir());
    let (mut vmm, log, uid) = stages.time_blocking("spawn", spawn)?;
    let files = BootFiles {
        kvm: kvm.as_fd(),
        kernel: kernel.as_fd(),
        initramfs: agent.as_fd(),
        serial: serial.as_ref().map(AsFd::as_fd),
    };
    let spec = shape(config, uid);
    match stages.time_blocking("load", || vmm.boot(&spec, files)) {
        Ok(()) => Ok((vmm, log, Origin::Kernel)),
        Err(error) => {
            // With its end that of its messages comes.
            drop(vmm);
            let error = format!("cannot boot the VM: {}; {DOCTOR}", chain(&error));
            Err(Error::Failed(match vmm_log::last_line(log) {
                said if said.is_empty() => error,
                said => format!("the VMM said {said:?}: {error}"),
            }))
        }
    }
}

/// The node's template, if there is one that can be used.
pub(crate) fn find_template(config: &Config) -> Option<Template> {
    if !config.uses_templates() {
        return None;
    }
    // A file that is missing is named when the VM boots.
    let recipe = Recipe::of(config, &shape(config, 0)).ok()?;
    match templates::find(&config.state_dir, &recipe) {
        Ok(found) => found,
        Err(error) => {
            discard_template(config, &recipe.key(), &error);
            None
        }
    }
}

/// Removes a template that is no good, so that another is made.
fn discard_template(config: &Config, key: &str, reason: &dyn std::error::Error) {
    let reason = chain(reason);
    tracing::warn!(key, reason, "a template cannot be used: the sandbox boots");
    if let Err(error) = templates::remove(&config.state_dir, key) {
        tracing::warn!(key, %error, "cannot remove a template that cannot be used");
    }
}

/// Where the guest's console goes, if it has one.
fn console_log(plan: &Plan) -> Result<Option<File>> {
    let config = &plan.config;
    let path = record::path(&config.state_dir, &plan.namespace, &plan.id).join(CONSOLE);
    let open = || {
        File::create(&path).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))
    };
    config.console.then(open).transpose()
}

fn remove_cgroup(cgroup: &Cgroup) {
    if let Err(error) = cgroup.remove() {
        tracing::warn!(error = chain(&error), "removing the cgroup");
    }
}

/// Bounds what the VMM of a guest with this much memory, and what serves it, may take. A
/// scratch disk in memory is theirs.
pub(super) fn limit_memory(config: &Config, cgroup: &Cgroup, guest_mib: u32) -> Result<()> {
    let disk = match scratch::is_in_memory(&config.data_dir) {
        true => config.scratch_mib,
        false => 0,
    };
    cgroup
        .set_memory_limit(u64::from(guest_mib) + disk)
        .map_err(Error::failed)
}

/// A pipe for the VMM's messages: what is read, and what it writes to.
fn pipe() -> Result<(OwnedFd, File)> {
    let (messages, log) = std::io::pipe()
        .map_err(|error| Error::Failed(format!("cannot make a pipe for the VMM: {error}")))?;
    Ok((messages.into(), File::from(OwnedFd::from(log))))
}

/// Starts a VMM in a cgroup. The other results are where its messages can be read, and the
/// user that it is to run as.
pub(super) fn spawn_in(config: &Config, name: &str, cgroup: &Path) -> Result<(Vmm, OwnedFd, u32)> {
    let lease = UidLease::take(&config.state_dir, name, config.uid_base, config.uid_count);
    let lease = lease.map_err(Error::failed)?;
    let network = no_network::open(&config.state_dir).map_err(Error::failed)?;
    let dir = File::open(cgroup)
        .map_err(|error| Error::Failed(format!("{}: {error}", cgroup.display())))?;
    let (messages, log) = pipe()?;
    let place = Place {
        cgroup: Some(dir.as_fd()),
        network: Some(network.as_fd()),
        lease: Some(lease.as_fd()),
    };
    let vmm = Vmm::spawn(&config.vmm, place, Some(log)).map_err(Error::failed)?;
    // It inherits our own score, which protects it from the kernel's killer: a
    // guest that eats the host's memory shall not be protected.
    set_oom_score(vmm.pid(), 0);
    Ok((vmm, messages, lease.uid))
}
