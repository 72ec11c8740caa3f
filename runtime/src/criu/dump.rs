//! Checkpoint: what is to be saved of a container.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::wire::{Message, option};
use super::{
    Criu, CriuError, CriuOptions, DUMP, PRE_DUMP, Request, Result, STREAMS, mounts, program, system,
};
use crate::container::Container;
use crate::plan::{NamespaceKind, Plan};
use crate::state::Status;
use crate::sys::NewProcess;

/// How a container is checkpointed.
#[derive(Debug, Clone, Default)]
pub struct DumpOptions {
    /// As for a restore.
    pub common: CriuOptions,
    /// The directory of earlier images, relative to that of these.
    pub parent: Option<PathBuf>,
    /// Save memory alone, and let the container run.
    pub pre_dump: bool,
    /// Let the container run.
    pub leave_running: bool,
    /// Leave out connections of TCP that are being made.
    pub tcp_skip_in_flight: bool,
    /// Files that have lost their name may be given one meanwhile.
    pub link_remap: bool,
    /// Who takes the memory instead of the directory.
    pub page_server: Option<PageServer>,
}

/// The address of a page server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageServer {
    /// Its address.
    pub address: String,
    /// Its port of TCP.
    pub port: u16,
}

impl Container {
    /// Saves a running container with criu. Its processes have ended then, unless they are to go
    /// on; the container itself is still there, to be deleted.
    ///
    /// # Errors
    /// [`CriuError`]; the container runs on.
    pub fn checkpoint(&self, options: &DumpOptions) -> Result<()> {
        let status = self.status();
        if !matches!(status, Status::Running | Status::Paused) {
            return Err(CriuError::NotRunning {
                id: self.id().to_owned(),
                status,
            });
        }
        let program = program()?;
        let spec = self.spec();
        let plan = Plan::new(spec, self.bundle(), self.id())?;
        if !plan.namespaces.is_private(NamespaceKind::Mount) {
            return Err(CriuError::Unsupported(
                "a container without a mount namespace cannot be checkpointed".to_owned(),
            ));
        }
        let kind = if options.pre_dump { PRE_DUMP } else { DUMP };
        let mut request = Request::new("dump", kind, &options.common, spec.annotations());
        self.describe(&mut request.options, &plan, options)?;
        if !options.pre_dump {
            for (place, name) in mounts::outside(&plan, self.pid())? {
                let (place, name) = (place.into_os_string(), name.into_os_string());
                request.options.pair(
                    option::EXT_MNT,
                    place.as_encoded_bytes(),
                    name.as_encoded_bytes(),
                );
            }
            self.note_streams(&options.common)?;
        }
        let criu = Criu::start(&program, NewProcess::default(), &[], || Ok(()))?;
        criu.request(&request, |_, _, _| Ok(()))?;
        Ok(())
    }

    fn describe(&self, message: &mut Message, plan: &Plan, options: &DumpOptions) -> Result<()> {
        message
            .number(option::PID, self.pid().into())
            .flag(option::LEAVE_RUNNING, options.leave_running)
            .text(option::ROOT, plan.rootfs.as_os_str().as_encoded_bytes())
            .flag(option::TCP_SKIP_IN_FLIGHT, options.tcp_skip_in_flight)
            .flag(option::LINK_REMAP, options.link_remap);
        if let Some(parent) = &options.parent {
            message.text(option::PARENT_IMG, parent.as_os_str().as_encoded_bytes());
        }
        // A later dump can only build on one with this.
        message.flag(
            option::TRACK_MEM,
            options.pre_dump || options.parent.is_some(),
        );
        if let Some(server) = &options.page_server {
            let mut address = Message::default();
            address
                .text(1, &server.address)
                .number(2, server.port.into());
            message.message(option::PAGE_SERVER, &address);
        }
        // Or it would stop one process after the other, by ptrace.
        if let Some(freezer) = self.freezer() {
            message.text(
                option::FREEZE_CGROUP,
                freezer.as_os_str().as_encoded_bytes(),
            );
        }
        for (kind, path) in &plan.namespaces.join {
            let name = match kind {
                NamespaceKind::Network => "net",
                NamespaceKind::Pid => "pid",
                // criu saves these and joins them again.
                _ => continue,
            };
            let inode = std::fs::metadata(path)
                .map_err(system(format!("look at {}", path.display())))?
                .ino();
            message.text(
                option::EXTERNAL,
                format!("{name}[{inode}]:{}", super::external_name(*kind)),
            );
        }
        Ok(())
    }

    /// Notes what the standard streams are: pipes are the caller's, who will have others.
    fn note_streams(&self, common: &CriuOptions) -> Result<()> {
        let streams: Vec<String> = (0..3)
            .map(|number| {
                let link = std::fs::read_link(format!("/proc/{}/fd/{number}", self.pid()));
                link.map_or_else(
                    |_| "/dev/null".to_owned(),
                    |link| link.to_string_lossy().into_owned(),
                )
            })
            .collect();
        let path = common.images.join(STREAMS);
        std::fs::write(&path, serde_json::json!(streams).to_string())
            .map_err(system(format!("write {}", path.display())))
    }
}
