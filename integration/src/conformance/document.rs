//! A suite's document: the list of tests that pass with runc and cannot pass with joey,
//! and the table of the last whole run.

use std::collections::{BTreeMap, BTreeSet};

use super::results::{Handler, Results, side_by_side};

const LIST: [&str; 2] = ["<!-- list -->\n", "<!-- end of list -->"];
const TABLE: [&str; 2] = ["<!-- table -->\n", "<!-- end of table -->"];

/// Why the document cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    /// A marker is not there.
    #[error("there is no part between `{}` and `{}`", .0[0].trim(), .0[1])]
    Marker([&'static str; 2]),
    /// A line of the list that is not an entry.
    #[error("{0:?} is not an entry of the list: * `TEST`: REASON")]
    Entry(String),
}

/// Reads the list: entries are "* `TEST`: REASON", whose reasons may go on in
/// indented lines.
///
/// # Errors
/// Names what does not stand as it should.
pub fn list(document: &str) -> Result<BTreeMap<String, String>, DocumentError> {
    let (_, list, _) = part(document, LIST)?;
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in list.lines().filter(|line| !line.trim().is_empty()) {
        let entry = line
            .strip_prefix("* `")
            .and_then(|rest| rest.split_once("`: "))
            .filter(|(_, reason)| !reason.trim().is_empty());
        match (entry, entries.last_mut()) {
            (Some((name, reason)), _) => entries.push((name.into(), reason.into())),
            (None, Some((_, reason))) if line.starts_with("  ") => {
                reason.push(' ');
                reason.push_str(line.trim());
            }
            _ => return Err(DocumentError::Entry(line.into())),
        }
    }
    Ok(entries.into_iter().collect())
}

/// What a run says against the list; empty: nothing.
pub fn complaints(results: &Results, list: &BTreeMap<String, String>) -> Vec<String> {
    let (Some(runc), Some(joey)) = (results.get("runc"), results.get("joey")) else {
        return vec!["a comparison needs the results of both runc and joey".into()];
    };
    let mut complaints = Vec::new();
    for name in runc.passed.difference(&joey.passed) {
        if !list.contains_key(name) {
            let word = joey.word(name);
            complaints.push(format!("passed with runc, {word} with joey: {name}"));
        }
    }
    for name in list.keys() {
        if joey.passed.contains(name) {
            complaints.push(format!(
                "passed with joey although the list names it: {name}"
            ));
        } else if !runc.passed.contains(name) {
            let word = runc.word(name);
            complaints.push(format!(
                "{word} with runc although the list names it: {name}"
            ));
        }
    }
    complaints
}

/// Assertions that hold with runc and not with joey, of tests that fail with both.
pub fn further(results: &Results) -> Vec<String> {
    let (Some(runc), Some(joey)) = (results.get("runc"), results.get("joey")) else {
        return Vec::new();
    };
    let mut further = Vec::new();
    for (name, runc) in &runc.failures {
        let Some(joey) = joey.failures.get(name) else {
            continue;
        };
        for finding in joey.findings.iter().filter(|text| runc.held.contains(text)) {
            further.push(format!("holds with runc, not with joey: {name}: {finding}"));
        }
    }
    further
}

/// The document with the table of these results.
///
/// # Errors
/// When it has no place for it.
pub fn with_table(document: &str, results: &Results) -> Result<String, DocumentError> {
    let (before, _, after) = part(document, TABLE)?;
    let mut table = String::from("| test | runc | joey |\n| --- | --- | --- |\n");
    for (name, [runc, joey]) in side_by_side(results) {
        let name = name.replace('|', "\\|");
        table.push_str(&format!("| {name} | {runc} | {joey} |\n"));
    }
    type Set = fn(&Handler) -> &BTreeSet<String>;
    let sets: [(&str, Set); 3] = [
        ("passed", |handler| &handler.passed),
        ("failed", |handler| &handler.failed),
        ("skipped", |handler| &handler.skipped),
    ];
    for (word, set) in sets {
        let count = |handler| results.get(handler).map_or(0, |handler| set(handler).len());
        let (runc, joey) = (count("runc"), count("joey"));
        table.push_str(&format!("| **{word}, together** | {runc} | {joey} |\n"));
    }
    Ok([before, &table, after].concat())
}

/// Splits into what stands before the part, the part and what stands after it; the
/// markers are outside of the part.
fn part<'a>(
    document: &'a str,
    markers: [&'static str; 2],
) -> Result<(&'a str, &'a str, &'a str), DocumentError> {
    let begin = document.find(markers[0]).map(|at| at + markers[0].len());
    let begin = begin.ok_or(DocumentError::Marker(markers))?;
    let length = document[begin..].find(markers[1]);
    let end = begin + length.ok_or(DocumentError::Marker(markers))?;
    Ok((&document[..begin], &document[begin..end], &document[end..]))
}

#[cfg(test)]
mod tests {
    use super::super::results::{Failure, Outcome};
    use super::*;

    fn results(runc: [&[&str]; 2], joey: [&[&str]; 2]) -> Results {
        let handler = |[passed, failed]: [&[&str]; 2]| {
            let mut handler = Handler::default();
            for name in passed {
                handler.add(name, Outcome::Passed);
            }
            for name in failed {
                handler.add(name, Outcome::failed("x"));
            }
            handler
        };
        [
            ("runc".to_owned(), handler(runc)),
            ("joey".to_owned(), handler(joey)),
        ]
        .into()
    }

    #[test]
    fn the_list_has_names_and_reasons() {
        let document =
            "x\n<!-- list -->\n* `a b`: why\n  and more\n* `c`: d\n<!-- end of list -->\n";
        let list = list(document).unwrap();
        assert_eq!(list["a b"], "why and more");
        assert_eq!(list["c"], "d");
    }

    #[test]
    fn a_list_that_cannot_be_read_is_refused() {
        assert_eq!(list("x"), Err(DocumentError::Marker(LIST)));
        for entry in ["* a: b", "* `a`", "* `a`: ", "a"] {
            let document = format!("<!-- list -->\n{entry}\n<!-- end of list -->");
            assert_eq!(list(&document), Err(DocumentError::Entry(entry.into())));
        }
    }

    #[test]
    fn a_run_must_agree_with_the_list() {
        let list: BTreeMap<_, _> = [("a".to_owned(), "why".to_owned())].into();
        let agrees = results([&["a", "b"], &["c"]], [&["b", "c"], &["a"]]);
        assert!(complaints(&agrees, &list).is_empty());

        let lost = results([&["a", "b"], &[]], [&[], &["a", "b"]]);
        assert_eq!(
            complaints(&lost, &list),
            ["passed with runc, failed with joey: b"]
        );
        let not_run = results([&["a", "b"], &[]], [&[], &["a"]]);
        assert_eq!(
            complaints(&not_run, &list),
            ["passed with runc, not run with joey: b"]
        );
        let mended = results([&["a"], &[]], [&["a"], &[]]);
        assert_eq!(complaints(&mended, &list).len(), 1);
        let needless = results([&[], &["a"]], [&[], &["a"]]);
        assert_eq!(complaints(&needless, &list).len(), 1);
        assert_eq!(complaints(&Results::new(), &list).len(), 1);
    }

    #[test]
    fn what_holds_with_runc_holds_with_joey() {
        let mut both = results([&[], &["a"]], [&[], &["a"]]);
        let failed = |findings: &[&str], held: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.into()).collect();
            Outcome::Failed(Failure {
                findings: owned(findings),
                held: owned(held),
            })
        };
        let mut of = |name, outcome| both.get_mut(name).unwrap().add("a", outcome);
        of("runc", failed(&["x"], &["y"]));
        // `z` is something that runc's run never came to.
        of("joey", failed(&["x", "y", "z"], &[]));
        assert_eq!(further(&both), ["holds with runc, not with joey: a: y"]);
        // `complaints` tells of it.
        assert!(further(&results([&["a"], &[]], [&[], &["a"]])).is_empty());
    }

    #[test]
    fn the_table_replaces_the_last_one() {
        let document = "a\n<!-- table -->\nold\n<!-- end of table -->\nb";
        let text = with_table(document, &results([&["x|y"], &[]], [&[], &["x|y"]])).unwrap();
        assert_eq!(
            text,
            "a\n<!-- table -->\n| test | runc | joey |\n| --- | --- | --- |\n\
             | x\\|y | passed | failed |\n\
             | **passed, together** | 1 | 0 |\n\
             | **failed, together** | 0 | 1 |\n\
             | **skipped, together** | 0 | 0 |\n\
             <!-- end of table -->\nb"
        );
    }
}
