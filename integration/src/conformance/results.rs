//! How each test ended with each runtime.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// It says that it does not apply here; with its reason.
    Skipped(String),
    /// Not as it should.
    Failed(Failure),
}

impl Outcome {
    /// A failure of which one thing is known.
    pub fn failed(finding: impl Into<String>) -> Outcome {
        Outcome::Failed(Failure {
            findings: vec![finding.into()],
            held: Vec::new(),
        })
    }
}

/// What a test that failed says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it found wrong.
    pub findings: Vec<String>,
    /// Its assertions that hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<String>,
}

/// The tests with one runtime, by their end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    /// Those that passed.
    pub passed: BTreeSet<String>,
    /// Those that failed.
    pub failed: BTreeSet<String>,
    /// Those that say that they do not apply.
    pub skipped: BTreeSet<String>,
    /// What those that failed say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<String, Failure>,
    /// By test: what was there after it and not before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leftovers: BTreeMap<String, Vec<String>>,
}

impl Handler {
    /// Notes a test's end.
    pub fn add(&mut self, name: &str, outcome: Outcome) {
        let set = match outcome {
            Outcome::Passed => &mut self.passed,
            Outcome::Skipped(_) => &mut self.skipped,
            Outcome::Failed(failure) => {
                self.failures.insert(name.to_owned(), failure);
                &mut self.failed
            }
        };
        set.insert(name.to_owned());
    }

    /// One word about a test.
    pub fn word(&self, name: &str) -> &'static str {
        if self.passed.contains(name) {
            "passed"
        } else if self.failed.contains(name) {
            "failed"
        } else if self.skipped.contains(name) {
            "skipped"
        } else {
            "not run"
        }
    }

    /// Every test that ran.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.passed.iter().chain(&self.failed).chain(&self.skipped)
    }
}

/// By runtime: what a suite's file in `target` holds.
pub type Results = BTreeMap<String, Handler>;

/// Every test that ran with a runtime, and one word about it with runc and with joey.
pub fn side_by_side(results: &Results) -> Vec<(&str, [&'static str; 2])> {
    let names: BTreeSet<_> = results.values().flat_map(Handler::names).collect();
    let word = |runtime, name| {
        results
            .get(runtime)
            .map_or("not run", |handler| handler.word(name))
    };
    names
        .into_iter()
        .map(|name| (name.as_str(), [word("runc", name), word("joey", name)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_kept_with_what_it_says() {
        let mut handler = Handler::default();
        handler.add("a", Outcome::failed("x"));
        handler.add("b", Outcome::Skipped("why".into()));
        assert_eq!(handler.word("a"), "failed");
        assert_eq!(handler.failures["a"].findings, ["x"]);
        assert_eq!(handler.word("b"), "skipped");
        assert_eq!(handler.word("c"), "not run");
        let results: Results = [("runc".to_owned(), handler)].into();
        assert_eq!(
            side_by_side(&results),
            [("a", ["failed", "not run"]), ("b", ["skipped", "not run"])]
        );
    }

    #[test]
    fn results_without_failures_can_be_read() {
        let text = r#"{"passed": ["a"], "failed": ["b"], "skipped": []}"#;
        let handler: Handler = serde_json::from_str(text).unwrap();
        assert_eq!(handler.word("b"), "failed");
    }
}
