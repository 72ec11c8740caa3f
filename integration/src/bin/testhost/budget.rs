//! The gate: a short bench of the cases that have a budget, which fails when one is
//! exceeded.

use std::path::Path;

use anyhow::Context;
use integration::perf::budget::{Budget, Line};
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
    let cases = budget.cases().collect::<Vec<_>>().join(",");
    let arguments = [
        ("--runs", RUNS.to_string()),
        ("--warm-up", WARM_UP.to_string()),
        ("--cases", cases),
    ];
    let arguments = arguments
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
    let findings = bench::measure(Config::with_joey()?, arguments)?;
    bench::keep("budget.json", &findings)?;

    let lines = budget.lines(&findings);
    println!("{}", Line::head());
    for line in &lines {
        println!("{line}");
    }
    let broken = lines.iter().filter(|line| !line.is_kept()).count();
    if broken > 0 {
        println!(
            "{broken} of {} budgets in {} are not kept",
            lines.len(),
            path.display()
        );
    }
    Ok(i32::from(broken > 0))
}
