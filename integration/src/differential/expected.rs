//! The differences that are meant, each with its reason: docs/differential.md shows these tables.

/// Case and reason.
pub const EXPECTED: &[(&str, &str)] = &[];

const DIRECTORY: &str = "a masked directory is under a tmpfs that is read-only as a mount; \
    runc's is so as a file system too, of 4 KiB";
const FILE: &str = "a masked file is under the host's /dev/null, which no image can have replaced; \
    runc binds the container's after checking it";

/// A place in the observations of all cases, in which `*` stands for any text, and the reason.
pub const EVERYWHERE: &[(&str, &str)] = &[
    ("*/mounts//proc/acpi/0/s*", DIRECTORY),
    ("*/mounts//sys/firmware/0/s*", DIRECTORY),
    ("*/mounts//proc/k*/0/*", FILE),
    ("*/mounts//proc/timer_list/0/*", FILE),
];

/// Why a case may differ.
pub fn reason(case: &str) -> Option<&'static str> {
    let entry = EXPECTED.iter().find(|(name, _)| *name == case);
    entry.map(|(_, reason)| *reason)
}

/// The entry of [`EVERYWHERE`] for a place.
pub fn everywhere(at: &str) -> Option<&'static str> {
    let mut entries = EVERYWHERE.iter().map(|(pattern, _)| *pattern);
    entries.find(|pattern| matches(pattern, at))
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut ends = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
            ends.any(|end| matches(rest, &text[end..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for text in ["/a/b", "x/a//b", "/a/bb/b"] {
            assert!(matches("*/a/*b", text), "{text}");
        }
        assert!(!matches("*/a/*b", "/a/bc"));
        assert!(!matches("/a", "/a/b"));
    }
}
