//! The differences that are meant, each with its reason: docs/differential.md shows this table.

/// Case and reason.
pub const EXPECTED: &[(&str, &str)] = &[];

/// Why a case may differ.
pub fn reason(case: &str) -> Option<&'static str> {
    EXPECTED
        .iter()
        .find(|(name, _)| *name == case)
        .map(|(_, reason)| *reason)
}
