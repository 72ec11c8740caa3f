//! Which unit of systemd a container is.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A transient scope and the slice that it is to lie in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScopeName {
    /// For example `system.slice`.
    pub slice: String,
    /// For example `runc-c1.scope`.
    pub scope: String,
}

impl ScopeName {
    /// From `linux.cgroupsPath` of the form `slice:prefix:name`, where the slice may be empty. The
    /// default is `:runc:ID`, where tools look that know that runtime. A
    /// user's manager (`user`) has its own default slice.
    pub(crate) fn new(path: Option<&Path>, id: &str, user: bool) -> Result<Self, String> {
        let text = match path.filter(|path| !path.as_os_str().is_empty()) {
            None => format!(":runc:{id}"),
            Some(path) => path.to_str().ok_or("is not text")?.to_owned(),
        };
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(format!(
                "{text:?} is not of the form slice:prefix:name that systemd needs; give that, or \
                 use the cgroupfs driver"
            ));
        };
        if text.contains('/') {
            return Err(format!("{text:?} must not contain \"/\""));
        }
        if name.is_empty() {
            return Err(format!("{text:?} has no name after the last colon"));
        }
        if name.ends_with(".slice") {
            return Err(format!(
                "{text:?} names a slice, which cannot have processes; give the container a name \
                 that does not end with .slice"
            ));
        }
        let slice = match (slice, user) {
            ("", false) => "system.slice",
            ("", true) => "user.slice",
            (slice, _) => slice,
        };
        let stem = slice
            .strip_suffix(".slice")
            .ok_or_else(|| format!("{slice:?} must end with .slice"))?;
        if stem != "-" && stem.split('-').any(str::is_empty) {
            return Err(format!("{slice:?} is not a slice of systemd"));
        }
        Ok(Self {
            slice: slice.to_owned(),
            scope: format!("{prefix}-{name}.scope"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Result<(String, String), String> {
        let path = Some(path).filter(|path| !path.is_empty()).map(Path::new);
        ScopeName::new(path, "c1", false).map(|name| (name.slice, name.scope))
    }

    #[test]
    fn slice_prefix_and_name_make_a_scope() {
        let is = |slice: &str, scope: &str| Ok((slice.to_owned(), scope.to_owned()));
        assert_eq!(name("a-b.slice:p:n"), is("a-b.slice", "p-n.scope"));
        assert_eq!(name(":p:n"), is("system.slice", "p-n.scope"));
        assert_eq!(name("-.slice:p:n"), is("-.slice", "p-n.scope"));
        assert_eq!(name(""), is("system.slice", "runc-c1.scope"));
        let users = ScopeName::new(None, "c1", true).unwrap();
        assert_eq!(users.slice, "user.slice");
    }

    #[test]
    fn other_forms_are_refused() {
        for path in [
            "/a/b",
            "a.slice:n",
            "a:p:n",
            "a--b.slice:p:n",
            ".slice:p:n",
            "a.slice:p:",
            "a.slice:p:n/m",
            "a.slice:p:n.slice",
        ] {
            assert!(name(path).is_err(), "{path}");
        }
    }
}
