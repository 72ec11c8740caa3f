//! The cases, one file for each area.

mod cgroup;
mod devices;
mod documents;
mod hooks;
mod mounts;
mod namespaces;
mod privileges;
mod process;
mod seccomp;
mod terminal;
mod verbs;

use super::case::Case;

/// Every case, in the order in which they run.
pub fn all() -> Vec<Case> {
    [
        documents::cases(),
        process::cases(),
        privileges::cases(),
        namespaces::cases(),
        mounts::cases(),
        devices::cases(),
        cgroup::cases(),
        seccomp::cases(),
        hooks::cases(),
        terminal::cases(),
        verbs::cases(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::expected::{MEANT, matches};
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_spec() {
        let cases = all();
        let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        for case in &cases {
            // A case of which a patch finds no place panics.
            let base = super::super::bundle::base("x");
            assert!(
                !case.config(base).is_empty() || case.name.contains("empty"),
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn every_meant_difference_belongs_to_a_case() {
        let cases = all();
        for meant in MEANT {
            let belongs = |case: &Case| matches(meant.cases, case.name);
            assert!(cases.iter().any(belongs), "{}", meant.cases);
        }
    }
}
