//! `containerd-shim-joey-v2 delete`: removes what a sandbox has on the host
//! without its shim, which is gone or about to go.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_shim::Flags;
use containerd_shim_protos::api::{DeleteResponse, ShutdownRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context;

use crate::bootstrap::{address, socket_path};
use crate::events::timestamp;
use crate::host::record::StateDir;
use crate::host::remains;
use crate::process::KILLED;
use crate::shared;

/// How long a shim may take to answer that it ends.
const END_TIME: Duration = Duration::from_secs(2);

/// Removes the sandbox, or the container on the host's kernel, of a bundle. What cannot be removed is named on standard
/// error, which containerd logs; the rest is removed all the same. After a normal
/// end there is nothing left to do.
pub fn delete(flags: &Flags, bundle: &Path) -> DeleteResponse {
    let address = address(flags, &flags.id);
    end_server(&address);
    let of_vm = || StateDir::of_bundle(bundle).map(|dir| remains::of_shim(&dir));
    let (pid, errors) = shared::remains::of_bundle(bundle, &flags.id)
        .or_else(|| of_vm().ok())
        .unwrap_or_default();
    for error in errors {
        eprintln!("removing what {} left: {error}", flags.id);
    }
    let socket = socket_path(&address);
    if let Err(error) = std::fs::remove_file(&socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("removing {}: {error}", socket.display());
    }
    DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    }
}

/// Ends a shim that serves still, as one whose containerd was killed before it had learnt of it.
fn end_server(address: &str) {
    if UnixStream::connect(socket_path(address)).is_err() {
        return;
    }
    let end = async {
        let client = TaskClient::new(Client::connect(address).await?);
        let request = ShutdownRequest {
            now: true,
            ..Default::default()
        };
        client
            .shutdown(context::with_duration(END_TIME), &request)
            .await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        // The connection may close before the answer is out.
        Ok(runtime) => drop(runtime.block_on(end)),
        Err(error) => eprintln!("cannot end the shim that serves {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::host::record::{self, Record};

    #[test]
    fn a_dead_shims_sandbox_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let mut vmm = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = vmm.id() as i32;
        let record = Record {
            vmm_pid: pid,
            vmm_started: record::start_time(pid).unwrap().unwrap(),
            cgroup: root.path().join("no-such-cgroup"),
            ..Record::new("n", "abc")
        };
        let record = Record {
            // Of a shim that is gone.
            shim_pid: pid,
            shim_started: record.vmm_started + 1,
            ..record
        };
        StateDir::create(root.path(), &record, Some(bundle.path())).unwrap();
        let template = Record {
            namespace: ".template".into(),
            id: "template-abc".into(),
            vmm_pid: 0,
            ..record.clone()
        };
        StateDir::create(root.path(), &template, None).unwrap();
        let args = ["-namespace", "n", "-id", "abc", "delete"];
        let flags = containerd_shim::parse(&args).unwrap();
        let response = delete(&flags, bundle.path());
        assert_eq!(response.pid, vmm.id());
        assert_eq!(response.exit_status, KILLED);
        assert!(!vmm.wait().unwrap().success());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        // Again, as after a normal end.
        assert_eq!(delete(&flags, bundle.path()).pid, 0);
    }
}
