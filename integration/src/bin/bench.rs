//! The bench's inner half: runs in the test host, prints the report as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use integration::cri::{ContainerPlan, Cri, Pod, PodPlan};
use integration::perf::memory;
use integration::perf::microvm::{Parts, firecracker_boot, joey_boot};
use integration::perf::oci::Lives;
use integration::perf::report::{Case, Cost, Findings, OciReport, Report, Run};
use tokio::time::timeout;

/// Measures the start of sandboxes.
#[derive(Parser)]
struct Arguments {
    /// Measured runs of each case.
    #[arg(long, default_value_t = 31)]
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
    /// Unit of the report: the test host knows which clock it has.
    #[arg(long, default_value = "wall_ms")]
    unit: String,
}

const KERNEL: &str = "/usr/local/share/joey/vmlinux";
const AGENT: &str = "/usr/local/share/joey/agent.cpio";
const VMM: &str = "/usr/local/bin/joey-vmm";
/// OCI runtimes of the test host.
const RUNTIMES: &[(&str, &str)] = &[
    ("joey", "/usr/local/bin/joey"),
    ("runc", "/usr/sbin/runc"),
    ("crun", "/usr/bin/crun"),
];
const MEMORY_MIB: u32 = 128;
/// Longest time of a part of a round; it takes a fifth of a second.
const ROUND_LIMIT: Duration = Duration::from_secs(5);
/// Rounds that may be lost.
const MAX_LOST: usize = 5;

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
    let mut lost = Lost::default();
    while runs.len() < arguments.warm_up + arguments.runs {
        progress("vmm_cold", runs.len());
        format_scratch(&scratch)?;
        match joey_boot(&parts, &scratch, ROUND_LIMIT).await {
            Ok(run) => runs.push(run),
            Err(error) => lost.round(error.context("vmm_cold"))?,
        }
    }
    cases.insert("vmm_cold".to_owned(), measured(runs, &arguments));

    if let Some(firecracker) = &arguments.firecracker {
        let parts = Parts {
            initramfs: &arguments.doorbell,
            ..parts
        };
        let mut runs = Vec::new();
        while runs.len() < arguments.warm_up + arguments.runs {
            progress("firecracker_boot", runs.len());
            match firecracker_boot(firecracker, &parts, ROUND_LIMIT) {
                Ok(run) => runs.push(run),
                Err(error) => lost.round(error.context("firecracker_boot"))?,
            }
        }
        cases.insert("firecracker_boot".to_owned(), measured(runs, &arguments));
    }

    let oci = lives(&directory, &arguments)?;

    let mut cri = Cri::connect();
    let (mut runc, mut joey, mut containers) = (Vec::new(), Vec::new(), Vec::new());
    // Taking turns, so that what drifts drifts for both.
    while runc.len() < arguments.warm_up + arguments.runs {
        progress("runc_pod, joey_cold, joey_container", runc.len());
        // The sandbox of a lost round keeps its name for a while.
        let round = runc.len() + lost.0;
        let (pod, of_runc) = run_pod(&mut cri, "runc", round).await.context("runc_pod")?;
        cri.end_pod(&pod.id).await?;
        match joey_pod(&mut cri, round).await {
            Ok((of_joey, of_container)) => {
                runc.push(of_runc);
                joey.push(of_joey);
                containers.push(of_container);
            }
            Err(error) => lost.round(error)?,
        }
    }
    for (name, runs) in [("runc_pod", &runc), ("joey_cold", &joey)] {
        let totals: Vec<_> = runs.iter().map(|run| run.total.as_micros()).collect();
        eprintln!("bench: {name}, microseconds: {totals:?}");
    }
    cases.insert("runc_pod".to_owned(), measured(runc, &arguments));
    cases.insert("joey_cold".to_owned(), measured(joey, &arguments));
    cases.insert(
        "joey_container".to_owned(),
        measured(containers, &arguments),
    );

    let cost = loop {
        match cost(&mut cri).await {
            Ok(cost) => break cost,
            Err(error) => lost.round(error)?,
        }
    };

    std::fs::remove_dir_all(&directory)?;
    let start = Report {
        unit: arguments.unit.clone(),
        runs: arguments.runs,
        cases,
    };
    let findings = Findings { start, oci, cost };
    println!("{}", serde_json::to_string(&findings)?);
    Ok(())
}

/// The OCI runtimes beside each other: how long a container's life takes, and how much memory.
fn lives(directory: &Path, arguments: &Arguments) -> anyhow::Result<OciReport> {
    let lives = Lives::prepare(directory)?;
    let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    let mut peaks: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for round in 0..arguments.warm_up + arguments.runs {
        progress("joey, runc, crun", round);
        for (name, path) in RUNTIMES {
            let time = lives.time(Path::new(path)).context(*name)?;
            runs.entry(name).or_default().push(time);
            let peak = lives.peak(Path::new(path)).context(*name)?;
            peaks.entry(name).or_default().push(peak);
        }
    }
    let median = |mut values: Vec<u64>| {
        values.sort_unstable();
        values[values.len() / 2]
    };
    Ok(OciReport {
        unit: arguments.unit.clone(),
        runs: arguments.runs,
        peak: peaks
            .into_iter()
            .map(|(name, values)| (name.to_owned(), median(values)))
            .collect(),
        cases: runs
            .into_iter()
            .map(|(name, runs)| (name.to_owned(), measured(runs, arguments)))
            .collect(),
    })
}

/// RunPodSandbox, request to answer.
async fn run_pod(cri: &mut Cri, handler: &str, round: usize) -> anyhow::Result<(Pod, Run)> {
    let plan = PodPlan::new(handler, &format!("bench-{handler}-{round}"), false);
    let begin = Instant::now();
    let pod = cri.run_pod(&plan).await?;
    let run = Run {
        total: begin.elapsed(),
        stages: Vec::new(),
    };
    Ok((pod, run))
}

/// Creates and starts a container, both requests together.
async fn run_container(cri: &mut Cri, pod: &Pod) -> anyhow::Result<Run> {
    let begin = Instant::now();
    let id = cri.create(pod, "idle", &ContainerPlan::idle()).await?;
    let created = begin.elapsed();
    cri.start(&id).await?;
    let total = begin.elapsed();
    Ok(Run {
        total,
        stages: vec![
            ("create".to_owned(), Duration::ZERO, created),
            ("start".to_owned(), created, total),
        ],
    })
}

/// A pod with a container, removed again: how long each took to start.
async fn joey_pod(cri: &mut Cri, round: usize) -> anyhow::Result<(Run, Run)> {
    let (pod, mut of_pod) = timeout(ROUND_LIMIT, run_pod(cri, "joey", round))
        .await
        .context("joey_cold")??;
    let stages = stages_of(&pod.id);
    let started = timeout(ROUND_LIMIT, run_container(cri, &pod)).await;
    // With its pod a container goes too.
    cri.end_pod(&pod.id).await?;
    of_pod.stages = stages?;
    let of_container = started.context("joey_container")??;
    Ok((of_pod, of_container))
}

/// Rounds without a result. QEMU's instruction counter now and then delivers an
/// interrupt to a nested guest twice, which then hangs on one of its own locks: see
/// docs/adr/0010. Such a round is measured again; more than a few are an error.
#[derive(Default)]
struct Lost(usize);

impl Lost {
    fn round(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        self.0 += 1;
        eprintln!("bench: a round is lost and measured again: {error:#}");
        if self.0 > MAX_LOST {
            return Err(error.context(format!("{} rounds were lost", self.0)));
        }
        Ok(())
    }
}

/// Says on standard error what is measured now: a whole bench takes minutes.
fn progress(case: &str, round: usize) {
    eprintln!("bench: {case}, round {}", round + 1);
}

/// Memory of a sandbox with one container, beside a sandbox like it.
async fn cost(cri: &mut Cri) -> anyhow::Result<Cost> {
    let mut pods = Vec::new();
    let cost = timeout(2 * ROUND_LIMIT, measure_cost(cri, &mut pods)).await;
    for pod in pods {
        cri.end_pod(&pod.id).await?;
    }
    cost.context("cost of a sandbox")?
}

async fn measure_cost(cri: &mut Cri, pods: &mut Vec<Pod>) -> anyhow::Result<Cost> {
    for number in 0..2 {
        let plan = PodPlan::new("joey", &format!("cost-{number}"), false);
        pods.push(cri.run_pod(&plan).await?);
        run_container(cri, &pods[pods.len() - 1]).await?;
    }
    let vmm = cri.sandbox_pid(&pods[0]).await?;
    Ok(memory::cost_of_sandbox(vmm)?)
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
