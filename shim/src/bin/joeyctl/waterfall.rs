//! Starts as a table: medians of their parts, each drawn where it lies in the whole.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// One start.
#[derive(Clone, Debug)]
pub struct Start {
    /// How long it took, in microseconds.
    pub total_us: u64,
    /// What it was made of; parts overlap.
    pub stages: Vec<Stage>,
}

/// One part of a start, in microseconds since its begin.
#[derive(Clone, Debug, Deserialize)]
pub struct Stage {
    name: String,
    start_us: u64,
    end_us: u64,
}

impl From<shim::stages::Stage> for Stage {
    fn from(stage: shim::stages::Stage) -> Stage {
        Stage {
            name: stage.name.to_owned(),
            start_us: stage.start_us,
            end_us: stage.end_us,
        }
    }
}

/// Characters of the longest bar.
const WIDTH: u64 = 40;

/// What is told of several starts, in milliseconds.
#[derive(Debug, Serialize)]
struct Summary {
    starts: usize,
    p50: f64,
    min: f64,
    max: f64,
    stages: Vec<Row>,
}

/// A part: medians of its begin and end.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    begin: f64,
    end: f64,
}

/// Prints them under a title, or as JSON.
pub fn print(title: &str, starts: &[Start], json: bool) -> anyhow::Result<()> {
    let summary = Summary::of(starts);
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{title}\n{}", summary.text());
    }
    Ok(())
}

impl Summary {
    /// There must be one at least.
    fn of(starts: &[Start]) -> Summary {
        let totals: Vec<u64> = starts.iter().map(|start| start.total_us).collect();
        let mut names: Vec<&str> = Vec::new();
        for stage in starts.iter().flat_map(|start| &start.stages) {
            if !names.contains(&stage.name.as_str()) {
                names.push(&stage.name);
            }
        }
        let row = |name: &str| {
            let all = starts.iter().flat_map(|start| &start.stages);
            let of = |time: fn(&Stage) -> u64| {
                let named = all.clone().filter(|stage| stage.name == name);
                milliseconds(median(named.map(time).collect()))
            };
            Row {
                name: name.to_owned(),
                begin: of(|stage| stage.start_us),
                end: of(|stage| stage.end_us),
            }
        };
        let mut stages: Vec<Row> = names.into_iter().map(row).collect();
        stages.sort_by(|a, b| a.begin.total_cmp(&b.begin));
        Summary {
            starts: totals.len(),
            min: milliseconds(totals.iter().copied().min().unwrap_or_default()),
            max: milliseconds(totals.iter().copied().max().unwrap_or_default()),
            p50: milliseconds(median(totals)),
            stages,
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} starts: median {:.1} ms, least {:.1}, most {:.1}\n\n{:<12} {:>9} {:>9}\n",
            self.starts, self.p50, self.min, self.max, "part, in ms", "begin", "takes"
        );
        let whole = self
            .stages
            .iter()
            .map(|row| row.end)
            .fold(self.p50, f64::max);
        // Of the width, rounded; a part that begins ends one further at least.
        let column = |time: f64| (time / whole.max(f64::MIN_POSITIVE) * WIDTH as f64) as usize;
        for row in &self.stages {
            let begin = column(row.begin).min(WIDTH as usize - 1);
            let length = column(row.end).saturating_sub(begin).max(1);
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:<12} {:>9.1} {:>9.1}  {}{}",
                row.name,
                row.begin,
                row.end - row.begin,
                " ".repeat(begin),
                "#".repeat(length)
            );
        }
        text
    }
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

/// The lower one of an even number.
fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(total_us: u64, stages: &[(&str, u64, u64)]) -> Start {
        Start {
            total_us,
            stages: stages
                .iter()
                .map(|(name, start_us, end_us)| Stage {
                    name: (*name).to_owned(),
                    start_us: *start_us,
                    end_us: *end_us,
                })
                .collect(),
        }
    }

    #[test]
    fn parts_are_drawn_where_they_lie() {
        let starts = [
            start(80_000, &[("ready", 20_000, 80_000), ("boot", 0, 20_000)]),
            start(81_000, &[("ready", 21_000, 80_000), ("boot", 0, 20_000)]),
            start(90_000, &[("ready", 20_000, 81_000), ("boot", 0, 100)]),
        ];
        let text = Summary::of(&starts).text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "3 starts: median 81.0 ms, least 80.0, most 90.0");
        let bar = |line: &str| (line.find('#'), line.matches('#').count());
        assert!(lines[3].starts_with("boot "), "{text}");
        assert_eq!(bar(lines[3]), (Some(34), 9), "{text}");
        assert!(lines[4].starts_with("ready "), "{text}");
        assert_eq!(bar(lines[4]), (Some(43), 30), "{text}");
    }

    #[test]
    fn a_start_without_parts_is_no_reason_to_panic() {
        let text = Summary::of(&[start(0, &[])]).text();
        assert!(text.starts_with("1 starts"), "{text}");
        let text = Summary::of(&[start(0, &[("boot", 0, 0)])]).text();
        assert!(text.ends_with("#\n"), "{text}");
    }
}
