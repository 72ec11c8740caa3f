//! `joeyctl ps`: the sandboxes of this node.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use shim::config::Config;
use shim::host::record::Record;

use crate::node;

#[derive(Serialize)]
struct Row {
    namespace: String,
    id: String,
    pod: String,
    pod_namespace: String,
    /// "running", "unresponsive", "ended", "starting", "shim silent" or "dead".
    state: String,
    vmm_pid: i32,
    shim_pid: i32,
    age_seconds: u64,
    vcpus: u8,
    /// What the guest may use at most.
    memory_mib: u32,
    /// Private bytes on the host.
    guest_bytes: u64,
    vmm_bytes: u64,
    shim_bytes: u64,
    /// Bytes of files that other sandboxes map too.
    shared_bytes: u64,
    containers: Vec<Container>,
}

#[derive(Serialize)]
struct Container {
    id: String,
    state: String,
    pid: u32,
}

/// Prints them.
pub fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let rows = node::run(async {
        let mut rows = Vec::new();
        for record in node::sandboxes(&config.state_dir) {
            rows.push(row(&record, config).await);
        }
        Ok(rows)
    })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "{:<13} {:<28} {:<12} {:>7} {:>6} {:>5} {:>8} {:>8} {:>8} CONTAINERS",
        "SANDBOX", "POD", "STATE", "VMM", "AGE", "VCPUS", "GUEST", "VMM", "SHIM"
    );
    for row in rows {
        let pod = if row.pod.is_empty() {
            format!("({})", row.namespace)
        } else {
            format!("{}/{}", row.pod_namespace, row.pod)
        };
        println!(
            "{:<13} {:<28} {:<12} {:>7} {:>6} {:>5} {:>8} {:>8} {:>8} {}",
            row.id.get(..13).unwrap_or(&row.id),
            pod,
            row.state,
            row.vmm_pid,
            age(row.age_seconds),
            row.vcpus,
            mib(row.guest_bytes),
            mib(row.vmm_bytes),
            mib(row.shim_bytes),
            row.containers.len(),
        );
    }
    Ok(())
}

async fn row(record: &Record, config: &Config) -> Row {
    let (state, containers) = match (record.shim_lives(), record.vmm_lives()) {
        (false, _) => ("dead".to_owned(), Vec::new()),
        (true, _) => described(record).await.unwrap_or_else(|error| {
            let state = match error.downcast_ref::<ttrpc::Error>() {
                Some(ttrpc::Error::RpcStatus(_)) => "starting",
                _ => "shim silent",
            };
            (state.to_owned(), Vec::new())
        }),
    };
    let memory = node::memory(record, config);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    Row {
        namespace: record.namespace.clone(),
        id: record.id.clone(),
        pod: record.pod.clone(),
        pod_namespace: record.pod_namespace.clone(),
        state,
        vmm_pid: record.vmm_pid,
        shim_pid: record.shim_pid,
        age_seconds: now.saturating_sub(record.created),
        vcpus: record.vcpus,
        memory_mib: record.memory_mib,
        guest_bytes: memory.guest_private,
        vmm_bytes: memory.vmm,
        shim_bytes: memory.shim,
        shared_bytes: memory.shared,
        containers,
    }
}

async fn described(record: &Record) -> anyhow::Result<(String, Vec<Container>)> {
    let shim = node::connect(record).await?;
    let told = shim.describe(node::call(), &Default::default()).await?;
    let containers = told
        .containers
        .into_iter()
        .map(|container| Container {
            id: container.id,
            state: container.state,
            pid: container.pid,
        })
        .collect();
    Ok((told.state, containers))
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1}M", bytes as f64 / f64::from(1 << 20))
}
