//! joey's own service: what a sandbox needs and containerd's Task service lacks.

use std::ffi::CString;
use std::fs;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::guest::{
    ConfigureRequest, ConsoleRequest, DropSharesRequest, Empty, Event, NextEventRequest,
    OnlineCpusRequest, SetClockRequest, StatsResponse,
};
use protocol::guest_ttrpc::Guest;
use protocol::ids::SHM_PATH;
use rustix::mount::{MountFlags, mount, mount_remount};
use rustix::system::sethostname;
use ttrpc::r#async::TtrpcContext;
use ttrpc::error::get_rpc_status;
use ttrpc::{Code, Error, Result};

use crate::network::{self, Network, NetworkError};
use crate::resources;
use crate::tasks::Tasks;
use crate::{clock, console, network::resolv_conf};

const DEFAULT_SHM: u64 = 64 << 20;

/// The service.
pub struct GuestService(pub Arc<Tasks>);

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::Invalid(_) => Code::INVALID_ARGUMENT,
            NetworkError::NoDevice(_) => Code::NOT_FOUND,
            NetworkError::System { .. } => Code::UNKNOWN,
        };
        get_rpc_status(code, error)
    }
}

fn failed<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> Error {
    move |error| get_rpc_status(Code::UNKNOWN, format!("{what}: {}", error.into()))
}

/// Mounts the pod's /dev/shm, or gives it another size.
fn mount_shm(bytes: u64) -> io::Result<()> {
    let bytes = if bytes == 0 { DEFAULT_SHM } else { bytes };
    let options = CString::new(format!("mode=1777,size={bytes}")).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match fs::create_dir(SHM_PATH) {
        Ok(()) => Ok(mount("shm", SHM_PATH, "tmpfs", flags, options.as_c_str())?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(mount_remount(SHM_PATH, flags, options.as_c_str())?)
        }
        Err(error) => Err(error),
    }
}

fn configure(request: &ConfigureRequest) -> Result<()> {
    // Before anything that could use either.
    clock::add_entropy(&request.entropy).map_err(failed("add entropy"))?;
    clock::set(request.clock_ns).map_err(failed("set the clock"))?;

    if !request.hostname.is_empty() {
        sethostname(request.hostname.as_bytes()).map_err(failed("set the hostname"))?;
    }
    mount_shm(request.shm_bytes).map_err(failed("mount the pod's shared memory"))?;
    if let Some(dns) = request.dns.as_ref() {
        let text = resolv_conf(dns)?;
        fs::create_dir_all("/etc")
            .and_then(|()| fs::write("/etc/resolv.conf", text))
            .map_err(failed("write /etc/resolv.conf"))?;
    }
    // Sysctls may name an interface, and say how addresses behave.
    let network = Network::prepare(&request.interfaces)?;
    for (name, value) in &request.sysctls {
        network::set_sysctl(name, value)?;
    }
    network.bring_up(&request.routes)?;
    resources::online_cpus(request.cpus).map_err(failed("configure processors"))
}

#[async_trait]
impl Guest for GuestService {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> Result<Empty> {
        configure(&request)?;
        // The host goes on with this answer; mounting scratch meanwhile is free.
        let tasks = Arc::clone(&self.0);
        tokio::spawn(async move {
            if let Err(error) = tasks.storage().ensure_scratch() {
                log::warn!("{error}; the first container that needs scratch tries again");
            }
        });
        Ok(Empty::default())
    }

    async fn online_cpus(&self, _: &TtrpcContext, request: OnlineCpusRequest) -> Result<Empty> {
        resources::online_cpus(request.cpus).map_err(failed("online processors"))?;
        Ok(Empty::default())
    }

    async fn set_clock(&self, _: &TtrpcContext, request: SetClockRequest) -> Result<Empty> {
        clock::set(request.clock_ns).map_err(failed("set the clock"))?;
        Ok(Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, _: Empty) -> Result<StatsResponse> {
        resources::guest_stats().map_err(failed("read the guest's statistics"))
    }

    async fn next_event(&self, _: &TtrpcContext, request: NextEventRequest) -> Result<Event> {
        Ok(self.0.events.next(request.after).await)
    }

    async fn drop_shares(&self, _: &TtrpcContext, request: DropSharesRequest) -> Result<Empty> {
        self.0.volumes().drop_shares(&request.shares);
        Ok(Empty::default())
    }

    async fn console(&self, _: &TtrpcContext, request: ConsoleRequest) -> Result<Empty> {
        console::start(&self.0, &request)?;
        Ok(Empty::default())
    }
}
