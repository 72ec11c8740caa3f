//! End to end: containerd, crictl and a registry in the test host drive pods
//! through joey's handler, in one of the combinations of containerd, its ways to
//! drive a sandbox, and what pods run on ([`integration::combination`]). After all of
//! them the leak checker looks for what they left; it must come last, hence the harness
//! of our own.

mod bad_input;
mod checkpoint;
mod cri;
mod exec;
mod faults;
mod jail;
mod leaks;
mod life;
mod network;
mod pause;
mod pods;
mod ports;
mod resources;
mod restart;
mod rootless;
mod saved;
mod shared;
mod storage;
mod streams;
mod templates;
mod volumes;

use integration::combination::{Combination, Way};
use libtest_mimic::{Arguments, Failed, Trial};

/// Says how much of the suite runs: `brief`, `usual` (without it) or `whole`.
const EXTENT: &str = "JOEY_E2E_EXTENT";

/// Says which part of that: `together`, the tests that could run side by side, or `alone`,
/// those that change the host under everybody's feet. Both without it.
const PART: &str = "JOEY_E2E_PART";

/// What `brief` leaves: whatever depends on how containerd drives a sandbox.
const BRIEF: [&str; 14] = [
    "pods::whole_life",
    "pods::two_containers",
    "pods::stop_asks",
    "resources::the_vm_is_as_large",
    "saved::connections_go_on",
    "exec::exit_codes",
    "streams::stdout_and_stderr",
    "network::pods_and_host",
    "network::dns_of_the_pod",
    "restart::",
    "bad_input::host_network",
    "shared::",
    "rootless::",
    "checkpoint::",
];

/// The combination that has the tests of joey's command line alone, without containerd: they are
/// the same in all.
const WITH_COMMAND_LINE: &str = "2.1-joey-runc";

/// What only `whole` has: bulk, which takes many minutes where processors are emulated.
const BULK: [&str; 4] = [
    "templates::a_hundred",
    "streams::a_hundred_megabytes",
    "streams::three_hundred_execs",
    "ports::a_hundred_megabytes",
];

/// Tests of the VM itself, which say nothing where pods run on the host's kernel, and what
/// of it they are about.
const OF_THE_VM: [(&str, &str); 36] = [
    ("templates::", "the VM's template"),
    ("jail::", "the VMM"),
    ("pause::", "the VM"),
    ("saved::", "the VM"),
    ("pods::kernel_is_the_guests", "the guest's kernel"),
    ("storage::host_holds_one_copy", "images in the VM's window"),
    ("network::guest_has", "the network as the guest is told it"),
    ("ports::many_at_once", "the shim's forwarder"),
    ("ports::a_port_that_nobody", "the shim's forwarder"),
    ("volumes::nothing_of_the_host", "virtiofsd's confinement"),
    ("volumes::block_device", "the VM's spare disks"),
    ("volumes::empty_dir_on_disk", "the VM's scratch disk"),
    ("volumes::killed_virtiofsd", "virtiofsd"),
    ("life::killed_vmm", "the VMM"),
    ("life::hung_guest", "a guest that hangs"),
    ("life::guest_", "a guest that dies"),
    ("life::remains_are_removed", "joey's records of VMs"),
    ("life::node_tools_tell", "joey's records of VMs"),
    ("life::only_the_host_reaches", "the guest's agent"),
    ("life::console_", "the guest's agent"),
    ("resources::oom_of_the_whole_guest", "the guest's memory"),
    ("resources::oom_of_the_pod_on_the_host", "the VMM"),
    ("resources::the_pods_cgroup_pays", "the VMM"),
    ("resources::limits_above_the_hosts", "the VM's size"),
    ("resources::the_vm_is_as_large", "the VM's size"),
    ("resources::vms_grow", "the VM's size"),
    ("resources::a_vm_grows", "the VM's size"),
    ("resources::freed_memory", "the guest's memory"),
    ("resources::a_full_scratch_disk", "the VM's scratch disk"),
    ("bad_input::no_kvm", "KVM"),
    ("bad_input::kernel_is_", "the guest's kernel"),
    ("bad_input::user_namespaces_are_forbidden", "the VMM"),
    ("bad_input::kvm_that_cannot", "KVM"),
    ("bad_input::corrupt_blob", "images in the VM's window"),
    ("bad_input::virtiofsd_is_missing", "virtiofsd"),
    ("bad_input::unknown_config_key", "the VM's configuration"),
];

/// What a pod in a VM is refused, and others are given.
const REFUSED_IN_A_VM: [&str; 2] = [
    "bad_input::host_network",
    "bad_input::volumes_that_cannot_be",
];

/// Why a test is not for this run's combination.
fn is_not_for(trial: &Trial, combination: &Combination) -> Option<String> {
    let starts = |name: &str| trial.name().starts_with(name);
    let command_line = starts("rootless::") || starts("checkpoint::");
    if command_line && combination.name != WITH_COMMAND_LINE {
        return Some(format!(
            "{WITH_COMMAND_LINE} has it, containerd is not in it"
        ));
    }
    if starts("pause::") && combination.name.ends_with("-shim") {
        return Some("with the Sandbox API containerd has no task of the sandbox's".to_owned());
    }
    if combination.has_vm() {
        return starts("shared::").then(|| "it is about pods on the host's kernel".to_owned());
    }
    if REFUSED_IN_A_VM.iter().any(|name| starts(name)) {
        return Some("it is about what a VM cannot have".to_owned());
    }
    // A containerd that is started anew deletes a task that lists no process (ADR 12).
    if combination.way == Way::Command && starts("restart::an_exit_meanwhile") {
        return Some("containerd's own shim lists no process that has ended".to_owned());
    }
    if combination.way == Way::Command && starts("streams::three_hundred_execs") {
        return Some("it is about joey's shim".to_owned());
    }
    // containerd has the first bundle of a killed shim deleted, and forgets the others.
    let kills_shims = starts("life::killed_shim") || starts("faults::");
    if combination.way == Way::Command && kills_shims {
        return Some(
            "containerd's own shim leaves cgroups when it is killed, with runc too".into(),
        );
    }
    let found = OF_THE_VM.iter().find(|(name, _)| starts(name));
    found.map(|(_, what)| format!("it is about {what}"))
}

/// Leaves out what is not for this run's combination, and says why.
fn fitting(trial: Trial) -> Trial {
    match is_not_for(&trial, Combination::of_this_run()) {
        Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
        None => trial,
    }
}

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

/// Whether this run has a part of the suite.
fn has_part(part: &str) -> bool {
    match std::env::var(PART).as_deref() {
        Err(_) => true,
        Ok(only @ ("together" | "alone")) => only == part,
        Ok(other) => panic!("{PART} is {other:?}, but must be together or alone"),
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    // The test host has one CPU, emulated where KVM is missing: side by side the
    // tests would only wait for each other.
    arguments.test_threads.get_or_insert(1);
    let chosen = |part, trials: Vec<Vec<Trial>>| {
        let chosen = trials.into_iter().flatten().filter(is_chosen);
        chosen.filter(|_| has_part(part)).map(fitting).collect()
    };
    let together = vec![
        pods::trials(),
        exec::trials(),
        streams::trials(),
        ports::trials(),
        storage::trials(),
        network::trials(),
        volumes::trials(),
        life::trials(),
        jail::trials(),
        pause::trials(),
        saved::trials(),
        resources::trials(),
        shared::trials(),
        checkpoint::trials(),
        rootless::trials(),
    ];
    let before = (!arguments.list).then(|| {
        cri::prepare();
        leaks::at_rest()
    });
    let together = libtest_mimic::run(&arguments, chosen("together", together));
    arguments.test_threads = Some(1);
    let alone = vec![
        resources::alone(),
        life::alone(),
        templates::alone(),
        restart::trials(),
        bad_input::trials(),
        faults::trials(),
    ];
    let alone = libtest_mimic::run(&arguments, chosen("alone", alone));
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
