//! What a sandbox may cost: `integration/perf/budget.toml`, held against what a bench
//! found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::report::{Case, Findings};

/// By how much a figure may exceed its budget: what one commit changes without meaning to.
pub const ROOM: f64 = 0.02;

/// Budgets by case and figure of the case.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Budget(BTreeMap<String, BTreeMap<String, f64>>);

/// One budget and what was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The case.
    pub case: String,
    /// Which of its figures.
    pub figure: String,
    /// What it may be.
    pub budget: f64,
    /// What it is; `None`: no bench measures that.
    pub seen: Option<f64>,
}

impl Budget {
    /// Reads the file's text.
    ///
    /// # Errors
    /// When it is not tables of numbers, one for each case.
    pub fn parse(text: &str) -> Result<Budget, toml::de::Error> {
        toml::from_str(text)
    }

    /// The cases that have a budget.
    pub fn cases(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Every budget beside what was found.
    pub fn lines(&self, findings: &Findings) -> Vec<Line> {
        let seen = figures(findings);
        let line = |case: &str, figure: &str, budget: f64| Line {
            case: case.to_owned(),
            figure: figure.to_owned(),
            budget,
            seen: seen
                .get(case)
                .and_then(|figures| figures.get(figure))
                .copied(),
        };
        self.0
            .iter()
            .flat_map(|(case, figures)| {
                figures
                    .iter()
                    .map(move |(figure, budget)| line(case, figure, *budget))
            })
            .collect()
    }
}

/// All figures of a bench by case, under the names that the budget has for them.
fn figures(findings: &Findings) -> BTreeMap<String, BTreeMap<&'static str, f64>> {
    let times = |case: &Case| BTreeMap::from([("p50", case.p50), ("min", case.min)]);
    let mut all: BTreeMap<_, _> = findings
        .start
        .cases
        .iter()
        .map(|(name, case)| (name.clone(), times(case)))
        .collect();
    if let Some(oci) = &findings.oci {
        for (name, case) in &oci.cases {
            let mut figures = times(case);
            figures.extend(oci.peak.get(name).map(|bytes| ("peak", *bytes as f64)));
            all.insert(format!("oci_{name}"), figures);
        }
    }
    if let Some(cost) = &findings.cost {
        let bytes = [
            ("vmm", cost.vmm),
            ("shim", cost.shim),
            ("guest_private", cost.guest_private),
        ];
        let figures = bytes.map(|(name, bytes)| (name, bytes as f64));
        all.insert("cost".to_owned(), figures.into());
    }
    all
}

impl Line {
    /// The part of the budget by which it is exceeded; negative where something is left.
    pub fn over(&self) -> Option<f64> {
        self.seen.map(|seen| seen / self.budget - 1.0)
    }

    /// Whether it is kept.
    pub fn is_kept(&self) -> bool {
        self.over().is_some_and(|over| over <= ROOM)
    }

    /// The columns' names, for above lines.
    pub fn head() -> String {
        format!(
            "{:<20} {:<14} {:>12} {:>12} {:>9}",
            "case", "figure", "budget", "seen", "over by"
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line {
            case,
            figure,
            budget,
            ..
        } = self;
        write!(f, "{case:<20} {figure:<14} {budget:>12}")?;
        match (self.seen, self.over()) {
            (Some(seen), Some(over)) => {
                write!(f, " {seen:>12} {:>+7.1} %", over * 100.0)?;
                f.write_str(if self.is_kept() { "" } else { "  TOO MUCH" })
            }
            _ => f.write_str("            -           NOT MEASURED"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::perf::report::{Cost, Report, Run};

    fn findings(milliseconds: u64) -> Findings {
        let run = Run {
            total: Duration::from_millis(milliseconds),
            stages: Vec::new(),
        };
        Findings {
            start: Report {
                unit: "virtual_ms".into(),
                runs: 1,
                cases: [("vmm_cold".to_owned(), Case::of(&[run]))].into(),
            },
            oci: None,
            cost: Some(Cost {
                shim: 1_000_000,
                ..Cost::default()
            }),
            rate: None,
        }
    }

    #[test]
    fn a_figure_may_exceed_its_budget_by_little() {
        let budget = Budget::parse("vmm_cold = { p50 = 100 }\ncost = { shim = 1_000_000 }");
        let budget = budget.unwrap();
        assert_eq!(budget.cases().collect::<Vec<_>>(), ["cost", "vmm_cold"]);
        for (seen, kept) in [(50, true), (100, true), (101, true), (103, false)] {
            let lines = budget.lines(&findings(seen));
            assert!(lines[0].is_kept(), "{lines:?}");
            assert_eq!(lines[1].is_kept(), kept, "{lines:?}");
            assert_eq!(lines[1].to_string().ends_with("TOO MUCH"), !kept);
        }
    }

    #[test]
    fn a_budget_of_what_nobody_measures_is_not_kept() {
        let budget = Budget::parse("vmm_cold = { p99 = 100 }\nvmm_warm = { p50 = 1 }").unwrap();
        let lines = budget.lines(&findings(1));
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert!(!line.is_kept(), "{line:?}");
            assert!(line.to_string().ends_with("NOT MEASURED"));
        }
    }

    #[test]
    fn the_budget_of_this_checkout_can_be_read() {
        let budget = Budget::parse(include_str!("../../perf/budget.toml")).unwrap();
        assert!(budget.cases().any(|case| case == "joey_cold"));
    }
}
