//! Many idle sandboxes at once, inside the test host: what each takes of the host's memory,
//! and whether all of them still answer.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use integration::cri::{ContainerPlan, Cri, Pod, PodPlan};
use integration::perf::memory;
use integration::perf::report::{Cost, Density};
use tokio::task::JoinSet;

/// Starts idle sandboxes, holds their memory against bounds, and prints what it found as JSON.
#[derive(Parser)]
struct Arguments {
    /// Sandboxes at once, each with one idle container.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Sandboxes that start at the same time.
    #[arg(long, default_value_t = 10)]
    at_once: usize,
    /// Most memory that the host may lose for each sandbox, beyond what all share, in MiB.
    #[arg(long, default_value_t = 12.0)]
    max_sandbox_mib: f64,
    /// Most private memory of a sandbox's VMM and shim together, in MiB.
    #[arg(long, default_value_t = 5.0)]
    max_processes_mib: f64,
    /// The runtime handler.
    #[arg(long, default_value = "joey")]
    handler: String,
}

/// A sandbox and the container in it.
struct Idle {
    pod: Pod,
    container: String,
}

/// How long the host's free memory has to stay the same before it counts, and how often it is
/// looked at until then.
const STILL: Duration = Duration::from_secs(2);
const LOOKS: usize = 30;
/// The difference that is none: what the host's own programs do meanwhile.
const NOISE: u64 = 4 << 20;
const MIB: f64 = (1 << 20) as f64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // What the first sandboxes of a host leave for all others belongs to none of them: blobs,
    // templates, pages of programs, containerd's heap.
    let first = start(&arguments, "first", arguments.at_once).await?;
    end(first).await?;
    let before = settled().await?;

    let begin = Instant::now();
    let mut idle = Vec::new();
    while idle.len() < arguments.pods {
        let next = arguments.at_once.min(arguments.pods - idle.len());
        idle.extend(start(&arguments, &format!("wave-{}", idle.len()), next).await?);
        eprintln!(
            "density: {} sandboxes after {:.0} s",
            idle.len(),
            begin.elapsed().as_secs_f64()
        );
    }
    let after = settled().await?;
    let mut costs = Vec::new();
    for sandbox in &idle {
        costs.push(cost(sandbox)?);
    }
    // After what is measured: an exec touches memory.
    let mut cri = Cri::connect();
    for sandbox in &idle {
        let said = cri.exec(&sandbox.container, "echo alive").await;
        let said = said.with_context(|| sandbox.pod.id.clone())?;
        ensure!(said == "alive\n", "{} said {said:?}", sandbox.pod.id);
    }
    end(idle).await?;

    let taken = before.saturating_sub(after) / arguments.pods as u64;
    let density = Density::of(taken, &costs);
    println!("{}", serde_json::to_string_pretty(&density)?);
    let verdicts = [
        (
            "taken from the host",
            density.taken as f64 / MIB,
            arguments.max_sandbox_mib,
        ),
        (
            "VMM and shim, private, most",
            density.processes_max as f64 / MIB,
            arguments.max_processes_mib,
        ),
    ];
    for (what, seen, bound) in verdicts {
        let verdict = if seen <= bound { "pass" } else { "FAIL" };
        eprintln!("density: {verdict}  {what}: {seen:.2} MiB of a sandbox, at most {bound}");
    }
    let failed = verdicts.iter().any(|(_, seen, bound)| seen > bound);
    ensure!(!failed, "sandboxes take more memory than they may");
    Ok(())
}

/// Starts sandboxes of these names side by side, each with its container.
async fn start(arguments: &Arguments, name: &str, count: usize) -> anyhow::Result<Vec<Idle>> {
    let mut starts = JoinSet::new();
    for number in 0..count {
        let plan = PodPlan::new(&arguments.handler, &format!("{name}-{number}"), false);
        starts.spawn(async move {
            let mut cri = Cri::connect();
            let pod = cri.run_pod(&plan).await?;
            let container = cri.create(&pod, "idle", &ContainerPlan::idle()).await?;
            cri.start(&container).await?;
            anyhow::Ok(Idle { pod, container })
        });
    }
    let mut idle = Vec::new();
    while let Some(sandbox) = starts.join_next().await {
        idle.push(sandbox??);
    }
    Ok(idle)
}

/// Ends them, a few at a time: 200 at once keep an emulated host from answering.
async fn end(mut idle: Vec<Idle>) -> anyhow::Result<()> {
    while !idle.is_empty() {
        let mut ends = JoinSet::new();
        for sandbox in idle.drain(..idle.len().min(10)) {
            ends.spawn(async move { Cri::connect().end_pod(&sandbox.pod.id).await });
        }
        while let Some(end) = ends.join_next().await {
            end??;
        }
    }
    Ok(())
}

fn cost(sandbox: &Idle) -> anyhow::Result<Cost> {
    memory::cost_of_sandbox(&sandbox.pod.id)
        .with_context(|| format!("memory of {}", sandbox.pod.id))
}

/// The host's available memory in bytes, when it no longer changes: what ends is taken apart
/// later, and a guest goes on for a while after its start.
async fn settled() -> anyhow::Result<u64> {
    let mut last = available()?;
    for _ in 0..LOOKS {
        tokio::time::sleep(STILL).await;
        let now = available()?;
        if now.abs_diff(last) < NOISE {
            return Ok(now);
        }
        last = now;
    }
    anyhow::bail!("the host's free memory does not settle")
}

fn available() -> anyhow::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("no MemAvailable in /proc/meminfo")?.parse()?;
    Ok(kib * 1024)
}
