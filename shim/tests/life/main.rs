//! The life of pods against a containerd and a VMM that are played by this
//! program: it starts the real shim, which starts this program again as its VMM,
//! with an agent in the same process. Pods on the host's kernel are real. Needs root, cgroup v2 and /dev/kvm (which
//! the played VMM does not use); everything else is in a mount namespace.

mod containerd;
mod pods;
mod shared;
mod vmm;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A test by its name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some("joey-vmm") {
        vmm::run();
        return ExitCode::SUCCESS;
    }
    // cargo hands over what the user wants to see; flags are for its own harness.
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    own_directories();
    let mut failed = 0;
    for (name, test) in pods::TESTS.into_iter().chain(shared::TESTS) {
        if !name.contains(&filter) {
            continue;
        }
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        println!("{failed} failed");
        ExitCode::FAILURE
    }
}

/// A /run and a /sys/fs/cgroup that nobody else sees.
fn own_directories() {
    unshare(CloneFlags::CLONE_NEWNS).expect("run the tests as root");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    for (kind, target) in [("tmpfs", "/run"), ("cgroup2", "/sys/fs/cgroup")] {
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap_or_else(|error| panic!("mounting {kind} on {target}: {error}"));
    }
}
