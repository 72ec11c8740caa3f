//! Many pods, a few at a time, inside the test host: what containerd and joey take
//! of memory, descriptors and disk must not grow with the number of pods that are
//! gone.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use clap::Parser;
use integration::cri::{ContainerPlan, Cri, PodPlan};
use integration::leaks;
use serde::Serialize;
use tokio::task::JoinSet;

/// Makes and removes pods, and watches what that leaves.
#[derive(Parser)]
struct Arguments {
    /// Pods in all.
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// Pods at once.
    #[arg(long, default_value_t = 10)]
    at_once: usize,
    /// Pods between two samples.
    #[arg(long, default_value_t = 100)]
    sample: usize,
    /// The runtime handler.
    #[arg(long, default_value = "joey")]
    handler: String,
}

/// What the host has given out while no pod runs.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    pods: usize,
    /// Resident memory of containerd, in KiB. Go gives back what it has freed with a
    /// delay, so this moves up and down.
    containerd_kib: u64,
    containerd_fds: u64,
    containerd_threads: u64,
    /// Open files of the whole host.
    host_files: u64,
    /// What the kernel keeps for itself, in KiB: namespaces, programs, cgroups.
    kernel_kib: u64,
    /// Processes of the whole host.
    processes: u64,
    /// State directories of containerd and joey, in KiB.
    run_kib: u64,
    /// containerd's metadata, in KiB, without the images' content.
    containerd_disk_kib: u64,
    /// joey's data, in KiB.
    joey_disk_kib: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // What the first pods leave for all later ones is no growth.
    wave(&arguments, 0, arguments.at_once).await?;
    let before = leaks::at_rest(shell)?;
    let mut samples = vec![Sample::take(0)?];
    let mut done = 0;
    while done < arguments.pods {
        let next = arguments.at_once.min(arguments.pods - done);
        wave(&arguments, done + arguments.at_once, next).await?;
        done += next;
        if done % arguments.sample < next || done == arguments.pods {
            let sample = Sample::take(done)?;
            eprintln!("soak: {}", serde_json::to_string(&sample)?);
            samples.push(sample);
        }
    }
    println!("{}", serde_json::to_string_pretty(&samples)?);
    let left = leaks::settled(&before, shell)?;
    anyhow::ensure!(left.is_empty(), "left behind: {left:?}");
    flat(&samples)
}

/// Runs, starts, asks and removes pods side by side.
async fn wave(arguments: &Arguments, first: usize, count: usize) -> anyhow::Result<()> {
    let mut lives = JoinSet::new();
    for number in first..first + count {
        let handler = arguments.handler.clone();
        lives.spawn(async move {
            life(&handler, number)
                .await
                .with_context(|| format!("pod {number}"))
        });
    }
    while let Some(life) = lives.join_next().await {
        life??;
    }
    Ok(())
}

async fn life(handler: &str, number: usize) -> anyhow::Result<()> {
    let mut cri = Cri::connect();
    let plan = PodPlan::new(handler, &format!("soak-{number}"), false);
    let pod = cri.run_pod(&plan).await?;
    let container = cri.create(&pod, "idle", &ContainerPlan::idle()).await?;
    cri.start(&container).await?;
    let said = cri.exec(&container, "echo alive").await?;
    anyhow::ensure!(said == "alive\n", "it said {said:?}");
    cri.end_pod(&pod.id).await
}

impl Sample {
    fn take(pods: usize) -> anyhow::Result<Sample> {
        let containerd: u64 = shell("pidof containerd")?
            .trim()
            .parse()
            .context("one containerd")?;
        let status = fs::read_to_string(format!("/proc/{containerd}/status"))?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let files = fs::read_to_string("/proc/sys/fs/file-nr")?;
        Ok(Sample {
            pods,
            containerd_kib: field(&status, "VmRSS:")?,
            containerd_fds: entries(format!("/proc/{containerd}/fd"))?,
            containerd_threads: field(&status, "Threads:")?,
            host_files: first_number(&files)?,
            kernel_kib: field(&meminfo, "SUnreclaim:")? + field(&meminfo, "Percpu:")?,
            processes: fs::read_dir("/proc")?
                .flatten()
                .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
                // Threads of the kernel come and go with its work.
                .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok())
                .count() as u64,
            run_kib: disk("/run/containerd /run/joey")?,
            containerd_disk_kib: disk(
                "--exclude=io.containerd.content.v1.content --exclude=tmpmounts /var/lib/containerd",
            )?,
            joey_disk_kib: disk("/var/lib/joey")?,
        })
    }
}

/// Name, value, and the growth that is none: rounding of pages, Go's heap, slabs that
/// are freed later.
type Row = (&'static str, fn(&Sample) -> u64, u64);

/// Compares the end with the time after the first sample, until when caches fill.
fn flat(samples: &[Sample]) -> anyhow::Result<()> {
    let [_, settled, .., last] = samples else {
        println!("too few samples to compare");
        return Ok(());
    };
    let mut grown = Vec::new();
    let rows: [Row; 9] = [
        ("containerd_kib", |s| s.containerd_kib, 16 << 10),
        ("containerd_fds", |s| s.containerd_fds, 8),
        ("containerd_threads", |s| s.containerd_threads, 8),
        ("host_files", |s| s.host_files, 64),
        ("kernel_kib", |s| s.kernel_kib, 16 << 10),
        ("processes", |s| s.processes, 0),
        ("run_kib", |s| s.run_kib, 64),
        ("containerd_disk_kib", |s| s.containerd_disk_kib, 1 << 10),
        ("joey_disk_kib", |s| s.joey_disk_kib, 64),
    ];
    println!(
        "{:<20} {:>10} {:>10} {:>10}",
        "", "first", "settled", "last"
    );
    for (name, value, room) in rows {
        let (first, settled, last) = (value(&samples[0]), value(settled), value(last));
        println!("{name:<20} {first:>10} {settled:>10} {last:>10}");
        if last > settled + room {
            grown.push(name);
        }
    }
    anyhow::ensure!(grown.is_empty(), "grows with the pods: {grown:?}");
    Ok(())
}

fn shell(script: &str) -> anyhow::Result<String> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn disk(what: &str) -> anyhow::Result<u64> {
    let lines = shell(&format!("du -skc {what} 2>/dev/null | tail -n 1"))?;
    first_number(&lines)
}

fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    first_number(line.with_context(|| format!("no {name}"))?)
}

fn first_number(text: &str) -> anyhow::Result<u64> {
    let word = text.split_whitespace().next().context("no number")?;
    word.parse().with_context(|| format!("{word:?}"))
}

fn entries(path: impl AsRef<Path>) -> anyhow::Result<u64> {
    Ok(fs::read_dir(path)?.count() as u64)
}
