//! Making a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::{ContainerState, Spec};

use super::Container;
use crate::cgroup::{Cgroup, CgroupDriver, CgroupError, Hierarchies, Location};
use crate::error::CreateError;
use crate::hooks;
use crate::mounts::Shown;
use crate::notify;
use crate::plan::{NamespaceKind, Plan};
use crate::process::{self, Io, Launched};
use crate::rootfs::mount_at;
use crate::state::{Saved, StateDir, born};

/// What [`Container::create`] needs.
#[derive(Debug)]
pub struct CreateOptions {
    /// The container's id: unique in `state_dir`.
    pub id: String,
    /// The bundle's directory, absolute: a relative `root.path` starts here.
    pub bundle: PathBuf,
    /// The spec.
    pub spec: Spec,
    /// The root of the state, one directory per container.
    pub state_dir: PathBuf,
    /// How the container's first process is connected.
    pub io: Io,
    /// Who makes the cgroup.
    pub cgroup: CgroupDriver,
    /// What a caller may choose beside the spec.
    pub launch: LaunchOptions,
}

/// What a caller may choose for a container's first process beside its spec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// How many descriptors of the caller the command gets beside its streams: those from 3 on,
    /// which must be open.
    pub preserve_fds: u32,
    /// Whether the root file system is mounted over the old root instead of taking its place: for
    /// callers whose own root is in an initramfs.
    pub no_pivot: bool,
    /// Whether the command stays in the caller's session keyring.
    pub keep_keyring: bool,
    /// Whether the container does without a cgroup of its own where the caller may not make one and
    /// the spec asks for neither limits nor a cgroup: for callers who are not root.
    pub cgroup_optional: bool,
    /// Whether the container gets a socket on which it says that it is ready
    /// ([`Container::notify_socket`]).
    pub notify: bool,
}

impl Container {
    /// Makes the container up to the point where its command can be started: namespaces, cgroup,
    /// root file system, rights and limits are in place, the command has been found, and its
    /// process waits.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left behind then.
    pub fn create(options: CreateOptions) -> Result<(Self, Launched), CreateError> {
        Self::make(options, launch)
    }

    /// Makes the container, with what `begin` makes for its first process.
    pub(crate) fn make(
        options: CreateOptions,
        begin: impl FnOnce(Making<'_>) -> Result<(OwnedFd, Launched), CreateError>,
    ) -> Result<(Self, Launched), CreateError> {
        let CreateOptions {
            id,
            bundle,
            mut spec,
            state_dir,
            io,
            cgroup,
            launch,
        } = options;
        if launch.notify {
            let system = |source| CreateError::System {
                what: "find the state directory",
                source,
            };
            let dir = std::path::absolute(&state_dir).map_err(system)?;
            notify::add(&mut spec, dir.join(&id).join(notify::DIR));
        }
        let plan = Plan::new(&spec, &bundle, &id)?;
        if !plan.namespaces.has_user() {
            let missing = plan.process.capabilities.missing();
            if !missing.is_empty() {
                tracing::warn!("container {id}: cannot be given {}", missing.join(", "));
            }
        }
        let dir = StateDir::create(&state_dir, &id)?;
        let mut saved = Saved {
            id,
            bundle,
            pid: 0,
            born: 0,
            cgroup: Location::default(),
            created: SystemTime::now(),
            beneath: None,
            spec,
        };
        if !plan.namespaces.is_private(NamespaceKind::Mount) {
            tracing::warn!(
                "container {}: without a mount namespace it is mounted on the host, and its root \
                 can be left by a process with CAP_SYS_CHROOT",
                saved.id
            );
            let covered = mount_at(&plan.rootfs).map_err(|source| CreateError::System {
                what: "look at the root file system",
                source,
            })?;
            saved.beneath = Some((plan.rootfs.clone(), covered));
        }
        // Each of these functions takes back what it has made itself. The error is what the caller
        // must learn; should something resist being taken back, there is nothing better to do.
        match make(&plan, &dir, &mut saved, io, cgroup, launch, begin) {
            Ok((first, launched)) => {
                let first = Some(first);
                Ok((Self { saved, dir, first }, launched))
            }
            Err(error) => {
                let _ = dir.remove();
                Err(error)
            }
        }
    }
}

/// What a container's first process is made with.
pub(crate) struct Making<'a> {
    /// What it is to be.
    pub plan: &'a Plan,
    /// Where it is remembered.
    pub dir: &'a StateDir,
    /// What is known of it.
    pub saved: &'a mut Saved,
    /// How its first process is connected.
    pub io: Io,
    /// What the caller has chosen.
    pub options: LaunchOptions,
    /// Its cgroup.
    pub cgroup: &'a mut Option<Cgroup>,
    /// What it sees of that.
    pub shown: Shown,
}

/// Makes the cgroup and all that is in it.
fn make(
    plan: &Plan,
    dir: &StateDir,
    saved: &mut Saved,
    io: Io,
    driver: CgroupDriver,
    options: LaunchOptions,
    begin: impl FnOnce(Making<'_>) -> Result<(OwnedFd, Launched), CreateError>,
) -> Result<(OwnedFd, Launched), CreateError> {
    if options.notify {
        dir.make_notify()?;
    }
    let hierarchies = Hierarchies::of_host()?;
    if driver == CgroupDriver::Cgroupfs {
        let points = hierarchies.list.iter();
        let directories: Vec<PathBuf> = points
            .map(|hierarchy| hierarchy.point.join(&plan.cgroup))
            .filter(|directory| !directory.exists())
            .collect();
        dir.note_cgroup(&directories)?;
    }
    // One that is asked for by name is meant.
    let named = cgroups_path(&saved.spec).is_some_and(|path| !path.as_os_str().is_empty());
    let optional = options.cgroup_optional && !named;
    let mut cgroup = match make_cgroup(&hierarchies, plan, saved, driver) {
        Err(CreateError::Cgroup(error)) if optional && error.is_denied() => {
            if let Some(setting) = plan.resources.settings.first() {
                return Err(CgroupError::Limits {
                    setting: setting.field.clone(),
                    source: Box::new(error),
                }
                .into());
            }
            tracing::debug!("container {}: it has no cgroup: {error}", saved.id);
            None
        }
        other => Some(other?),
    };
    let shown = match &cgroup {
        Some(cgroup) => Shown::new(&hierarchies, cgroup),
        None => Shown::of_caller(&hierarchies),
    };
    saved.cgroup = cgroup.as_ref().map(Cgroup::location).unwrap_or_default();
    // Before there is a process: should this one be killed now, delete knows where to look.
    let kept = dir.save(saved).map_err(CreateError::from);
    let made = kept.and_then(|()| {
        begin(Making {
            plan,
            dir,
            saved,
            io,
            options,
            cgroup: &mut cgroup,
            shown,
        })
    });
    if made.is_err() {
        let _ = saved.uncover();
        if let Some(cgroup) = &mut cgroup {
            cgroup.inhabited();
            let _ = cgroup.kill().and_then(|()| cgroup.wait_empty());
            let _ = cgroup.remove();
            cgroup.undo();
        }
    }
    made
}

fn cgroups_path(spec: &Spec) -> Option<&Path> {
    spec.linux().as_ref()?.cgroups_path().as_deref()
}

#[cfg(not(feature = "systemd"))]
fn make_cgroup(
    hierarchies: &Hierarchies,
    plan: &Plan,
    _: &Saved,
    CgroupDriver::Cgroupfs: CgroupDriver,
) -> Result<Cgroup, CreateError> {
    Ok(Cgroup::create(hierarchies, &plan.cgroup)?)
}

#[cfg(feature = "systemd")]
fn make_cgroup(
    hierarchies: &Hierarchies,
    plan: &Plan,
    saved: &Saved,
    driver: CgroupDriver,
) -> Result<Cgroup, CreateError> {
    use crate::cgroup::{Scope, ScopeName, annotated_properties};
    use crate::plan::PlanError;
    let Some(user) = driver.user_manager() else {
        return Ok(Cgroup::create(hierarchies, &plan.cgroup)?);
    };
    let name = ScopeName::new(cgroups_path(&saved.spec), &saved.id, user)
        .map_err(|problem| PlanError::new("linux.cgroupsPath", problem))?;
    let properties = saved
        .spec
        .annotations()
        .as_ref()
        .map(annotated_properties)
        .transpose();
    let properties = properties.map_err(|(field, problem)| PlanError::new(field, problem))?;
    let scope = Scope::new(name, user);
    Ok(Cgroup::create_scope(
        hierarchies,
        scope,
        properties.unwrap_or_default(),
    )?)
}

/// Limits the cgroup.
pub(crate) fn limit(
    plan: &Plan,
    options: LaunchOptions,
    cgroup: &Option<Cgroup>,
) -> Result<(), CgroupError> {
    let Some(cgroup) = cgroup else {
        return Ok(());
    };
    cgroup.apply(&plan.resources.settings)?;
    match cgroup.set_device_rules(&plan.resources.devices) {
        // Who may not load the program may not make a device node either.
        Err(error) if options.cgroup_optional && error.is_denied() => Ok(()),
        other => other,
    }
}

/// Limits the cgroup, makes the first process in it and writes the state. Returns a second
/// descriptor of the process.
fn launch(making: Making<'_>) -> Result<(OwnedFd, Launched), CreateError> {
    let Making {
        plan,
        dir,
        saved,
        io,
        options,
        cgroup,
        shown,
    } = making;
    limit(plan, options, cgroup)?;
    let listener = dir.listen()?;
    let state = saved.state(ContainerState::Creating);
    let launched = process::create(
        plan,
        cgroup.as_mut(),
        shown,
        listener,
        io,
        options,
        state.clone(),
    )
    .inspect_err(|_| {
        // Hooks that have run may have something to take back.
        let state = saved.state(ContainerState::Stopped);
        hooks::run_all("poststop", plan.hooks.poststop(), &state);
    });
    let launched = launched.map_err(|error| {
        let killed = cgroup
            .as_ref()
            .and_then(|cgroup| killed_by_limit(cgroup, saved));
        killed.unwrap_or(error)
    })?;
    let first = keep(dir, saved, &launched)
        // It is this process's child and waits to be started: nobody else ends or collects it.
        .inspect_err(|_| process::end(launched.pidfd.as_fd()))?;
    Ok((first, launched))
}

/// The better error when the first process did not survive its own limit of memory.
fn killed_by_limit(cgroup: &Cgroup, saved: &Saved) -> Option<CreateError> {
    let events = cgroup.memory_events().ok()??;
    // Not every allocation ends in a kill: some of the kernel's own just fail.
    let killed = ["oom", "oom_kill"]
        .iter()
        .any(|event| events.get(*event).is_some_and(|count| *count > 0));
    let resources = saved.spec.linux().as_ref()?.resources().as_ref()?;
    let limit = resources.memory().and_then(|memory| memory.limit())?;
    killed.then_some(CreateError::Memory { limit })
}

/// Writes the state of a container whose first process is there.
pub(crate) fn keep(
    dir: &StateDir,
    saved: &mut Saved,
    launched: &Launched,
) -> Result<OwnedFd, CreateError> {
    let system = |what| move |source| CreateError::System { what, source };
    saved.pid = launched.pid;
    saved.born = born(launched.pid).map_err(system("read the age of the first process"))?;
    dir.save(saved)?;
    launched
        .pidfd
        .try_clone()
        .map_err(system("keep the first process"))
}
