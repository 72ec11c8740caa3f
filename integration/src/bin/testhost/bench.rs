//! The bench's outer half: boots a test host with the virtual clock, runs the
//! inner half in it, writes the report and draws it.

use std::path::Path;

use anyhow::Context;
use integration::install;
use integration::perf::report::Findings;
use integration::perf::waterfall;
use integration::testbed::{Config, Event, build, repository};

use crate::{inner, write};

/// Runs all cases; `FIRECRACKER` names a binary to measure beside.
pub fn run(runs: usize) -> anyhow::Result<i32> {
    let doorbell = build("testhost/build-init.sh", &["doorbell-init"])?;
    let target = repository().join("target");
    let archive = target.join("joey-doorbell.cpio");
    build(
        "guest/pack-agent.sh",
        &[&path(&doorbell)?, &path(&archive)?],
    )?;
    let mut config = Config::with_joey()?;
    config.virtual_clock = true;
    let mut command = format!("{}/bench --runs {runs} --unit virtual_ms", inner::DIRECTORY);
    config.layer = config
        .layer
        .file(archive, format!("{}/doorbell.cpio", install::SHARE), 0o644);
    if let Some(firecracker) = std::env::var_os("FIRECRACKER") {
        let path = format!("{}/firecracker", inner::DIRECTORY);
        command.push_str(&format!(" --firecracker {path}"));
        config.layer = config.layer.file(firecracker, path, 0o755);
    }
    let host = inner::boot(config, "bench")?;

    let mut json = Vec::new();
    let status = host
        .shell(&command)
        .limit(super::LIMIT)
        .stream(std::io::empty(), |event| {
            match event {
                Event::Stdout(bytes) => json.extend(bytes),
                other => super::print(other)?,
            }
            Ok(())
        })?;
    if status != 0 {
        return Ok(status);
    }
    let Findings { start, oci, cost } =
        serde_json::from_slice(&json).context("the bench's report")?;
    let directory = target.join("bench");
    std::fs::create_dir_all(&directory)?;
    write(
        &directory.join("sandbox_start.json"),
        &serde_json::to_vec_pretty(&start)?,
    )?;
    write(
        &directory.join("sandbox_cost.json"),
        &serde_json::to_vec_pretty(&cost)?,
    )?;
    write(
        &directory.join("sandbox_start.svg"),
        waterfall::draw(&start).as_bytes(),
    )?;
    write(
        &directory.join("oci_life.json"),
        &serde_json::to_vec_pretty(&oci)?,
    )?;
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
    for (name, case) in &start.cases {
        println!(
            "{name:<20} p50 {:>9.3}  min {:>9.3}  max {:>9.3} {}",
            case.p50, case.min, case.max, start.unit
        );
    }
    println!(
        "private bytes: vmm {}, shim {}, guest {}; shared {}",
        cost.vmm, cost.shim, cost.guest_private, cost.shared
    );
    Ok(0)
}

fn path(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("a path that is no text")?.to_owned())
}
