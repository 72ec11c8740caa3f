//! The combinations of containerd, its ways to drive a sandbox, and what pods run on, in
//! which the end-to-end tests run. One run of the tests is one combination.

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
    /// How its pods come about.
    pub way: Way,
}

/// How a handler's pods come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In a microVM each, by joey's shim.
    Vm,
    /// On the host's kernel, by joey's shim.
    SharedKernel,
    /// On the host's kernel, by containerd's shim for runc, which runs joey's command.
    Command,
}

const fn combination(
    name: &'static str,
    containerd: &'static str,
    handler: &'static str,
    way: Way,
) -> Combination {
    Combination {
        name,
        containerd,
        handler,
        way,
    }
}

/// All of them.
pub const ALL: [Combination; 8] = [
    combination("2.1-podsandbox", "", "joey", Way::Vm),
    combination("2.1-shim", "", "joey-shim", Way::Vm),
    combination("1.7-podsandbox", "1.7", "joey", Way::Vm),
    combination("2.1-joey-runc", "", "joey-runc", Way::SharedKernel),
    combination(
        "2.1-joey-runc-shim",
        "",
        "joey-runc-shim",
        Way::SharedKernel,
    ),
    combination("1.7-joey-runc", "1.7", "joey-runc", Way::SharedKernel),
    combination("2.1-runc-joey", "", "runc-joey", Way::Command),
    combination("1.7-runc-joey", "1.7", "runc-joey", Way::Command),
];

/// Whether the pods of a runtime handler have a VM each.
pub fn has_vm(handler: &str) -> bool {
    ALL.iter()
        .any(|combination| combination.handler == handler && combination.has_vm())
}

impl Combination {
    /// Whether it is containerd 1.7, which can do less than the newer ones.
    pub fn is_containerd_1_7(&self) -> bool {
        self.containerd == "1.7"
    }

    /// Whether its pods have a VM each.
    pub fn has_vm(&self) -> bool {
        self.way == Way::Vm
    }

    /// Whether the sandbox is made by containerd's Sandbox API.
    pub fn is_by_sandbox_api(&self) -> bool {
        self.handler.ends_with("-shim")
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
