//! End to end: containerd, crictl and a registry in the test host drive pods
//! through joey's handler, in one of the combinations of containerd and its ways to
//! drive a sandbox ([`integration::combination`]). After all of them the leak checker looks for what
//! they left; it must come last, hence the harness of our own.

mod bad_input;
mod cri;
mod exec;
mod faults;
mod leaks;
mod life;
mod network;
mod pods;
mod ports;
mod resources;
mod restart;
mod storage;
mod streams;
mod volumes;

use libtest_mimic::{Arguments, Failed, Trial};

/// Says how much of the suite runs: `brief`, `usual` (without it) or `whole`.
const EXTENT: &str = "JOEY_E2E_EXTENT";

/// What `brief` leaves: whatever depends on how containerd drives a sandbox.
const BRIEF: [&str; 10] = [
    "pods::whole_life",
    "pods::two_containers",
    "pods::stop_asks",
    "resources::the_vm_is_as_large",
    "exec::exit_codes",
    "streams::stdout_and_stderr",
    "network::pods_and_host",
    "network::dns_of_the_pod",
    "restart::",
    "bad_input::host_network",
];

/// What only `whole` has: bulk, which takes many minutes where processors are emulated.
const BULK: [&str; 3] = [
    "streams::a_hundred_megabytes",
    "streams::three_hundred_execs",
    "ports::a_hundred_megabytes",
];

/// Whether a test is of the extent that this run has.
fn is_chosen(trial: &Trial) -> bool {
    let is_of = |names: &[&str]| names.iter().any(|name| trial.name().starts_with(name));
    let extent = std::env::var(EXTENT).unwrap_or_else(|_| "usual".into());
    match extent.as_str() {
        "brief" => is_of(&BRIEF),
        "usual" => !is_of(&BULK),
        "whole" => true,
        other => panic!("{EXTENT} is {other:?}, but must be brief, usual or whole"),
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    // The test host has one CPU, emulated where KVM is missing: side by side the
    // tests would only wait for each other.
    arguments.test_threads.get_or_insert(1);
    let chosen = |trials: Vec<Trial>| trials.into_iter().filter(is_chosen).collect();
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
    let together = libtest_mimic::run(&arguments, chosen(trials.into_iter().flatten().collect()));
    // These change the host under everybody's feet, so they never run side by side.
    arguments.test_threads = Some(1);
    let alone = [
        resources::alone(),
        life::alone(),
        restart::trials(),
        bad_input::trials(),
        faults::trials(),
    ];
    let alone = libtest_mimic::run(&arguments, chosen(alone.into_iter().flatten().collect()));
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
