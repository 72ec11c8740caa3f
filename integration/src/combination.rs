//! The combinations of containerd and its ways to drive a sandbox in which the
//! end-to-end tests run. One run of the tests is one combination.

/// Names the combination of a run; without it the first of [`ALL`].
pub const VARIABLE: &str = "JOEY_E2E";

/// A containerd, and a handler in its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combination {
    /// As [`VARIABLE`] says it.
    pub name: &'static str,
    /// What `start-containerd` takes; empty: the suite's own.
    pub containerd: &'static str,
    /// The runtime handler that the tests use.
    pub handler: &'static str,
}

/// All of them.
pub const ALL: [Combination; 3] = [
    Combination {
        name: "2.1-podsandbox",
        containerd: "",
        handler: "joey",
    },
    Combination {
        name: "2.1-shim",
        containerd: "",
        handler: "joey-shim",
    },
    Combination {
        name: "1.7-podsandbox",
        containerd: "1.7",
        handler: "joey",
    },
];

impl Combination {
    /// Whether it is containerd 1.7, which can do less than the newer ones.
    pub fn is_containerd_1_7(&self) -> bool {
        self.containerd == "1.7"
    }

    /// The one of this run.
    ///
    /// # Panics
    /// When the environment names none of [`ALL`].
    pub fn of_this_run() -> &'static Combination {
        let Some(wanted) = std::env::var_os(VARIABLE) else {
            return &ALL[0];
        };
        ALL.iter()
            .find(|combination| *combination.name == *wanted)
            .unwrap_or_else(|| {
                let names = ALL.map(|combination| combination.name).join(", ");
                panic!("{VARIABLE} is {wanted:?}, but must be one of {names}")
            })
    }
}
