//! What a VMM cannot reach that was taken over. Each attempt is made three times: by a free
//! process of root, where it must succeed, or the test would show nothing; by a process in the
//! VMM's jail without filters of system calls, where the layer that the attempt names must stop
//! it; and with the filter of each kind of thread, which must kill the process.
//!
//! The compromised VMM and the free process are this program, started again.

mod attempts;
mod compromised;

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use vmm::{BootFiles, ClientError, Offloads, Place, VmSpec, Vmm};

use attempts::{ATTEMPTS, Attempt, Layer, Target, call};
use compromised::{KINDS, Order};

/// Asks this program to make the attempt that is named, with the target after it, as it is.
const FREE: &str = "free";

/// User and group of the compromised VMM.
const USER: u32 = 64999;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match &words[..] {
        // As the client starts a VMM.
        [name] if name == "joey-vmm" => compromised::live(),
        [_, verb, attempt, target] if verb == FREE => free(attempt, target),
        _ => {}
    }
    let host = Arc::new(Host::new());
    let mut trials = vec![Trial::test("seen_from_the_host", {
        let host = host.clone();
        move || {
            seen_from_the_host(&host);
            Ok(())
        }
    })];
    trials.extend(ATTEMPTS.iter().map(|attempt| {
        let host = host.clone();
        Trial::test(attempt.name.replace(' ', "_"), move || {
            reaches_when_free(&host, attempt);
            is_stopped_by_its_layer(&host, attempt);
            is_killed_by_the_filters(&host, attempt);
            Ok(())
        })
    }));
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    drop(host);
    conclusion.exit();
}

/// Makes an attempt without any jail.
fn free(attempt: &str, target: &str) -> ! {
    let mut target: Target = serde_json::from_str(target).expect("a target");
    let root = File::open("/").expect("the root");
    let mounts = File::open("/proc/self/ns/mnt").expect("a namespace");
    let pidfd = pidfd(target.owner).expect("a pidfd");
    target.give(&root, &mounts, &pidfd);
    let outcome = compromised::attempt(attempt, &target);
    println!("{}", compromised::describe(&outcome));
    std::process::exit(0);
}

fn pidfd(pid: i32) -> std::io::Result<OwnedFd> {
    let number = call(libc::SYS_pidfd_open, [pid as usize, 0, 0, 0, 0])?;
    vmm::sys::inherited(number as i32)
}

/// What there is to be reached, until dropped.
struct Host {
    directory: tempfile::TempDir,
    tcp: TcpListener,
    _abstract: UnixListener,
    _path: UnixListener,
    neighbour: Vmm,
    network: OwnedFd,
    memory: i32,
}

/// A name that no other run of the test has.
fn unique() -> String {
    format!("joey-jail-test-{}", std::process::id())
}

fn memory_key() -> i32 {
    i32::try_from(std::process::id()).expect("a pid") | 0x4a00_0000
}

impl Host {
    fn new() -> Self {
        // As wide open as it can be, so that no permission hides what a layer does.
        let directory = tempfile::tempdir().expect("a directory");
        let open_to_all = |path: &Path| {
            fs::set_permissions(path, Permissions::from_mode(0o777)).expect("permissions");
        };
        open_to_all(directory.path());
        let listening = directory.path().join("listening");
        let path = UnixListener::bind(&listening).expect("a socket");
        open_to_all(&listening);
        let name = SocketAddr::from_abstract_name(unique()).expect("a name");
        add_key(&unique()).expect("a key");
        let network = vmm::place::empty_network().expect("a network");
        let place = Place {
            cgroup: None,
            network: Some(network.as_fd()),
            lease: None,
        };
        let binary = Path::new(env!("CARGO_BIN_EXE_joey-vmm"));
        Self {
            directory,
            tcp: TcpListener::bind(("127.0.0.1", 0)).expect("a port"),
            _abstract: UnixListener::bind_addr(&name).expect("an abstract socket"),
            _path: path,
            neighbour: Vmm::spawn(binary, place, None).expect("another VMM"),
            network,
            memory: shared_memory(memory_key()).expect("shared memory"),
        }
    }

    fn target(&self) -> Target {
        Target {
            owner: std::process::id() as i32,
            neighbour: self.neighbour.pid() as i32,
            port: self.tcp.local_addr().unwrap().port(),
            abstract_socket: unique(),
            directory: self.directory.path().display().to_string(),
            memory_key: memory_key(),
            key: unique(),
            hostname: nix::unistd::gethostname().unwrap().into_string().unwrap(),
            root: -1,
            mounts: -1,
            pidfd: -1,
            known: Vec::new(),
        }
    }

    /// Starts a compromised VMM that has an order and, by mistake of its owner, descriptors
    /// that lead out.
    fn give_order(&self, attempt: &str, kind: Option<&str>) -> (Vmm, String) {
        let place = Place {
            cgroup: None,
            network: Some(self.network.as_fd()),
            lease: None,
        };
        let mut vmm = Vmm::spawn(&own_program(), place, None).unwrap();
        let order = Order {
            attempt: attempt.to_owned(),
            kind: kind.map(str::to_owned),
            target: self.target(),
        };
        // Where a real owner gives /dev/kvm.
        let mut text = tempfile::tempfile().unwrap();
        serde_json::to_writer(&mut text, &order).unwrap();
        let (root, mounts) = (
            File::open("/").unwrap(),
            File::open("/proc/self/ns/mnt").unwrap(),
        );
        let pidfd = pidfd(order.target.owner).unwrap();
        let files: BootFiles<BorrowedFd<'_>> = BootFiles {
            kvm: text.as_fd(),
            kernel: root.as_fd(),
            initramfs: mounts.as_fd(),
            serial: Some(pidfd.as_fd()),
        };
        let spec = VmSpec {
            vcpus: 1,
            memory_mib: 64,
            hotplug_mib: 0,
            offloads: Offloads::Tcp,
            uid: USER,
            gid: USER,
            console: true,
        };
        let told = match vmm.boot(&spec, files) {
            Err(ClientError::Refused(told)) => told,
            Err(ClientError::Died) => "died".to_owned(),
            other => panic!("{attempt}: {other:?}"),
        };
        (vmm, told)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The kernel keeps it otherwise.
        let remove = [self.memory as usize, libc::IPC_RMID as usize, 0, 0, 0];
        let _ = call(libc::SYS_shmctl, remove);
    }
}

fn own_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A key in the session's keyring, which every child inherits.
fn add_key(name: &str) -> std::io::Result<i64> {
    const SESSION: i32 = -3;
    const JOIN_SESSION: usize = 1;
    // One of its own: the key goes with the test.
    call(libc::SYS_keyctl, [JOIN_SESSION, 0, 0, 0, 0])?;
    let name = std::ffi::CString::new(name)?;
    let (kind, value) = (c"user".as_ptr() as usize, c"x".as_ptr() as usize);
    let name = name.as_ptr() as usize;
    call(libc::SYS_add_key, [kind, name, value, 1, SESSION as usize])
}

/// A segment that everybody may read and write.
fn shared_memory(key: i32) -> std::io::Result<i32> {
    let flags = (libc::IPC_CREAT | 0o666) as usize;
    call(libc::SYS_shmget, [key as usize, 4096, flags, 0, 0]).map(|id| id as i32)
}

/// The positive control.
fn reaches_when_free(host: &Host, attempt: &Attempt) {
    let target = serde_json::to_string(&host.target()).unwrap();
    let output = Command::new(own_program())
        .args([FREE, attempt.name, &target])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    if attempt.anywhere {
        assert!(told.starts_with("reached"), "{}: {output:?}", attempt.name);
    } else if !told.starts_with("reached") {
        eprintln!("{}: not possible for root here: {told}", attempt.name);
    }
}

fn is_stopped_by_its_layer(host: &Host, attempt: &Attempt) {
    let (_vmm, told) = host.give_order(attempt.name, None);
    let without_landlock = vmm::landlock::version().unwrap().is_none();
    let expected = match attempt.layer {
        Layer::FiltersAlone if !attempt.anywhere => return,
        Layer::FiltersAlone => "reached",
        Layer::Landlock if without_landlock => "reached",
        _ => "stopped",
    };
    assert!(
        told.starts_with(expected),
        "{}, by {:?}: {told}",
        attempt.name,
        attempt.layer
    );
}

fn is_killed_by_the_filters(host: &Host, attempt: &Attempt) {
    for (kind, _) in KINDS {
        let (vmm, told) = host.give_order(attempt.name, Some(kind));
        assert_eq!(told, "died", "{} as {kind}", attempt.name);
        let id = Id::PIDFd(vmm.pidfd());
        let status = waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(
            matches!(
                status,
                WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)
            ),
            "{} as {kind}: {status:?}",
            attempt.name
        );
    }
}

/// What /proc tells of it, and that its owner can still end it.
fn seen_from_the_host(host: &Host) {
    let (vmm, told) = host.give_order(compromised::LINGER, Some("devices"));
    assert_eq!(told, "reached: locked up");
    let of = |file: &str| PathBuf::from(format!("/proc/{}/{file}", vmm.pid()));
    let text = |file: &str| fs::read_to_string(of(file)).unwrap();
    let status = text("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().collect::<Vec<_>>()
    };
    let user = USER.to_string();
    assert_eq!(field("Uid:"), [user.as_str(); 4]);
    assert_eq!(field("Gid:"), [user.as_str(); 4]);
    assert!(field("Groups:").is_empty());
    assert_eq!(field("NSpid:").last(), Some(&"1"));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);

    for map in ["uid_map", "gid_map"] {
        let words: Vec<_> = text(map).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, [user.as_str(), user.as_str(), "1"]);
    }
    assert_eq!(text("setgroups"), "deny\n");
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "user"] {
        let link = |path: PathBuf| fs::read_link(path).unwrap();
        let theirs = link(of(&format!("ns/{namespace}")));
        let ours = link(PathBuf::from(format!("/proc/self/ns/{namespace}")));
        assert_ne!(theirs, ours, "{namespace}");
    }
    assert_eq!(fs::read_dir(of("root")).unwrap().count(), 0);
    assert_eq!(text("mountinfo").lines().count(), 1);
    // Of the real one these are messages, sockets and the VM's files.
    assert_eq!(fs::read_dir(of("fd")).unwrap().count(), 6 + 4);
    assert!(text("limits").lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.starts_with(&["Max", "pending", "signals", "0", "0"])
    }));

    vmm.kill().unwrap();
    vmm.wait().unwrap();
    assert!(!of("status").exists());
}
