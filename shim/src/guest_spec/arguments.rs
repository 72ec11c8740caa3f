//! Whether a program can be started with its arguments and environment at all. The
//! kernel would say so too, but late, and only if they reached the guest.

use oci_spec::runtime::{PosixRlimitType, Process};

use super::SpecError;

/// Longest single string with its end: 32 pages.
const MAX_STRING: usize = 128 << 10;

/// A quarter of the limit of the stack is for the strings and the pointers to them:
/// at least 32 pages, at most three quarters of 8 MiB.
const MIN_TOTAL: u64 = 128 << 10;
const MAX_TOTAL: u64 = 6 << 20;

/// The limit of the stack that a container has when its spec sets none.
const STACK: u64 = 8 << 20;

/// Refuses what the kernel would answer with E2BIG.
pub(super) fn check(process: &Process) -> Result<(), SpecError> {
    let arguments = process.args().as_deref().unwrap_or_default();
    let environment = process.env().as_deref().unwrap_or_default();
    let named = (arguments
        .iter()
        .map(|text| ("an argument".to_owned(), text)))
    .chain(environment.iter().map(|text| (variable(text), text)));
    let mut total = 0usize;
    for (what, text) in named {
        let size = text.len() + 1;
        if size > MAX_STRING {
            return Err(SpecError::Arguments {
                what,
                size,
                limit: MAX_STRING,
            });
        }
        total += size + size_of::<u64>();
    }
    let stack = process.rlimits().iter().flatten();
    let stack = stack
        .into_iter()
        .find(|limit| limit.typ() == PosixRlimitType::RlimitStack)
        .map_or(STACK, |limit| limit.soft());
    let limit = (stack / 4).clamp(MIN_TOTAL, MAX_TOTAL) as usize;
    if total > limit {
        return Err(SpecError::Arguments {
            what: "the process's environment and arguments".to_owned(),
            size: total,
            limit,
        });
    }
    Ok(())
}

fn variable(text: &str) -> String {
    let name = text.split('=').next().unwrap_or_default();
    let short: String = name.chars().take(64).collect();
    format!("the environment variable {short}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::PosixRlimitBuilder;

    fn process(environment: Vec<String>) -> Process {
        let mut process = Process::default();
        process.set_args(Some(vec!["sh".into()]));
        process.set_env(Some(environment));
        process.set_rlimits(None);
        process
    }

    #[test]
    fn one_string_has_128_kib() {
        let text = |length: usize| format!("BIG={}", "x".repeat(length - 4));
        check(&process(vec![text(MAX_STRING - 1)])).unwrap();
        let error = check(&process(vec![text(MAX_STRING)])).unwrap_err();
        assert!(error.to_string().contains("variable BIG has"), "{error}");
    }

    #[test]
    fn all_together_have_a_quarter_of_the_stack() {
        let many = |count: usize| process(vec!["A=".to_owned() + &"x".repeat(65_526); count]);
        check(&many(30)).unwrap();
        let error = check(&many(40)).unwrap_err().to_string();
        assert!(error.starts_with("argument list too long"), "{error}");
        let mut more = many(40);
        let stack = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitStack)
            .soft(64u64 << 20)
            .hard(64u64 << 20)
            .build()
            .unwrap();
        more.set_rlimits(Some(vec![stack]));
        check(&more).unwrap();
    }
}
