//! docs/differential.md: the reasons of the table and the figures of the last whole run.

use std::collections::BTreeMap;

use super::expected::MEANT;
use super::report::{Report, Verdict};

const RESULTS: [&str; 2] = ["<!-- results -->\n", "<!-- end of results -->"];

/// The document has no place for results.
#[derive(Debug, thiserror::Error)]
#[error("docs/differential.md has no part between `{}` and `{}`", RESULTS[0].trim(), RESULTS[1])]
pub struct NoPlace;

/// The document with the results of a run.
///
/// # Errors
/// When it has no place for them.
pub fn with_results(document: &str, report: &Report) -> Result<String, NoPlace> {
    let (before, rest) = document.split_once(RESULTS[0]).ok_or(NoPlace)?;
    let (_, after) = rest.split_once(RESULTS[1]).ok_or(NoPlace)?;
    let [begin, end] = RESULTS;
    Ok([before, begin, &results(report), end, after].concat())
}

fn results(report: &Report) -> String {
    let mut text = String::new();
    for (name, version) in &report.versions {
        text.push_str(&format!("* {name}: `{version}`\n"));
    }
    let mut areas: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (name, row) in &report.cases {
        let area = name.split('/').next().unwrap_or_default();
        let column = match row.verdict() {
            Verdict::Same => 0,
            Verdict::Meant => 1,
            Verdict::Differs => 2,
        };
        areas.entry(area).or_default()[column] += 1;
    }
    let mut sum = [0; 3];
    text.push_str(
        "\n| area | same | differ as is meant | to be looked at |\n| --- | --- | --- | --- |\n",
    );
    for (area, counts) in &areas {
        let [same, meant, open] = counts;
        text.push_str(&format!("| {area} | {same} | {meant} | {open} |\n"));
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    let [same, meant, open] = sum;
    text.push_str(&format!("| **together** | {same} | {meant} | {open} |\n"));
    text.push_str("\n| cases | where | why joey differs |\n| --- | --- | --- |\n");
    for (number, entry) in MEANT.iter().enumerate() {
        let cases = match entry.cases {
            "*" => "all".to_owned(),
            _ => report.showing(number).join(", "),
        };
        let places = entry.places.iter().map(|place| format!("`{place}`"));
        let places = places.collect::<Vec<_>>().join(", ");
        text.push_str(&format!("| {cases} | {places} | {} |\n", entry.reason));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::report::Row;
    use super::*;

    #[test]
    fn results_replace_the_last_ones() {
        let status = |status: i32| json!({"steps": [0, 0, 0, {"status": status}]});
        let row = |case: &str, joey| (case.to_owned(), Row::new(case, status(1), status(joey)));
        let report = Report {
            whole: true,
            versions: [("runc".to_owned(), "runc 1".to_owned())].into(),
            cases: [
                row("verbs/x", 1),
                row("verbs/kill-realtime", 0),
                row("b/z", 0),
            ]
            .into(),
        };
        let text = with_results(
            "top\n<!-- results -->\nold\n<!-- end of results -->\nend",
            &report,
        )
        .unwrap();
        assert!(!text.contains("old"));
        for line in [
            "* runc: `runc 1`",
            "| verbs | 1 | 1 | 0 |",
            "| b | 0 | 0 | 1 |",
            "| **together** | 1 | 1 | 1 |",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        assert!(text.contains("| verbs/kill-realtime | `"), "{text}");
        assert!(with_results("nothing", &report).is_err());
    }
}
