//! What the benches write: `target/bench/sandbox_start.json` (medians of repeated
//! runs, by case and stage), `target/bench/sandbox_cost.json` (memory),
//! `target/bench/sandbox_rate.json` (busy time of the host) and `target/bench/density.json`.

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
    /// `sandbox_rate.json`, likewise.
    pub rate: Option<RateReport>,
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

/// What sandboxes cost that start and end at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RateReport {
    /// As [`Report::unit`].
    pub unit: String,
    /// By runtime handler, and by how many there were at once.
    pub handlers: BTreeMap<String, BTreeMap<usize, Rate>>,
}

/// The cost of sandboxes of which a number was there at once, in the report's unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// How many were made and removed for this.
    pub sandboxes: usize,
    /// The host's busy time for each, from its start to its removal.
    pub cpu: f64,
    /// Median of the time until all that were asked for at once were ready.
    pub last_ready: f64,
}

impl Rate {
    /// Of `busy` time that went into `sandboxes`, and when the last was ready each time.
    ///
    /// # Panics
    /// When there were none.
    pub fn of(busy: Duration, sandboxes: usize, last_ready: &[Duration]) -> Rate {
        Rate {
            sandboxes,
            cpu: round(milliseconds(busy) / sandboxes as f64),
            last_ready: median(last_ready.iter().copied().map(milliseconds).collect()),
        }
    }
}

/// Memory of many idle sandboxes at once, in bytes of each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Density {
    /// How many there were.
    pub sandboxes: usize,
    /// By how much the host's available memory went down: also what no process shows, as the
    /// kernel's page tables and namespaces.
    pub taken: u64,
    /// Medians of what their processes show.
    pub cost: Cost,
    /// Median and most of what VMM and shim hold alone, together.
    pub processes_p50: u64,
    /// See `processes_p50`.
    pub processes_max: u64,
}

impl Density {
    /// Of sandboxes with these costs, each of which took as much of the host.
    ///
    /// # Panics
    /// When there are none.
    pub fn of(taken: u64, costs: &[Cost]) -> Density {
        let sorted = |of: fn(&Cost) -> u64| {
            let mut bytes: Vec<u64> = costs.iter().map(of).collect();
            bytes.sort_unstable();
            bytes
        };
        let middle = |of| sorted(of)[costs.len() / 2];
        let processes = sorted(|cost| cost.vmm + cost.shim);
        Density {
            sandboxes: costs.len(),
            taken,
            cost: Cost {
                vmm: middle(|cost| cost.vmm),
                shim: middle(|cost| cost.shim),
                guest_private: middle(|cost| cost.guest_private),
                shared: middle(|cost| cost.shared),
            },
            processes_p50: processes[costs.len() / 2],
            processes_max: processes[costs.len() - 1],
        }
    }
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
    fn a_rate_is_per_sandbox() {
        let milliseconds = Duration::from_millis;
        let rate = Rate::of(milliseconds(900), 4, &[milliseconds(30), milliseconds(50)]);
        assert_eq!((rate.cpu, rate.last_ready), (225.0, 40.0));
    }

    #[test]
    fn density_is_of_the_median_and_of_the_worst() {
        let cost = |vmm, shim| Cost {
            vmm,
            shim,
            ..Cost::default()
        };
        let density = Density::of(9, &[cost(1, 50), cost(7, 2), cost(3, 4)]);
        assert_eq!((density.cost.vmm, density.cost.shim), (3, 4));
        assert_eq!((density.processes_p50, density.processes_max), (9, 51));
    }

    #[test]
    fn leaves_out_a_stage_that_most_runs_lack() {
        let case = Case::of(&[run(1, Some((0, 1))), run(1, None), run(1, None)]);
        assert!(case.stages.is_empty());
    }
}
