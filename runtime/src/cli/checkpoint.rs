//! `checkpoint`, and what it has in common with `restore`.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use runtime::{CgroupMode, CriuOptions, DumpOptions, PageServer};

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    #[command(flatten)]
    criu: CriuArgs,
    /// Directory of earlier images, relative to that of these
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Let the container run on
    #[arg(long)]
    leave_running: bool,
    /// Leave out connections of TCP that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Files that have lost their name may be given one
    #[arg(long)]
    link_remap: bool,
    /// Save memory alone, and let the container run on
    #[arg(long)]
    pre_dump: bool,
    /// Who takes the memory instead of the directory
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = page_server)]
    page_server: Option<PageServer>,
    #[arg(long, hide = true)]
    status_fd: Option<i32>,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Checkpoint {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let mut container = global.container(&self.id)?;
        let common = self.criu.options()?;
        ensure!(
            self.status_fd.is_none(),
            "--status-fd is not supported: it belongs to --lazy-pages"
        );
        make_directory(&common.images)?;
        if let Some(work) = &common.work {
            make_directory(work)?;
        }
        if let Some(parent) = &self.parent_path {
            ensure!(
                parent.is_relative(),
                "--parent-path {} must be relative to --image-path",
                parent.display()
            );
            let parent = common.images.join(parent);
            ensure!(
                parent.is_dir(),
                "--parent-path: there is no directory {}",
                parent.display()
            );
        }
        let runs_on = self.leave_running || self.pre_dump;
        container.checkpoint(&DumpOptions {
            common,
            parent: self.parent_path,
            pre_dump: self.pre_dump,
            leave_running: self.leave_running,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            link_remap: self.link_remap,
            page_server: self.page_server,
        })?;
        if !runs_on && let Err(left) = container.delete(true) {
            // It is saved all the same.
            tracing::warn!("{left}");
        }
        Ok(())
    }
}

/// What `checkpoint` and `restore` have in common.
#[derive(Debug, Args)]
pub(super) struct CriuArgs {
    /// Directory of the images (default: checkpoint)
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,
    /// Directory of criu's log (default: that of the images)
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Allow established connections of TCP
    #[arg(long)]
    tcp_established: bool,
    /// Allow Unix sockets whose other end is outside
    #[arg(long)]
    ext_unix_sk: bool,
    /// Allow a terminal that is not the container's
    #[arg(long)]
    shell_job: bool,
    /// Allow locks of files
    #[arg(long)]
    file_locks: bool,
    /// Drop pages that later images have
    #[arg(long)]
    auto_dedup: bool,
    /// What becomes of cgroups
    #[arg(long, value_name = "MODE")]
    manage_cgroups_mode: Option<Mode>,
    /// Namespace that is restored without what was in it: network, which always is
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,
    #[arg(long, hide = true)]
    lazy_pages: bool,
}

/// What becomes of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Soft,
    Full,
    Strict,
    Ignore,
}

impl CriuArgs {
    /// What is asked for, with absolute paths.
    pub(super) fn options(&self) -> Result<CriuOptions> {
        ensure!(
            !self.lazy_pages,
            "--lazy-pages is not supported: memory is saved and restored at once"
        );
        if let Some(other) = self.empty_ns.iter().find(|name| *name != "network") {
            bail!("--empty-ns {other} is not supported; only network is");
        }
        let absolute = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("find {}", path.display()))
        };
        let images = self.image_path.as_deref();
        Ok(CriuOptions {
            images: absolute(images.unwrap_or(Path::new("checkpoint")))?,
            work: self.work_path.as_deref().map(absolute).transpose()?,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            auto_dedup: self.auto_dedup,
            cgroups: match self.manage_cgroups_mode {
                None => CgroupMode::Default,
                Some(Mode::Soft) => CgroupMode::Soft,
                Some(Mode::Full) => CgroupMode::Full,
                Some(Mode::Strict) => CgroupMode::Strict,
                Some(Mode::Ignore) => CgroupMode::Ignore,
            },
        })
    }
}

/// Makes a directory for what is saved, which has the container's memory: for the caller, and for
/// the group, by which the root of a user namespace reads it.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .with_context(|| format!("make the directory {}", path.display()))
}

fn page_server(text: &str) -> Result<PageServer, String> {
    let wrong = || format!("{text:?} is not ADDRESS:PORT");
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let address = address
        .strip_prefix('[')
        .and_then(|address| address.strip_suffix(']'))
        .unwrap_or(address);
    match port.parse() {
        Ok(port) if !address.is_empty() => Ok(PageServer {
            address: address.to_owned(),
            port,
        }),
        _ => Err(wrong()),
    }
}
