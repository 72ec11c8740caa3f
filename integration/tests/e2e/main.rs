//! End to end: containerd, crictl and a registry in the test host drive pods
//! through the `joey` handler. After all of them the leak checker looks for what
//! they left; it must come last, hence the harness of our own.

mod bad_input;
mod cri;
mod exec;
mod leaks;
mod life;
mod network;
mod pods;
mod resources;
mod ports;
mod storage;
mod streams;
mod volumes;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    // The test host has one CPU, emulated where KVM is missing: side by side the
    // tests would only wait for each other.
    arguments.test_threads.get_or_insert(1);
    let trials = [
        pods::trials(),
        exec::trials(),
        streams::trials(),
        ports::trials(),
        storage::trials(),
        network::trials(),
        volumes::trials(),
        life::trials(),
        resources::trials(),
    ];
    let before = (!arguments.list).then(|| {
        cri::prepare();
        leaks::snapshot()
    });
    let together = libtest_mimic::run(&arguments, trials.into_iter().flatten().collect());
    // These change the host under everybody's feet, so they never run side by side.
    arguments.test_threads = Some(1);
    let alone = [resources::alone(), bad_input::trials()];
    let alone = libtest_mimic::run(&arguments, alone.into_iter().flatten().collect());
    let last = libtest_mimic::run(&arguments, leaks::trials(before));
    if [together, alone, last]
        .iter()
        .any(libtest_mimic::Conclusion::has_failed)
    {
        std::process::exit(101);
    }
}

/// A named test that fails by panicking.
fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).map_err(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Failed::from(message.unwrap_or_else(|| "panicked".to_owned()))
        })
    })
}
