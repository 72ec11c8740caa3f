//! OCI runtimes beside each other: how long a container's life takes, and how much memory.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use integration::perf::oci::Lives;
use integration::perf::report::{OciReport, Run};

use crate::Arguments;
use crate::rounds::Rounds;

/// OCI runtimes of the test host.
const RUNTIMES: &[(&str, &str)] = &[
    ("joey", "/usr/local/bin/joey"),
    ("runc", "/usr/sbin/runc"),
    ("crun", "/usr/bin/crun"),
];

/// Measures those that are asked for, if any.
pub fn measure(
    arguments: &Arguments,
    rounds: &Rounds,
    directory: &Path,
) -> anyhow::Result<Option<OciReport>> {
    let runtimes: Vec<_> = RUNTIMES
        .iter()
        .filter(|(name, _)| arguments.wants(&format!("oci_{name}")))
        .collect();
    if runtimes.is_empty() {
        return Ok(None);
    }
    let lives = Lives::prepare(directory)?;
    let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    let mut peaks: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for _ in rounds.numbers("OCI runtimes") {
        for (name, path) in &runtimes {
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
    Ok(Some(OciReport {
        unit: arguments.unit.clone(),
        runs: arguments.runs,
        peak: peaks
            .into_iter()
            .map(|(name, values)| (name.to_owned(), median(values)))
            .collect(),
        cases: runs
            .into_iter()
            .map(|(name, runs)| (name.to_owned(), rounds.case(&runs)))
            .collect(),
    }))
}
