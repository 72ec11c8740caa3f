//! A sandbox by containerd's Sandbox API: nobody gives it a pause container. What holds its
//! namespaces is a container that is made and never started.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use guest_agent::metrics;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use runtime::{CgroupDriver, CreateOptions, Io};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use super::{Container, Live, Member, SharedPod, remains, room};
use crate::error::{Error, Result};
use crate::guest_spec;
use crate::metrics::TYPE_URL;
use crate::pod::Etc;
use crate::process::{KILLED, Process, step};
use crate::streams::Stdio;
use crate::task_state::{Exit, TaskState};

/// The file that stands for a command, which is never run.
const COMMAND: &str = "never";

/// The pod's /dev/shm, as containerd makes it: its data, and where it is mounted.
const SHM_DATA: &std::ffi::CStr = c"mode=1777,size=65536k";

/// What a sandbox is made from.
pub struct Request {
    /// Its id.
    pub id: String,
    /// containerd's directory of it.
    pub bundle: PathBuf,
    /// What its pod asks for.
    pub plan: Plan,
}

/// What a pod on the host's kernel asks for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The network namespace that the CNI set up; `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Whether it has the host's process ids.
    pub host_pids: bool,
    /// Whether it has the host's IPC objects.
    pub host_ipc: bool,
    /// The ids of its user namespace, if it has one.
    pub uids: Vec<LinuxIdMapping>,
    /// See `uids`.
    pub gids: Vec<LinuxIdMapping>,
    /// As the OCI spec names it.
    pub cgroups_path: PathBuf,
    /// Its name; empty: the host's.
    pub hostname: String,
    /// For its namespaces.
    pub sysctls: HashMap<String, String>,
    /// What its containers find in /etc unless they mount something else there.
    pub etc: Etc,
}

/// A running sandbox.
pub struct SharedSandbox {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created: SystemTime,
    pub(super) holder: Arc<Container>,
    etc: Etc,
    /// The status that a stop on request ends with.
    requested: OnceLock<u32>,
}

impl SharedPod {
    /// Makes the sandbox.
    ///
    /// # Errors
    /// Names what failed; nothing of it is left then.
    pub fn create_sandbox(&self, request: Request) -> Result<()> {
        let Request { id, bundle, plan } = request;
        let mut slot = self.slot();
        if slot.is_some() {
            return Err(Error::Exists(format!("sandbox {id} exists already")));
        }
        let etc = plan.etc.clone();
        self.home.get_or_init(|| bundle.clone());
        let made = make_holder(&id, &bundle, plan).inspect_err(|_| {
            // The error is what counts.
            remains::of_bundle(&bundle, &id);
        });
        let (engine, launched) = made?;
        let state = TaskState::Created { pid: launched.pid };
        let process = Process::new(
            &id,
            "",
            &bundle.to_string_lossy(),
            &self.streams,
            Stdio::default(),
            state,
        );
        let holder = Member::new(process, None, None);
        let live = Live {
            pidfd: launched.pidfd,
            terminal: None,
        };
        // Nobody else sets it.
        let _ = holder.live.set(live);
        self.reaper.register(launched.pid, holder.clone());
        *slot = Some(Arc::new(SharedSandbox {
            id,
            created: SystemTime::now(),
            holder: Arc::new(Container {
                bundle,
                init: holder,
                execs: Mutex::default(),
                engine: Mutex::new(Some(engine)),
                private_pids: true,
                making: tokio::sync::Mutex::new(()),
            }),
            etc,
            requested: OnceLock::new(),
        }));
        Ok(())
    }

    /// The sandbox, where it is none of the containers.
    ///
    /// # Errors
    /// When there is none.
    pub fn sandbox(&self) -> Result<Arc<SharedSandbox>> {
        self.slot()
            .clone()
            .ok_or_else(|| Error::NotFound("the sandbox does not exist".into()))
    }

    /// Whether a process is the sandbox's; if so, its end is told.
    pub(super) fn sandbox_ended(&self, process: &Arc<Process>, exit: Exit) -> bool {
        let Ok(sandbox) = self.sandbox() else {
            return false;
        };
        let is_its = Arc::ptr_eq(process, sandbox.process());
        if is_its {
            let status = *sandbox.requested.get().unwrap_or(&exit.status);
            process.finish_silently(Exit { status, ..exit });
        }
        is_its
    }

    /// Stops the pod; the sandbox is reported to have ended with `status`.
    pub async fn stop_sandbox(&self, status: u32) {
        let Ok(sandbox) = self.sandbox() else {
            return;
        };
        // The first that asks counts.
        let _ = sandbox.requested.set(status);
        for container in self.all() {
            // One that has ended is as good.
            let _ = container.with(|engine| engine.kill_all(libc::SIGKILL).map_err(Error::failed));
        }
        if sandbox.process().state().exit().is_none() {
            let killed = sandbox
                .holder
                .with(|engine| engine.kill(libc::SIGKILL).map_err(Error::failed));
            if let Err(error) = killed {
                tracing::debug!(%error, "the sandbox has ended by itself");
            }
            sandbox.process().wait().await;
        }
    }

    /// Stops the pod, and removes the sandbox.
    pub async fn remove_sandbox(&self) {
        self.stop_sandbox(KILLED).await;
        let Some(sandbox) = self.slot().take() else {
            return;
        };
        let (_, errors) =
            remains::of_bundle(&sandbox.holder.bundle, &sandbox.id).unwrap_or_default();
        for error in errors {
            tracing::warn!(error, "cannot remove what the sandbox has");
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<SharedSandbox>>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedSandbox {
    /// What containerd sees as its process.
    pub fn process(&self) -> &Arc<Process> {
        &self.holder.init.process
    }

    /// Its start, as containerd counts it. Returns the pid that leads to its namespaces.
    ///
    /// # Errors
    /// When it was started before or has ended.
    pub fn start(&self) -> Result<u32> {
        let process = self.process();
        let pid = process.state().pid();
        step(process, TaskState::start)?;
        step(process, |state| state.started(pid))?;
        Ok(pid)
    }

    /// What `crictl inspectp` shows of it.
    pub fn info(&self) -> Value {
        let cgroup = self
            .holder
            .with(|engine| Ok(engine.cgroup_path().to_owned()))
            .unwrap_or_default();
        json!({"cgroup": cgroup})
    }

    /// What it uses.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub fn stats(&self) -> Result<Any> {
        let stats = self
            .holder
            .with(|engine| engine.stats().map_err(Error::failed))?;
        Ok(Any {
            type_url: TYPE_URL.to_owned(),
            value: metrics::from_cgroup(stats)
                .write_to_bytes()
                .map_err(Error::failed)?,
            ..Default::default()
        })
    }

    /// Adds what the pod's containers get that containerd left to us: files of /etc, and the
    /// pod's shared memory.
    pub(super) fn complete(&self, spec: &mut Spec) {
        let mut mounts: Vec<Mount> = spec.mounts().clone().unwrap_or_default();
        let room = room(&self.holder.bundle);
        let shm = shm(&room).display().to_string();
        guest_spec::add_pods(&mut mounts, &self.etc, &shm, |path, _| {
            etc_file(&room, path).display().to_string()
        });
        spec.set_mounts(Some(mounts));
    }
}

/// Makes what holds the namespaces, and the files of the pod.
fn make_holder(
    id: &str,
    bundle: &Path,
    plan: Plan,
) -> Result<(runtime::Container, runtime::Launched)> {
    let room = room(bundle);
    let root = room.join("pod+root");
    let system = |path: &Path, error: std::io::Error| {
        Error::Failed(format!("cannot make {}: {error}", path.display()))
    };
    fs::create_dir_all(&root).map_err(|error| system(&root, error))?;
    let write = |path: &Path, data: &[u8], mode: u32| {
        fs::write(path, data)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(|error| system(path, error))
    };
    write(&root.join(COMMAND), b"", 0o755)?;
    for (path, data) in plan.etc.files() {
        write(&etc_file(&room, path), data, 0o644)?;
    }
    let shm = shm(&room);
    fs::create_dir(&shm).map_err(|error| system(&shm, error))?;
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    mount("shm", &shm, "tmpfs", flags, SHM_DATA).map_err(|error| system(&shm, error.into()))?;

    let null = || {
        let file = fs::File::options().read(true).write(true).open("/dev/null");
        file.map(std::os::fd::OwnedFd::from)
            .map_err(|error| system(Path::new("/dev/null"), error))
    };
    runtime::Container::create(CreateOptions {
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        spec: holder_spec(&root, plan)?,
        state_dir: room,
        io: Io::Files {
            stdin: null()?,
            stdout: null()?,
            stderr: null()?,
        },
        cgroup: CgroupDriver::Cgroupfs,
        launch: runtime::LaunchOptions::default(),
    })
    .map_err(Error::failed)
}

/// Nothing but namespaces and their settings.
fn holder_spec(root: &Path, plan: Plan) -> Result<Spec> {
    let mut namespaces = vec![json!({"type": "mount"})];
    let mut add = |kind: &str| namespaces.push(json!({"type": kind}));
    if !plan.host_pids {
        add("pid");
    }
    if !plan.host_ipc {
        add("ipc");
    }
    if !plan.uids.is_empty() {
        add("user");
    }
    if let Some(netns) = &plan.netns {
        add("uts");
        namespaces.push(json!({"type": "network", "path": netns}));
    }
    // Where the network is the host's, so are its settings and the name.
    let own = plan.netns.is_some();
    let sysctls: HashMap<String, String> = plan
        .sysctls
        .into_iter()
        .filter(|(name, _)| own || !name.starts_with("net."))
        .collect();
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "root": {"path": root, "readonly": true},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": [format!("/{COMMAND}")]},
        "linux": {
            "cgroupsPath": plan.cgroups_path,
            "namespaces": namespaces,
            "sysctl": sysctls,
            "uidMappings": plan.uids,
            "gidMappings": plan.gids,
        },
    });
    if own && !plan.hostname.is_empty() {
        spec["hostname"] = json!(plan.hostname);
    }
    serde_json::from_value(spec)
        .map_err(|error| Error::Failed(format!("the sandbox's spec: {error}")))
}

/// One of the pod's own files, by its path in containers.
fn etc_file(room: &Path, path: &str) -> PathBuf {
    let name = path.rsplit('/').next().unwrap_or(path);
    room.join(format!("pod+{name}"))
}

fn shm(room: &Path) -> PathBuf {
    room.join(format!("{}shm", super::rootfs::MOUNTED))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxNamespaceType;

    use super::*;

    fn plan(netns: Option<&str>) -> Plan {
        Plan {
            netns: netns.map(PathBuf::from),
            host_pids: netns.is_none(),
            host_ipc: netns.is_none(),
            uids: Vec::new(),
            gids: Vec::new(),
            cgroups_path: "/k8s.io/s".into(),
            hostname: "web".into(),
            sysctls: [("net.a", "1"), ("kernel.b", "2")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            etc: Etc {
                hostname: String::new(),
                hosts: Vec::new(),
                resolv_conf: Vec::new(),
            },
        }
    }

    fn kinds(spec: &Spec) -> Vec<LinuxNamespaceType> {
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone();
        namespaces.unwrap().iter().map(|one| one.typ()).collect()
    }

    #[test]
    fn a_pod_has_namespaces_of_its_own_unless_it_asks_for_the_hosts() {
        let own = holder_spec(Path::new("/r"), plan(Some("/run/netns/x"))).unwrap();
        use LinuxNamespaceType::{Ipc, Mount, Network, Pid, Uts};
        assert_eq!(kinds(&own), [Mount, Pid, Ipc, Uts, Network]);
        assert_eq!(own.hostname().as_deref(), Some("web"));
        let sysctls = own.linux().as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!(sysctls.len(), 2);
        let host = holder_spec(Path::new("/r"), plan(None)).unwrap();
        assert_eq!(kinds(&host), [Mount]);
        assert_eq!(*host.hostname(), None);
        let sysctls = host.linux().as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!(sysctls.keys().collect::<Vec<_>>(), ["kernel.b"]);
    }
}
