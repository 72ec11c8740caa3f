//! What the shims of the host that this runs on have written down.

use std::io;

use shim::config::Config;
use shim::host::record::{self, Record};

/// The CRI's namespace of containerd.
const NAMESPACE: &str = "k8s.io";

/// A pod's record.
///
/// # Errors
/// When it cannot be read, or there is none.
pub fn of_pod(id: &str) -> io::Result<Record> {
    let record = record::read(&record::path(&Config::default().state_dir, NAMESPACE, id))?;
    record.ok_or_else(|| io::Error::other(format!("sandbox {id} has no record")))
}

/// The VMMs of the pods that there are.
pub fn vmms_of_pods() -> impl Iterator<Item = i32> {
    let all = record::state_dirs(&Config::default().state_dir).into_iter();
    let all = all.filter_map(|directory| record::read(&directory).ok()?);
    let all = all.filter(|record| record.namespace == NAMESPACE && record.vmm_lives());
    all.map(|record| record.vmm_pid)
}
