//! Reports of critest.

use serde::Deserialize;

use super::results::Outcome;

/// A test of ginkgo's JSON report, by the name that ginkgo's own output has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The texts of its containers and its own.
    pub name: String,
    /// Its end; in a dry run a test that would run has passed.
    pub outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
    forwarded_panic: String,
}

/// Reads a report of ginkgo.
///
/// # Errors
/// When it is none.
pub fn parse(report: &[u8]) -> serde_json::Result<Vec<Spec>> {
    let suites: Vec<Report> = serde_json::from_slice(report)?;
    Ok(suites
        .into_iter()
        .flat_map(|suite| suite.spec_reports.unwrap_or_default())
        .filter(|spec| spec.leaf_node_type == "It")
        .map(|spec| {
            let mut texts = spec.container_hierarchy_texts.unwrap_or_default();
            texts.push(spec.leaf_node_text);
            let outcome = match spec.state.as_str() {
                "passed" => Outcome::Passed,
                "skipped" | "pending" => Outcome::Skipped(spec.failure.message),
                state => Outcome::failed(format!(
                    "{state}: {}{}",
                    spec.failure.message, spec.failure.forwarded_panic
                )),
            };
            Spec {
                name: texts.join(" "),
                outcome,
            }
        })
        .collect())
}

/// A regular expression of Go that matches the test of this name alone. ginkgo puts
/// the suite's name before it.
pub fn focus(suite: &str, name: &str) -> String {
    let mut pattern = String::from("^");
    for character in format!("{suite} {name}").chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('$');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_its_tests_and_their_ends() {
        let report = br#"[{"SuiteDescription": "S", "SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "",
             "State": "passed"},
            {"ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeType": "It",
             "LeafNodeText": "c", "State": "passed"},
            {"ContainerHierarchyTexts": ["A"], "LeafNodeType": "It", "LeafNodeText": "d",
             "State": "skipped", "Failure": {"Message": "not here"}},
            {"ContainerHierarchyTexts": ["A"], "LeafNodeType": "It", "LeafNodeText": "e",
             "State": "panicked", "Failure": {"Message": "m", "ForwardedPanic": "p"}}
        ]}, {"SpecReports": null}]"#;
        let specs = parse(report).unwrap();
        let read: Vec<_> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), spec.outcome.clone()))
            .collect();
        assert_eq!(
            read,
            [
                ("[k8s.io] A b c", Outcome::Passed),
                ("A d", Outcome::Skipped("not here".into())),
                ("A e", Outcome::failed("panicked: mp")),
            ]
        );
    }

    #[test]
    fn a_focus_takes_names_as_they_stand() {
        assert_eq!(focus("S", "[k] a|b."), r"^S \[k\] a\|b\.$");
    }
}
