//! The gate: a short bench of the cases that have a budget, which fails when one is
//! exceeded twice.

use std::path::Path;

use anyhow::Context;
use integration::perf::budget::{Budget, Line};
use integration::perf::report::Findings;
use integration::testbed::{Config, repository};

use crate::bench;

/// The budgets, unless others are named.
const FILE: &str = "integration/perf/budget.toml";

/// Rounds of each case: as few as leave the figures that have budgets within a per cent.
const RUNS: usize = 7;
const WARM_UP: usize = 1;

/// Holds this checkout against the budgets in `file`.
pub fn run(file: Option<&str>) -> anyhow::Result<i32> {
    let path = file.map_or_else(|| repository().join(FILE), |file| Path::new(file).into());
    let here = || path.display().to_string();
    let text = std::fs::read_to_string(&path).with_context(here)?;
    let budget = Budget::parse(&text).with_context(here)?;
    let cases: Vec<_> = budget.cases().collect();
    let findings = measure(&cases)?;
    bench::keep("budget.json", &findings)?;
    let broken = broken(&budget, &cases, &findings);
    if broken.is_empty() {
        return Ok(0);
    }
    // What another test host beside this one holds up is seldom held up twice.
    println!("\nagain: {}", broken.join(", "));
    let findings = measure(&broken)?;
    bench::keep("budget_again.json", &findings)?;
    let broken = self::broken(&budget, &broken, &findings);
    if broken.is_empty() {
        return Ok(0);
    }
    println!(
        "budgets in {} are not kept: {}",
        path.display(),
        broken.join(", ")
    );
    Ok(1)
}

/// Runs these cases in a new test host.
fn measure(cases: &[&str]) -> anyhow::Result<Findings> {
    let arguments = [
        ("--runs", RUNS.to_string()),
        ("--warm-up", WARM_UP.to_string()),
        ("--cases", cases.join(",")),
    ];
    let arguments = arguments
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
    bench::measure(Config::with_joey()?, arguments)
}

/// Prints the budgets of these cases; those of them that exceed one.
fn broken<'a>(budget: &Budget, cases: &[&'a str], findings: &Findings) -> Vec<&'a str> {
    let mut lines = budget.lines(findings);
    lines.retain(|line| cases.contains(&line.case.as_str()));
    println!("{}", Line::head());
    for line in &lines {
        println!("{line}");
    }
    lines.retain(|line| !line.is_kept());
    let is_broken = |case: &&&str| lines.iter().any(|line| line.case == **case);
    cases.iter().filter(is_broken).copied().collect()
}
