//! docs/differential.md: the reasons of the table and the figures of the last whole run.

use std::collections::BTreeMap;

use super::expected;
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
            Verdict::Expected => 1,
            Verdict::Differs | Verdict::Mended => 2,
        };
        areas.entry(area).or_default()[column] += 1;
    }
    let mut sum = [0; 3];
    text.push_str(
        "\n| area | same | expected differences | to be looked at |\n| --- | --- | --- | --- |\n",
    );
    for (area, counts) in &areas {
        let [same, expected, open] = counts;
        text.push_str(&format!("| {area} | {same} | {expected} | {open} |\n"));
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    let [same, expected, open] = sum;
    text.push_str(&format!(
        "| **together** | {same} | {expected} | {open} |\n"
    ));
    let rows: Vec<_> = report.with(Verdict::Expected).collect();
    if !rows.is_empty() {
        text.push_str("\n| case | why joey differs |\n| --- | --- |\n");
    }
    for (name, row) in rows {
        let reason = row
            .reason
            .as_deref()
            .unwrap_or_default()
            .replace('|', "\\|");
        text.push_str(&format!("| {name} | {reason} |\n"));
    }
    text.push_str("\n| place in every case | why joey differs |\n| --- | --- |\n");
    for (pattern, reason) in expected::EVERYWHERE {
        text.push_str(&format!("| `{pattern}` | {reason} |\n"));
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
        let row = |joey: i32, reason| Row::new(json!(1), json!(joey), reason);
        let report = Report {
            whole: true,
            versions: [("runc".to_owned(), "runc 1".to_owned())].into(),
            cases: [
                ("a/x".to_owned(), row(1, None)),
                ("a/y".to_owned(), row(2, Some("this | that"))),
                ("b/z".to_owned(), row(2, None)),
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
            "| a | 1 | 1 | 0 |",
            "| b | 0 | 0 | 1 |",
            "| **together** | 1 | 1 | 1 |",
            "| a/y | this \\| that |",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        assert!(with_results("nothing", &report).is_err());
    }
}
