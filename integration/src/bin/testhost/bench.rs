//! The bench's outer half: boots a test host with the virtual clock, runs the
//! inner half in it, writes the report and draws it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use integration::install;
use integration::perf::report::{Findings, OciReport, Report};
use integration::perf::waterfall;
use integration::testbed::{Config, TestHost, build, repository};
use serde::Serialize;

use crate::{inner, write};

/// Runs all cases, or those of these names; `FIRECRACKER` names a binary to measure beside.
pub fn run(runs: &str, cases: Option<&str>) -> anyhow::Result<i32> {
    let mut config = Config::with_joey()?;
    let mut arguments = vec!["--runs".to_owned(), runs.to_owned()];
    if let Some(cases) = cases {
        arguments.extend(["--cases".to_owned(), cases.to_owned()]);
    }
    if let Some(firecracker) = std::env::var_os("FIRECRACKER") {
        config = with_firecracker(config, firecracker.into(), &mut arguments)?;
    }
    let Findings {
        start, oci, cost, ..
    } = measure(config, arguments)?;
    keep("sandbox_start.json", &start)?;
    write(
        &directory()?.join("sandbox_start.svg"),
        waterfall::draw(&start).as_bytes(),
    )?;
    if let Some(oci) = oci {
        keep("oci_life.json", &oci)?;
        show_lives(&oci);
    }
    show_starts(&start);
    if let Some(cost) = cost {
        keep("sandbox_cost.json", &cost)?;
        println!(
            "private bytes: vmm {}, shim {}, guest {}; shared {}",
            cost.vmm, cost.shim, cost.guest_private, cost.shared
        );
    }
    Ok(0)
}

/// Memory for so many sandboxes at once.
const RATE_MEMORY_MIB: u32 = 8192;

/// What sandboxes cost the host in busy time of which so many (numbers with commas) start at
/// once.
pub fn rate(at_once: &str) -> anyhow::Result<i32> {
    let config = Config {
        memory_mib: RATE_MEMORY_MIB,
        ..Config::with_joey()?
    };
    let host = boot(config)?;
    host.lengthen_slices()?;
    let arguments = ["--at-once", at_once].map(str::to_owned).into();
    let report = ask(&host, arguments)?.rate.context("no rates")?;
    keep("sandbox_rate.json", &report)?;
    for (handler, rates) in &report.handlers {
        for (at_once, rate) in rates {
            println!(
                "{handler:<6} {at_once:>4} at once: busy for {:>9.3} for each, the last ready after \
                 {:>9.3} {}",
                rate.cpu, rate.last_ready, report.unit
            );
        }
    }
    Ok(0)
}

/// What the inner half finds with these arguments, in a test host with the virtual clock.
pub fn measure(config: Config, arguments: Vec<String>) -> anyhow::Result<Findings> {
    ask(&boot(config)?, arguments)
}

fn boot(mut config: Config) -> anyhow::Result<TestHost> {
    config.virtual_clock = true;
    inner::boot(config, "bench")
}

fn ask(host: &TestHost, arguments: Vec<String>) -> anyhow::Result<Findings> {
    let program = format!("{}/bench", inner::DIRECTORY);
    let words = [program, "--unit".to_owned(), "virtual_ms".to_owned()];
    let (status, json) = inner::output(host.command(words.into_iter().chain(arguments)))?;
    if status != 0 {
        bail!("the bench in the test host ended with {status}: see its messages above");
    }
    serde_json::from_slice(&json).context("the bench's report")
}

/// Writes a report to `target/bench`.
pub fn keep(name: &str, report: &impl Serialize) -> anyhow::Result<()> {
    write(
        &directory()?.join(name),
        &serde_json::to_vec_pretty(report)?,
    )
}

fn directory() -> anyhow::Result<PathBuf> {
    let directory = repository().join("target/bench");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Adds a Firecracker and what it boots.
fn with_firecracker(
    mut config: Config,
    firecracker: PathBuf,
    arguments: &mut Vec<String>,
) -> anyhow::Result<Config> {
    let doorbell = build("testhost/build-init.sh", &["doorbell-init"])?;
    let archive = repository().join("target/joey-doorbell.cpio");
    build(
        "guest/pack-agent.sh",
        &[&text(&doorbell)?, &text(&archive)?],
    )?;
    let path = format!("{}/firecracker", inner::DIRECTORY);
    config.layer = config
        .layer
        .file(archive, format!("{}/doorbell.cpio", install::SHARE), 0o644)
        .file(firecracker, path.clone(), 0o755);
    arguments.extend(["--firecracker".to_owned(), path]);
    Ok(config)
}

fn show_lives(oci: &OciReport) {
    for (name, case) in &oci.cases {
        println!(
            "oci {name:<16} p50 {:>9.3}  min {:>9.3}  max {:>9.3} {}  peak {} KiB",
            case.p50,
            case.min,
            case.max,
            oci.unit,
            oci.peak.get(name).map_or(0, |bytes| bytes / 1024)
        );
    }
}

fn show_starts(start: &Report) {
    for (name, case) in &start.cases {
        println!(
            "{name:<20} p50 {:>9.3}  min {:>9.3}  max {:>9.3} {}",
            case.p50, case.min, case.max, start.unit
        );
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("a path that is no text")?.to_owned())
}
