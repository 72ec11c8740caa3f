//! What the programs of the OCI's validation suite print: the Test Anything Protocol,
//! version 13, as its Go library writes it.
//!
//! Some of them have their own ways, which decide here too. Those that look at hooks make
//! no assertion; they print a diagnosis with an error, or none and the plan `1..0`. Two
//! ([`SILENT`]) print nothing and tell by their exit status.

use std::collections::BTreeSet;

use super::results::{Failure, Outcome};

/// Programs whose exit status is all that they have to say.
const SILENT: [&str; 2] = ["process_capabilities_fail", "process_rlimits_fail"];

/// How the program `name` ended, which exited with `status` and printed `stdout`. What it
/// finds more than once is told once.
pub fn outcome(name: &str, status: i32, stdout: &str) -> Outcome {
    let report = Report::read(stdout);
    let mut findings = report.findings;
    let mut seen = BTreeSet::new();
    findings.retain(|finding| seen.insert(finding.clone()));
    let held = report.held.difference(&seen).cloned().collect();
    if status != 0 {
        findings.push(format!("it ended with {status}"));
    } else if !SILENT.contains(&name) {
        match report.planned {
            None => findings.push("it printed no plan: its report breaks off".into()),
            Some(planned) if planned != report.assertions => findings.push(format!(
                "it planned {planned} assertions and made {}",
                report.assertions
            )),
            Some(_) => {}
        }
    }
    match report.skipped {
        _ if !findings.is_empty() => Outcome::Failed(Failure { findings, held }),
        Some(reason) if report.only_skipped => Outcome::Skipped(reason),
        _ => Outcome::Passed,
    }
}

/// What a program printed.
#[derive(Debug, Default)]
struct Report {
    assertions: usize,
    /// The sum of the plans: a program may print several reports one after the other.
    planned: Option<usize>,
    /// Assertions that do not hold, and errors of diagnoses that belong to none.
    findings: Vec<String>,
    /// Assertions that hold.
    held: BTreeSet<String>,
    /// Why the first skipped assertion was skipped.
    skipped: Option<String>,
    /// Every assertion was skipped.
    only_skipped: bool,
}

impl Report {
    fn read(stdout: &str) -> Report {
        let mut report = Report {
            only_skipped: true,
            ..Report::default()
        };
        // A diagnosis belongs to the assertion before it, which has no more than one.
        let mut expects_diagnosis = false;
        let mut lines = stdout.lines();
        while let Some(line) = lines.next() {
            if let Some(assertion) = Assertion::read(line) {
                report.add(assertion);
                expects_diagnosis = true;
            } else if line == "  ---" {
                let error = error(lines.by_ref().take_while(|line| *line != "  ..."));
                if !expects_diagnosis {
                    report.findings.extend(error);
                }
                expects_diagnosis = false;
            } else if let Some(count) = line
                .strip_prefix("1..")
                .and_then(|n| n.parse::<usize>().ok())
            {
                report.planned = Some(report.planned.unwrap_or(0) + count);
            }
        }
        report
    }

    fn add(&mut self, assertion: Assertion<'_>) {
        self.assertions += 1;
        match assertion.directive {
            Some(Directive::Skip) => {
                self.skipped.get_or_insert(assertion.text.to_owned());
                return;
            }
            None if !assertion.holds => self.findings.push(assertion.text.to_owned()),
            None => {
                self.held.insert(assertion.text.to_owned());
            }
            Some(Directive::Todo) => {}
        }
        self.only_skipped = false;
    }
}

enum Directive {
    Skip,
    Todo,
}

struct Assertion<'a> {
    holds: bool,
    directive: Option<Directive>,
    text: &'a str,
}

impl Assertion<'_> {
    /// `ok 1 - TEXT`, `not ok 2 - TEXT`, `ok 3 # SKIP TEXT`, `not ok 4 # TODO TEXT`. The
    /// number is not looked at: the library counts.
    fn read(line: &str) -> Option<Assertion<'_>> {
        let (holds, rest) = match line.strip_prefix("not ") {
            Some(rest) => (false, rest),
            None => (true, line),
        };
        let rest = rest.strip_prefix("ok ")?;
        let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        number.parse::<usize>().ok()?;
        let (directive, text) = if let Some(text) = rest.strip_prefix("# SKIP") {
            (Some(Directive::Skip), text)
        } else if let Some(text) = rest.strip_prefix("# TODO") {
            (Some(Directive::Todo), text)
        } else {
            (None, rest.strip_prefix("- ").unwrap_or(rest))
        };
        Some(Assertion {
            holds,
            directive,
            text: text.trim(),
        })
    }
}

/// The first line of a diagnosis's error. The block is JSON with a key a line, but not
/// always valid: the library takes it for a format string.
fn error<'a>(block: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut found = None;
    for line in block {
        let value = line.strip_prefix(r#"    "error": ""#).map(|value| {
            value
                .trim_end_matches(',')
                .trim_end_matches('"')
                .split(r"\n")
                .next()
                .unwrap_or_default()
        });
        found = found.or(value.filter(|value| !value.is_empty()));
    }
    found.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(findings: &[&str], held: &[&str]) -> Outcome {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.into()).collect();
        Outcome::Failed(Failure {
            findings: owned(findings),
            held: owned(held),
        })
    }

    #[test]
    fn assertions_decide() {
        let good = "TAP version 13\nok 1 - a\n# expect: 1\nok 2 # SKIP b\n1..2\n";
        assert_eq!(outcome("x", 0, good), Outcome::Passed);
        let bad = "TAP version 13\nok 1 - a\nnot ok 2 - b c\nnot ok 3 # TODO d\nnot ok 4 - b c\n\
                   ok 5 - b c\n1..5\n";
        assert_eq!(outcome("x", 0, bad), failed(&["b c"], &["a"]));
        let skipped = "TAP version 13\nok 1 # SKIP not here\nok 2 # SKIP b\n1..2\n";
        assert_eq!(
            outcome("x", 0, skipped),
            Outcome::Skipped("not here".into())
        );
    }

    #[test]
    fn a_report_must_be_whole() {
        assert_eq!(
            outcome("x", 0, ""),
            failed(&["it printed no plan: its report breaks off"], &[])
        );
        assert_eq!(
            outcome("x", 0, "ok 1 - a\n1..2\n"),
            failed(&["it planned 2 assertions and made 1"], &["a"])
        );
        let two = "1..0\nTAP version 13\nok 1 - a\n1..1\nTAP version 13\nok 1 - a\n1..1\n";
        assert_eq!(outcome("x", 0, two), Outcome::Passed);
        assert_eq!(
            outcome("x", 2, "TAP version 13\nok 1 - a\n"),
            failed(&["it ended with 2"], &["a"])
        );
    }

    #[test]
    fn what_a_diagnosis_holds_is_no_assertion() {
        let quoted = "TAP version 13\nok 1 - a\n  ---\n  {\n    \"stdout\": \"x\",\n\
                      not ok 7 - quoted\n  }\n  ...\n1..1\n";
        assert_eq!(outcome("x", 0, quoted), Outcome::Passed);
    }

    #[test]
    fn a_diagnosis_of_its_own_is_a_failure() {
        let diagnosis = "  ---\n  {\n    \"error\": \"hooks MUST\\nRefer to\",\n    \
                         \"reference\": \"r\"\n  }\n  ...\n";
        let alone = format!("TAP version 13\n{diagnosis}1..0\n");
        assert_eq!(outcome("prestart", 0, &alone), failed(&["hooks MUST"], &[]));
        // What an assertion expects may be an error.
        let of_assertion = format!("ok 1 - a\nRefer to\n{diagnosis}1..1\n");
        assert_eq!(outcome("x", 0, &of_assertion), Outcome::Passed);
        let second = format!("ok 1 - a\n{diagnosis}{diagnosis}1..1\n");
        assert_eq!(outcome("x", 0, &second), failed(&["hooks MUST"], &["a"]));
        let without = "  ---\n  {\n    \"stdout\": \"s\"\n  }\n  ...\nok 1 - a\n1..1\n";
        assert_eq!(outcome("x", 0, without), Outcome::Passed);
        assert_eq!(
            outcome("prestart", 0, "TAP version 13\n1..0\n"),
            Outcome::Passed
        );
    }

    #[test]
    fn the_silent_tell_by_their_status() {
        assert_eq!(outcome("process_rlimits_fail", 0, ""), Outcome::Passed);
        assert_eq!(
            outcome(
                "process_rlimits_fail",
                1,
                "TAP version 13\nok 1 - a\n1..1\n"
            ),
            failed(&["it ended with 1"], &["a"])
        );
    }
}
