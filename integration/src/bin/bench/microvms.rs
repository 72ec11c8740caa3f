//! MicroVMs without containerd: ours, and Firecracker's beside them.

use std::path::Path;

use anyhow::Context;
use integration::perf::firecracker::{self, Snapshot};
use integration::perf::microvm::{self, Parts, Template};
use integration::perf::report::Case;

use crate::Arguments;
use crate::rounds::{LIMIT, Rounds};

const KERNEL: &str = "/usr/local/share/joey/vmlinux";
const AGENT: &str = "/usr/local/share/joey/agent.cpio";
const VMM: &str = "/usr/local/bin/joey-vmm";
const MEMORY_MIB: u32 = 128;
/// Where a snapshot is; a tmpfs, as its memory is only ever mapped from there.
const SNAPSHOTS: &str = "/run/joey-bench";

/// Measures those that are asked for.
pub async fn measure(
    arguments: &Arguments,
    rounds: &mut Rounds,
    directory: &Path,
) -> anyhow::Result<Vec<(String, Case)>> {
    let parts = Parts {
        vmm: Path::new(VMM),
        kernel: Path::new(KERNEL),
        initramfs: Path::new(AGENT),
        directory,
        memory_mib: MEMORY_MIB,
    };
    let mut cases = Vec::new();
    if arguments.wants("vmm_cold") {
        let scratch = directory.join("scratch");
        let case = rounds.measure_one("vmm_cold", async || {
            format_scratch(&scratch)?;
            microvm::cold(&parts, &scratch, LIMIT).await
        });
        cases.push(case.await?);
    }
    if arguments.wants("vmm_template") || arguments.wants("vmm_restore") {
        let scratch = directory.join("scratch");
        format_scratch(&scratch)?;
        let template = rounds.once("a template", async |_| {
            Template::make(&parts, &scratch, Path::new(SNAPSHOTS), LIMIT).await
        });
        let template = template.await?;
        if arguments.wants("vmm_template") {
            let case = rounds.measure_one("vmm_template", async || {
                microvm::taken(&parts, &template, &scratch, LIMIT).await
            });
            cases.push(case.await?);
        }
        if arguments.wants("vmm_restore") {
            let case = rounds.measure_one("vmm_restore", async || {
                microvm::restored(&parts, &template, &scratch, LIMIT).await
            });
            cases.push(case.await?);
        }
    }
    if let Some(firecracker) = &arguments.firecracker {
        let parts = Parts {
            initramfs: &arguments.doorbell,
            ..parts
        };
        if arguments.wants("firecracker_boot") {
            let case = rounds.measure_one("firecracker_boot", async || {
                firecracker::boot(firecracker, &parts, LIMIT)
            });
            cases.push(case.await?);
        }
        if arguments.wants("firecracker_restore") {
            let snapshot = rounds.once("a snapshot of Firecracker's VM", async |_| {
                Snapshot::take(firecracker, &parts, Path::new(SNAPSHOTS), LIMIT)
            });
            let snapshot = snapshot.await?;
            let case = rounds.measure_one("firecracker_restore", async || {
                snapshot.restore(firecracker, &parts, LIMIT)
            });
            cases.push(case.await?);
        }
    }
    Ok(cases)
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
