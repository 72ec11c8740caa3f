//! The process and its client, as far as they go without hardware virtualization.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use vmm::{BootFiles, ClientError, Offloads, Place, RestoreFiles, VmSpec, Vmm};

fn spawn() -> Vmm {
    let binary = Path::new(env!("CARGO_BIN_EXE_joey-vmm"));
    Vmm::spawn(binary, Place::default(), None).unwrap()
}

fn spec() -> VmSpec {
    VmSpec {
        vcpus: 1,
        memory_mib: 64,
        hotplug_mib: 0,
        offloads: Offloads::Tcp,
        uid: 65534,
        gid: 65534,
        console: false,
    }
}

/// A boot that names /dev/null as every file.
fn null_files(null: &File) -> BootFiles<BorrowedFd<'_>> {
    BootFiles {
        kvm: null.as_fd(),
        kernel: null.as_fd(),
        initramfs: null.as_fd(),
        serial: None,
    }
}

fn null() -> File {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    null.unwrap()
}

/// The refusal's text.
fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn without_a_vm_only_boot_and_shutdown_make_sense() {
    let mut vmm = spawn();
    assert!(refusal(vmm.stats()).contains("send boot or restore first"));
    assert!(refusal(vmm.unmap_image(0)).contains("send boot or restore first"));
    vmm.shutdown().unwrap();
    vmm.wait().unwrap();
    // Its events have ended, and nothing was said.
    let mut text = String::new();
    vmm.events().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    assert!(matches!(vmm.stats(), Err(ClientError::Died)));
}

#[test]
fn a_bad_spec_is_refused_and_a_good_one_may_follow() {
    let null = null();
    let mut vmm = spawn();
    let many = VmSpec {
        vcpus: 33,
        ..spec()
    };
    let text = refusal(vmm.boot(&many, null_files(&null)));
    assert!(text.contains("33 vCPUs"), "{text}");
    let console = VmSpec {
        console: true,
        ..spec()
    };
    let text = refusal(vmm.boot(&console, null_files(&null)));
    assert!(text.contains("pass a serial file with console"), "{text}");
    let text = refusal(vmm.boot(&spec(), null_files(&null)));
    assert!(text.contains("is it /dev/kvm?"), "{text}");
    vmm.wait().unwrap();
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let mut vmm = spawn();
    let null = null();
    let files = RestoreFiles {
        kvm: null.as_fd(),
        kernel: null.as_fd(),
        memory: null.as_fd(),
        state: null.as_fd(),
        changes: None,
    };
    let text = refusal(vmm.restore(&spec(), files, false));
    assert!(text.contains("no snapshot of joey-vmm"), "{text}");
    vmm.wait().unwrap();
}

#[test]
fn the_process_ends_with_its_owner() {
    let vmm = spawn();
    let pid = nix::unistd::Pid::from_raw(vmm.pid() as i32);
    drop(vmm);
    assert_eq!(
        nix::sys::signal::kill(pid, None),
        Err(nix::errno::Errno::ESRCH)
    );
}

#[test]
fn a_killed_process_is_noticed() {
    let mut vmm = spawn();
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    vmm.kill().unwrap();
    assert!(matches!(vmm.stats(), Err(ClientError::Died)));
}

#[test]
fn a_process_that_hangs_gives_an_error() {
    let mut vmm = spawn();
    vmm.set_timeout(Duration::from_millis(1)).unwrap();
    let pid = nix::unistd::Pid::from_raw(vmm.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    assert!(matches!(vmm.stats(), Err(ClientError::Hangs)));
    assert!(matches!(vmm.stats(), Err(ClientError::Channel(_))));
}

#[test]
fn a_question_that_was_given_up_does_no_harm() {
    let mut vmm = spawn();
    let pid = nix::unistd::Pid::from_raw(vmm.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    for _ in 0..3 {
        let answer = vmm.stats_within(Duration::from_millis(1));
        assert!(matches!(answer, Err(ClientError::Hangs)));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
    // Each answer belongs to its question again.
    let null = null();
    let many = VmSpec {
        vcpus: 33,
        ..spec()
    };
    let said = refusal(vmm.boot(&many, null_files(&null)));
    assert!(said.contains("33 vCPUs"), "{said}");
    assert!(refusal(vmm.stats()).contains("send boot or restore first"));
}

#[test]
fn it_is_not_started_by_hand() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_joey-vmm"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("containerd-shim-joey-v2"), "{text}");
}
