//! A whole run: what is written to `target/differential.json`, and what it says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compare::{Difference, differences};
use super::expected::{self, MEANT, Meant};

/// How one case went under both.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Where they differ for no reason that the table has.
    pub differences: Vec<Difference>,
    /// Where they differ as is meant, by the place of the entry in [`MEANT`].
    pub meant: BTreeMap<usize, Vec<Difference>>,
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
    /// Both do the same, but for what is meant to differ in all cases.
    Same,
    /// They differ only as is meant.
    Meant,
    /// They differ.
    Differs,
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
    /// Compares two observations of a case.
    pub fn new(case: &str, runc: Value, joey: Value) -> Row {
        let mut row = Row {
            differences: Vec::new(),
            meant: BTreeMap::new(),
            runc,
            joey,
        };
        for difference in differences(&row.runc, &row.joey) {
            match expected::entry(case, &difference.at) {
                Some(entry) => row.meant.entry(entry).or_default().push(difference),
                None => row.differences.push(difference),
            }
        }
        row
    }

    /// What is said of it.
    pub fn verdict(&self) -> Verdict {
        if !self.differences.is_empty() {
            return Verdict::Differs;
        }
        let of_all = |entry: &usize| MEANT.get(*entry).is_some_and(|meant| meant.cases == "*");
        match self.meant.keys().all(of_all) {
            true => Verdict::Same,
            false => Verdict::Meant,
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

    /// The cases that show an entry of the table.
    pub fn showing(&self, entry: usize) -> Vec<&str> {
        let mut names = Vec::new();
        for (name, row) in &self.cases {
            if row.meant.contains_key(&entry) {
                names.push(name.as_str());
            }
        }
        names
    }

    /// Entries of the table that no case shows any more: a run of some cases says nothing of that.
    fn needless(&self) -> Vec<&'static Meant> {
        let entries = MEANT.iter().enumerate();
        entries
            .filter(|(entry, _)| self.whole && self.showing(*entry).is_empty())
            .map(|(_, meant)| meant)
            .collect()
    }

    /// Whether nothing has to be looked at.
    pub fn is_clean(&self) -> bool {
        self.with(Verdict::Differs).next().is_none() && self.needless().is_empty()
    }

    /// The run in words: what differs and why, then one line of figures.
    pub fn summary(&self) -> String {
        let mut text = String::new();
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
        for Meant { cases, places, .. } in self.needless() {
            text.push_str(&format!(
                "no longer {cases} {places:?}: see integration/src/differential/expected.rs\n"
            ));
        }
        let count = |verdict| self.with(verdict).count();
        text.push_str(&format!(
            "{} cases: {} same, {} differ as is meant, {} differ\n",
            self.cases.len(),
            count(Verdict::Same),
            count(Verdict::Meant),
            count(Verdict::Differs),
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(case: &str, runc: Value, joey: Value) -> Report {
        Report {
            cases: [(case.to_owned(), Row::new(case, runc, joey))].into(),
            ..Report::default()
        }
    }

    #[test]
    fn a_difference_wants_an_entry() {
        let owner = |owner: &str| json!({"output": {"owner": owner}});
        for (joey, verdict) in [
            (owner(""), Verdict::Same),
            // Meant in all cases.
            (owner("root"), Verdict::Same),
            (json!({"output": 1}), Verdict::Differs),
        ] {
            let report = report("a/b", owner(""), joey);
            assert_eq!(report.cases["a/b"].verdict(), verdict);
            assert_eq!(report.is_clean(), verdict != Verdict::Differs);
        }
        let status = |status: i32| json!({"steps": [0, 0, 0, {"status": status}]});
        let row = |case: &str| Row::new(case, status(1), status(0)).verdict();
        assert_eq!(row("verbs/kill-realtime"), Verdict::Meant);
        assert_eq!(row("verbs/other"), Verdict::Differs);
    }

    #[test]
    fn a_whole_run_wants_every_entry() {
        let mut report = report("a/b", json!(1), json!(1));
        assert!(report.is_clean());
        report.whole = true;
        assert!(!report.is_clean());
    }

    #[test]
    fn the_summary_shows_what_differs() {
        let text = report("x", json!({"a": 0}), json!({"a": 1})).summary();
        assert!(
            text.contains("/a\n        runc 0\n        joey 1\n"),
            "{text}"
        );
    }
}
