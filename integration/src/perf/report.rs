//! What the benches write: `target/bench/sandbox_start.json` (medians of repeated
//! runs, by case and stage) and `target/bench/sandbox_cost.json` (memory).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All that one run of the benches found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Findings {
    /// `sandbox_start.json`.
    pub start: Report,
    /// `oci_life.json`, where it was asked for.
    pub oci: Option<OciReport>,
    /// `sandbox_cost.json`, likewise.
    pub cost: Option<Cost>,
}

/// Create, start and delete of `true` by the command lines of OCI runtimes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OciReport {
    /// As [`Report::unit`].
    pub unit: String,
    /// As [`Report::runs`].
    pub runs: usize,
    /// By name of the runtime.
    pub cases: BTreeMap<String, Case>,
    /// Median of the most memory that a runtime's processes and its container used, in bytes.
    pub peak: BTreeMap<String, u64>,
}

/// How long things take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `virtual_ms` under the virtual clock, else `wall_ms`.
    pub unit: String,
    /// Measured runs of each case; warm-ups are not counted.
    pub runs: usize,
    /// By name, as docs/architecture.md lists them.
    pub cases: BTreeMap<String, Case>,
}

/// Host memory of one sandbox, in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// The VMM without its guest's memory.
    pub vmm: u64,
    /// The shim.
    pub shim: u64,
    /// What the guest has written to.
    pub guest_private: u64,
    /// Pages of files that VMM, shim and guest have mapped, as other sandboxes have.
    pub shared: u64,
}

/// One case, in the report's unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Median.
    pub p50: f64,
    /// Fastest run.
    pub min: f64,
    /// Slowest run.
    pub max: f64,
    /// Medians of what the run was made of, where it is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, Stage>,
}

/// A stretch of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stage {
    /// Median begin, counted from the start of the run.
    pub begin: f64,
    /// Median end, likewise.
    pub end: f64,
}

/// One measured run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// All of it.
    pub total: Duration,
    /// Name, begin and end since the start of the run.
    pub stages: Vec<(String, Duration, Duration)>,
}

impl Case {
    /// Medians over `runs`; a stage counts where most runs have it.
    ///
    /// # Panics
    /// When `runs` is empty.
    pub fn of(runs: &[Run]) -> Case {
        let totals: Vec<f64> = runs.iter().map(|run| milliseconds(run.total)).collect();
        let mut names: Vec<&str> = Vec::new();
        for (name, ..) in runs.iter().flat_map(|run| &run.stages) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let mut stages = BTreeMap::new();
        for name in names {
            let seen: Vec<_> = runs
                .iter()
                .filter_map(|run| run.stages.iter().find(|(other, ..)| other == name))
                .collect();
            if seen.len() * 2 > runs.len() {
                let stage = Stage {
                    begin: median(
                        seen.iter()
                            .map(|(_, begin, _)| milliseconds(*begin))
                            .collect(),
                    ),
                    end: median(seen.iter().map(|(_, _, end)| milliseconds(*end)).collect()),
                };
                stages.insert(name.to_owned(), stage);
            }
        }
        Case {
            p50: median(totals.clone()),
            min: round(totals.iter().copied().fold(f64::INFINITY, f64::min)),
            max: round(totals.iter().copied().fold(0.0, f64::max)),
            stages,
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a median needs a run");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let value = if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    };
    round(value)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(total: u64, stage: Option<(u64, u64)>) -> Run {
        Run {
            total: Duration::from_millis(total),
            stages: stage
                .map(|(begin, end)| {
                    (
                        "boot".to_owned(),
                        Duration::from_millis(begin),
                        Duration::from_millis(end),
                    )
                })
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn takes_medians_of_totals_and_stages() {
        let case = Case::of(&[run(30, Some((1, 5))), run(10, Some((3, 9))), run(20, None)]);
        assert_eq!((case.p50, case.min, case.max), (20.0, 10.0, 30.0));
        assert_eq!(case.stages.len(), 1);
        assert_eq!(
            (case.stages["boot"].begin, case.stages["boot"].end),
            (2.0, 7.0)
        );
    }

    #[test]
    fn leaves_out_a_stage_that_most_runs_lack() {
        let case = Case::of(&[run(1, Some((0, 1))), run(1, None), run(1, None)]);
        assert!(case.stages.is_empty());
    }
}
