//! The init process of joey's microVM.

use std::future::ready;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use guest_agent::storage::Storage;
use guest_agent::streams::FromHost;
use guest_agent::tasks::Tasks;
use guest_agent::{boot, server};
use protocol::ports;
use rustix::system::{RebootCommand, reboot};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use ttrpc::r#async::transport::Listener;

type Failure = Box<dyn std::error::Error>;

/// Block devices come in the order in which the VMM lists them.
const WINDOW: &str = "/dev/vda";
const SCRATCH: &str = "/dev/vdb";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "joey-agent is the init process of joey's microVM; it does not run anywhere else"
        );
        return ExitCode::FAILURE;
    }
    if let Err(failure) = run() {
        log::error!("{failure}; restarting");
    }
    rustix::fs::sync();
    // A machine without ACPI cannot switch itself off: to its VMM a reset is the end.
    if let Err(error) = reboot(RebootCommand::Restart) {
        log::error!("cannot restart: {error}");
    }
    // PID 1 ending is a kernel panic, which the VMM sees as well.
    ExitCode::FAILURE
}

fn run() -> Result<(), Failure> {
    boot::begin()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve())
}

async fn serve() -> Result<(), Failure> {
    let calls = FromHost::bind(ports::RPC)?;
    let streams = FromHost::bind(ports::STREAM)?;
    let forwards = FromHost::bind(ports::FORWARD)?;

    // One poll sends the packet that says that all listen; the host works while the
    // rest is done here. It never accepts the connection.
    let mut dial = Box::pin(VsockStream::connect(VsockAddr::new(
        VMADDR_CID_HOST,
        ports::READY,
    )));
    tokio::select! {
        biased;
        _ = &mut dial => {}
        () = ready(()) => drop(tokio::spawn(dial)),
    }
    boot::finish()?;
    boot::read_little_ahead(WINDOW)?;

    let base = PathBuf::from(boot::BASE);
    let storage = Storage::new(WINDOW.into(), SCRATCH.into(), base.clone());
    let tasks = Arc::new(Tasks::new(base, storage)?);
    Ok(server::serve(tasks, Listener::new(calls), streams, forwards).await?)
}
