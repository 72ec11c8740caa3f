//! What each kind of thread may not do kills the process. Each case runs in a
//! process of its own, which is this test program started again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use vmm::memory::GuestRam;
use vmm::seccomp::{self, ThreadKind};
use vmm::sys;

const CASE: &str = "JOEY_SECCOMP_CASE";

const KINDS: [&str; 7] = ["vcpu", "cpus", "memory", "devices", "disk", "volumes", "fs"];

/// Runs one case of [`child`].
fn run(case: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(CASE, case)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap()
}

fn kind(name: &str) -> ThreadKind {
    match name {
        "vcpu" => ThreadKind::Vcpu,
        "cpus" => ThreadKind::Cpus,
        "memory" => ThreadKind::Memory,
        "devices" => ThreadKind::Devices,
        "disk" => ThreadKind::Disk,
        "volumes" => ThreadKind::Volumes,
        "fs" => ThreadKind::Fs,
        other => panic!("unknown kind {other}"),
    }
}

#[test]
#[ignore = "one case, started by the other tests"]
fn child() {
    let case = std::env::var(CASE).expect("a case");
    let (name, deed) = case.split_once(' ').expect("kind and deed");
    let ram = GuestRam::allocate(1 << 20).expect("memory");
    seccomp::install(kind(name)).expect("a filter");
    match deed {
        "nothing" => {}
        "allocate" => drop(vec![1u8; 1 << 20]),
        "confine" => seccomp::install(ThreadKind::Vcpu).expect("a filter"),
        "open" => drop(std::fs::File::open("/dev/null")),
        "socket" => drop(std::os::unix::net::UnixDatagram::unbound()),
        "thread" => drop(std::thread::Builder::new().spawn(|| {})),
        "execute" => drop(Command::new("/bin/true").spawn()),
        "random" => drop(sys::random(&mut [0; 8])),
        "discard" => ram.discard(0, 4096).expect("memory"),
        "parent" => drop(nix::unistd::getppid()),
        other => panic!("unknown deed {other}"),
    }
    sys::exit_now(0);
}

#[test]
fn what_a_thread_needs_is_allowed() {
    for kind in KINDS {
        for deed in ["nothing", "allocate"] {
            let status = run(&format!("{kind} {deed}"));
            assert!(status.success(), "{kind} {deed}: {status}");
        }
    }
    assert!(run("cpus confine").success());
    assert!(run("cpus thread").success());
    assert!(run("memory discard").success());
    assert!(run("devices random").success());
}

#[test]
fn what_it_does_not_need_kills_the_process() {
    for kind in KINDS {
        for deed in ["open", "socket", "thread", "execute", "parent", "discard"] {
            if matches!((kind, deed), ("cpus", "thread") | ("memory", "discard")) {
                continue;
            }
            let status = run(&format!("{kind} {deed}"));
            assert_eq!(
                status.signal(),
                Some(libc::SIGSYS),
                "{kind} {deed}: {status}"
            );
        }
    }
    assert_eq!(run("vcpu random").signal(), Some(libc::SIGSYS));
    assert_eq!(run("disk random").signal(), Some(libc::SIGSYS));
    assert_eq!(run("vcpu confine").signal(), Some(libc::SIGSYS));
}
