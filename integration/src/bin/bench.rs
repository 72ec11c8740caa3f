//! The bench's inner half: runs in the test host, prints the report as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use integration::perf::cri::Cri;
use integration::perf::memory;
use integration::perf::microvm::{Parts, firecracker_boot, joey_boot};
use integration::perf::report::{Case, Cost, Findings, Report, Run};

/// Measures the start of sandboxes.
#[derive(Parser)]
struct Arguments {
    /// Measured runs of each case.
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Unmeasured runs before them.
    #[arg(long, default_value_t = 2)]
    warm_up: usize,
    /// A firecracker binary to measure beside.
    #[arg(long)]
    firecracker: Option<PathBuf>,
    /// An archive with a minimal init, for Firecracker.
    #[arg(long, default_value = "/usr/local/share/joey/doorbell.cpio")]
    doorbell: PathBuf,
    /// An image that is already pulled.
    #[arg(long, default_value = "127.0.0.1:5000/busybox:latest")]
    image: String,
    /// Unit of the report: the test host knows which clock it has.
    #[arg(long, default_value = "wall_ms")]
    unit: String,
}

const KERNEL: &str = "/usr/local/share/joey/vmlinux";
const AGENT: &str = "/usr/local/share/joey/agent.cpio";
const VMM: &str = "/usr/local/bin/joey-vmm";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const MEMORY_MIB: u32 = 128;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let directory = PathBuf::from("/var/lib/joey-bench");
    std::fs::create_dir_all(&directory)?;
    let mut cases = BTreeMap::new();

    let parts = Parts {
        vmm: Path::new(VMM),
        kernel: Path::new(KERNEL),
        initramfs: Path::new(AGENT),
        directory: &directory,
        memory_mib: MEMORY_MIB,
    };
    let scratch = directory.join("scratch");
    let mut runs = Vec::new();
    for round in 0..arguments.warm_up + arguments.runs {
        progress("vmm_cold", round);
        format_scratch(&scratch)?;
        runs.push(joey_boot(&parts, &scratch).await.context("vmm_cold")?);
    }
    cases.insert("vmm_cold".to_owned(), measured(runs, &arguments));

    if let Some(firecracker) = &arguments.firecracker {
        let parts = Parts {
            initramfs: &arguments.doorbell,
            ..parts
        };
        let mut runs = Vec::new();
        for round in 0..arguments.warm_up + arguments.runs {
            progress("firecracker_boot", round);
            runs.push(firecracker_boot(firecracker, &parts).context("firecracker_boot")?);
        }
        cases.insert("firecracker_boot".to_owned(), measured(runs, &arguments));
    }

    let mut cri = Cri::connect(Path::new(CONTAINERD)).await?;
    let (mut runc, mut joey, mut containers) = (Vec::new(), Vec::new(), Vec::new());
    // Taking turns, so that what drifts drifts for both.
    for round in 0..arguments.warm_up + arguments.runs {
        progress("runc_pod, joey_cold, joey_container", round);
        let (pod, run) = cri.run_pod("runc").await.context("runc_pod")?;
        runc.push(run);
        cri.remove_pod(pod).await?;

        let (pod, mut run) = cri.run_pod("joey").await.context("joey_cold")?;
        run.stages = stages_of(&pod.id)?;
        joey.push(run);
        let (container, run) = cri
            .run_container(&pod, &arguments.image)
            .await
            .context("joey_container")?;
        containers.push(run);
        cri.remove_container(&container).await?;
        cri.remove_pod(pod).await?;
    }
    cases.insert("runc_pod".to_owned(), measured(runc, &arguments));
    cases.insert("joey_cold".to_owned(), measured(joey, &arguments));
    cases.insert(
        "joey_container".to_owned(),
        measured(containers, &arguments),
    );

    let cost = cost(&mut cri, &arguments.image).await?;

    std::fs::remove_dir_all(&directory)?;
    let start = Report {
        unit: arguments.unit,
        runs: arguments.runs,
        cases,
    };
    println!("{}", serde_json::to_string(&Findings { start, cost })?);
    Ok(())
}

/// Says on standard error what is measured now: a whole bench takes minutes.
fn progress(case: &str, round: usize) {
    eprintln!("bench: {case}, round {}", round + 1);
}

/// Memory of a sandbox with one container, beside a sandbox like it.
async fn cost(cri: &mut Cri, image: &str) -> anyhow::Result<Cost> {
    let mut pods = Vec::new();
    for _ in 0..2 {
        let (pod, _) = cri.run_pod("joey").await?;
        let (container, _) = cri.run_container(&pod, image).await?;
        pods.push((pod, container));
    }
    let vmm = cri.sandbox_pid(&pods[0].0).await?;
    let cost = memory::cost_of_sandbox(vmm)?;
    for (pod, container) in pods {
        cri.remove_container(&container).await?;
        cri.remove_pod(pod).await?;
    }
    Ok(cost)
}

/// The case of the runs after the warm-up.
fn measured(runs: Vec<Run>, arguments: &Arguments) -> Case {
    Case::of(&runs[arguments.warm_up..])
}

/// An ext4 such as the shim clones for each sandbox.
fn format_scratch(path: &Path) -> anyhow::Result<()> {
    std::fs::File::create(path)?.set_len(1 << 30)?;
    let done = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal"])
        .arg(path)
        .status()
        .context("cannot run mkfs.ext4")?;
    anyhow::ensure!(done.success(), "mkfs.ext4 failed");
    Ok(())
}

/// What the shim noted of a sandbox's start.
fn stages_of(sandbox: &str) -> anyhow::Result<Vec<(String, Duration, Duration)>> {
    let path = format!("/run/joey/k8s.io/{sandbox}/stages.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let report: serde_json::Value = serde_json::from_str(&text).with_context(|| path)?;
    let micros = |value: &serde_json::Value| Duration::from_micros(value.as_u64().unwrap_or(0));
    Ok(report["stages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|stage| {
            let name = stage["name"].as_str().unwrap_or("?").to_owned();
            (name, micros(&stage["start_us"]), micros(&stage["end_us"]))
        })
        .collect())
}
