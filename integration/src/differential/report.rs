//! A whole run: what is written to `target/differential.json`, and what it says.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compare::{Difference, differences};
use super::expected;

/// How one case went under both.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Where they differ, but for what may differ in every case.
    pub differences: Vec<Difference>,
    /// The entries of [`expected::EVERYWHERE`] that it shows.
    pub everywhere: BTreeSet<String>,
    /// Why they may; from the table.
    pub reason: Option<String>,
    /// What was seen under runc.
    pub runc: Value,
    /// What was seen under joey.
    pub joey: Value,
}

/// All cases by name, and the versions that both runtimes print.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Whether no case was left out.
    pub whole: bool,
    /// The first line of `--version`, by runtime.
    pub versions: BTreeMap<String, String>,
    /// The cases.
    pub cases: BTreeMap<String, Row>,
}

/// A difference of what is seen inside that more cases than this have is shown once.
const MANY: usize = 8;

/// What is said of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Both do the same.
    Same,
    /// They differ for the table's reason.
    Expected,
    /// They differ.
    Differs,
    /// The table has a reason for a difference that is none.
    Mended,
}

/// A difference without the number of its step, which tells nothing of its cause.
fn shown(difference: &Difference) -> String {
    let Difference { at, runc, joey } = difference;
    let place = match at
        .strip_prefix("/steps/")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((_, rest)) => format!("/{rest}"),
        None => at.clone(),
    };
    format!("    {place}\n        runc {runc}\n        joey {joey}\n")
}

impl Row {
    /// Compares two observations.
    pub fn new(runc: Value, joey: Value, reason: Option<&str>) -> Row {
        let mut everywhere = BTreeSet::new();
        let mut differences = differences(&runc, &joey);
        differences.retain(|difference| match expected::everywhere(&difference.at) {
            Some(entry) => {
                everywhere.insert(entry.to_owned());
                false
            }
            None => true,
        });
        Row {
            differences,
            everywhere,
            reason: reason.map(str::to_owned),
            runc,
            joey,
        }
    }

    /// What is said of it.
    pub fn verdict(&self) -> Verdict {
        match (self.differences.is_empty(), &self.reason) {
            (true, None) => Verdict::Same,
            (true, Some(_)) => Verdict::Mended,
            (false, Some(_)) => Verdict::Expected,
            (false, None) => Verdict::Differs,
        }
    }
}

impl Report {
    /// The cases of a verdict.
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = (&String, &Row)> {
        self.cases
            .iter()
            .filter(move |(_, row)| row.verdict() == verdict)
    }

    /// Entries of [`expected::EVERYWHERE`] that no case shows any more: a run of some cases says
    /// nothing of that.
    fn needless(&self) -> Vec<&'static str> {
        let shown = |pattern: &str| {
            self.cases
                .values()
                .any(|row| row.everywhere.contains(pattern))
        };
        let patterns = expected::EVERYWHERE.iter().map(|(pattern, _)| *pattern);
        patterns
            .filter(|pattern| self.whole && !shown(pattern))
            .collect()
    }

    /// Whether nothing has to be looked at.
    pub fn is_clean(&self) -> bool {
        self.with(Verdict::Differs)
            .chain(self.with(Verdict::Mended))
            .next()
            .is_none()
            && self.needless().is_empty()
    }

    /// The run in words: what differs and why, then one line of figures.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (name, row) in self.with(Verdict::Expected) {
            let reason = row.reason.as_deref().unwrap_or_default();
            text.push_str(&format!("expected  {name}: {reason}\n"));
        }
        let mut cases: BTreeMap<String, usize> = BTreeMap::new();
        for (_, row) in self.with(Verdict::Differs) {
            for line in row.differences.iter().map(shown) {
                *cases.entry(line).or_default() += 1;
            }
        }
        cases.retain(|line, count| *count > MANY && line.starts_with("    /output/"));
        for (line, count) in &cases {
            text.push_str(&format!("differs   in {count} cases\n{line}"));
        }
        for (name, row) in self.with(Verdict::Differs) {
            let lines: Vec<_> = row.differences.iter().map(shown).collect();
            let (many, own): (Vec<_>, Vec<_>) =
                lines.iter().partition(|line| cases.contains_key(*line));
            text.push_str(&format!("differs   {name}"));
            if !many.is_empty() {
                text.push_str(&format!(", with {} of those above", many.len()));
            }
            text.push('\n');
            own.into_iter().for_each(|line| text.push_str(line));
        }
        for (name, _) in self.with(Verdict::Mended) {
            text.push_str(&format!(
                "no longer {name}: take it out of integration/src/differential/expected.rs\n"
            ));
        }
        for pattern in self.needless() {
            text.push_str(&format!(
                "no longer {pattern}: take it out of integration/src/differential/expected.rs\n"
            ));
        }
        let count = |verdict| self.with(verdict).count();
        text.push_str(&format!(
            "{} cases: {} same, {} expected differences, {} differ, {} no longer differ\n",
            self.cases.len(),
            count(Verdict::Same),
            count(Verdict::Expected),
            count(Verdict::Differs),
            count(Verdict::Mended),
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(rows: [(&str, i32, Option<&str>); 1]) -> Report {
        let cases = rows.into_iter().map(|(name, joey, reason)| {
            (
                name.into(),
                Row::new(json!({"a": 0}), json!({"a": joey}), reason),
            )
        });
        Report {
            whole: false,
            versions: BTreeMap::new(),
            cases: cases.collect(),
        }
    }

    #[test]
    fn a_difference_wants_a_reason_and_a_reason_a_difference() {
        assert!(report([("x", 0, None)]).is_clean());
        assert!(report([("x", 1, Some("why"))]).is_clean());
        assert!(!report([("x", 1, None)]).is_clean());
        assert!(!report([("x", 0, Some("why"))]).is_clean());
    }

    #[test]
    fn the_summary_shows_what_differs() {
        let text = report([("x", 1, None)]).summary();
        assert!(
            text.contains("/a\n        runc 0\n        joey 1\n"),
            "{text}"
        );
        let text = report([("x", 0, Some("why"))]).summary();
        assert!(text.starts_with("no longer x:"), "{text}");
    }
}
