//! What arbitrary code in a VMM process would try. Each attempt is one function, which
//! says what it reached, or which error stopped it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::Command;
use std::ptr;

use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, Uid, chroot, sethostname, setresuid};

/// What the attacker knows of the host: how, does not matter.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Target {
    /// A process of the host's root: the VMM's owner.
    pub owner: i32,
    /// Another VMM.
    pub neighbour: i32,
    /// A port of the loopback interface on which a server listens.
    pub port: u16,
    /// The name of an abstract socket on which another does.
    pub abstract_socket: String,
    /// A directory that everybody may write to, with a socket `listening` in it for all.
    pub directory: String,
    /// The key of a segment of System V's shared memory for everybody.
    pub memory_key: i32,
    /// The description of a key in the session's keyring.
    pub key: String,
    /// The host's name.
    pub hostname: String,
    /// A descriptor of the host's root directory, handed over by mistake.
    pub root: RawFd,
    /// One of the host's mount namespace.
    pub mounts: RawFd,
    /// One of the process that owns the VMM.
    pub pidfd: RawFd,
    /// All descriptors that the process is to have.
    pub known: Vec<RawFd>,
}

impl Target {
    /// Notes what the process was given by mistake.
    pub fn give(&mut self, root: &impl AsRawFd, mounts: &impl AsRawFd, pidfd: &impl AsRawFd) {
        self.root = root.as_raw_fd();
        self.mounts = mounts.as_raw_fd();
        self.pidfd = pidfd.as_raw_fd();
    }
}

/// What an attempt reached, in words.
pub type Reached = io::Result<String>;

/// What stops an attempt, were it not for the filters of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The empty root in a mount namespace of its own.
    Root,
    /// The pid namespace.
    Pids,
    /// The network namespace.
    Network,
    /// The IPC namespace.
    Ipc,
    /// The namespace of the host's name.
    Uts,
    /// The user namespace.
    User,
    /// No capabilities, no new privileges, an own user id.
    Privileges,
    /// An own keyring.
    Keys,
    /// Landlock, which older kernels lack.
    Landlock,
    /// Limits of resources.
    Limits,
    /// The descriptors were closed before the program ran.
    Descriptors,
    /// Nothing: the filters do alone. What is reached then belongs to the process itself, or
    /// is bounded by its cgroup.
    FiltersAlone,
}

/// One attempt.
pub struct Attempt {
    /// Its name.
    pub name: &'static str,
    /// What stops it below the filters.
    pub layer: Layer,
    /// Whether root of any host can do it; some hosts lack a capability or a part.
    pub anywhere: bool,
    /// Does it.
    pub run: fn(&Target) -> Reached,
}

const fn attempt(name: &'static str, layer: Layer, run: fn(&Target) -> Reached) -> Attempt {
    Attempt {
        name,
        layer,
        anywhere: true,
        run,
    }
}

/// One that root of some hosts cannot do either.
const fn on_some(name: &'static str, layer: Layer, run: fn(&Target) -> Reached) -> Attempt {
    Attempt {
        name,
        layer,
        anywhere: false,
        run,
    }
}

pub const ATTEMPTS: &[Attempt] = &[
    // Files.
    attempt("read a secret", Layer::Root, |_| read("/etc/shadow")),
    attempt("read a file for all", Layer::Root, |_| read("/etc/passwd")),
    attempt("read its own memory map", Layer::Root, |_| {
        read("/proc/self/maps")
    }),
    attempt("list the root directory", Layer::Root, |_| list("/")),
    attempt("write where all may", Layer::Root, |target| {
        write(&format!("{}/new", target.directory))
    }),
    attempt("write to its root", Layer::Root, |_| {
        let path = "/joey-jail-test";
        let written = write(path);
        // Where the test runs free.
        let _ = fs::remove_file(path);
        written
    }),
    attempt("write to the kernel's log", Layer::Root, |_| {
        OpenOptions::new().write(true).open("/dev/kmsg")?;
        reached("the log is open")
    }),
    attempt("change a sysctl", Layer::Root, |_| {
        let path = "/proc/sys/kernel/hostname";
        OpenOptions::new().write(true).open(path)?;
        reached("a sysctl is open")
    }),
    on_some("open KVM once more", Layer::Root, |_| {
        OpenOptions::new().write(true).open("/dev/kvm")?;
        reached("/dev/kvm is open")
    }),
    attempt("execute a program", Layer::Root, |_| {
        let status = Command::new("/bin/true").status()?;
        reached(&format!("it ended with {status}"))
    }),
    attempt("read through a directory", Layer::Landlock, |target| {
        let root = borrowed(target.root);
        openat(root, "etc/passwd", OFlag::O_RDONLY, Mode::empty())?;
        reached("/etc/passwd is open")
    }),
    attempt("write through a directory", Layer::Landlock, |target| {
        let path = format!("{}/through", target.directory);
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
        let root = borrowed(target.root);
        openat(root, path.trim_start_matches('/'), flags, Mode::S_IRWXU)?;
        reached("a file is made")
    }),
    attempt("make a device", Layer::Privileges, |target| {
        nix::unistd::fchdir(borrowed(target.root))?;
        let path = format!("{}/null", target.directory);
        let path = Path::new(path.trim_start_matches('/'));
        mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3))?;
        reached("a device is made")
    }),
    attempt("mount", Layer::Privileges, |_| {
        // Only somebody who may mount hears that the file system is unknown.
        match mount(
            Some("x"),
            "/",
            Some("no-such"),
            MsFlags::empty(),
            None::<&str>,
        ) {
            Err(nix::errno::Errno::ENODEV) => reached("mounting is allowed"),
            other => Ok(format!("{:?}", other?)),
        }
    }),
    attempt(
        "change the root by a descriptor",
        Layer::Privileges,
        |target| {
            nix::unistd::fchdir(borrowed(target.root))?;
            chroot(".")?;
            read("/etc/passwd")
        },
    ),
    attempt("open a file by its handle", Layer::Privileges, |target| {
        // Only somebody who may hears that the handle is of no kind.
        let handle = [8_u32, 0, 0, 0];
        match call(
            libc::SYS_open_by_handle_at,
            [target.root as usize, handle.as_ptr() as usize, 0, 0, 0],
        ) {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => reached("handles work"),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => reached("handles work"),
            other => Ok(format!("{}", other?)),
        }
    }),
    // Namespaces.
    attempt("make a mount namespace", Layer::Privileges, |_| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        reached("a mount namespace")
    }),
    attempt("gain rights in a user namespace", Layer::User, |_| {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        reached("a user namespace")
    }),
    attempt("join the host's mounts", Layer::Privileges, |target| {
        setns(borrowed(target.mounts), CloneFlags::CLONE_NEWNS)?;
        reached("the host's mounts")
    }),
    attempt("join the owner by its pidfd", Layer::Privileges, |target| {
        setns(borrowed(target.pidfd), CloneFlags::CLONE_NEWNS)?;
        reached("the owner's mounts")
    }),
    // Processes.
    attempt("see the owner", Layer::Pids, |target| exists(target.owner)),
    attempt("see another VMM", Layer::Pids, |target| {
        exists(target.neighbour)
    }),
    attempt("find any process", Layer::Pids, |_| {
        let own = std::process::id() as i32;
        match (1..4096).find(|pid| *pid != own && exists(*pid).is_ok()) {
            Some(pid) => reached(&format!("process {pid}")),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }),
    attempt("signal everybody", Layer::Pids, |_| exists(-1)),
    attempt("signal by a pidfd", Layer::Pids, |target| {
        vmm::sys::pidfd_signal(borrowed(target.pidfd), 0)?;
        reached("the owner")
    }),
    attempt("get a pidfd of the owner", Layer::Pids, |target| {
        call(libc::SYS_pidfd_open, [target.owner as usize, 0, 0, 0, 0])?;
        reached("a pidfd")
    }),
    attempt(
        "take a descriptor of the owner",
        Layer::Privileges,
        |target| {
            call(libc::SYS_pidfd_getfd, [target.pidfd as usize, 0, 0, 0, 0])?;
            reached("a descriptor")
        },
    ),
    attempt("trace another VMM", Layer::Pids, |target| {
        const SEIZE: usize = 0x4206;
        let who = target.neighbour as usize;
        call(libc::SYS_ptrace, [SEIZE, who, 0, 0, 0])?;
        reached("it is traced")
    }),
    attempt("read the owner's memory", Layer::Pids, |target| {
        let mut byte = [0_u8];
        let part = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let at = &raw const part as usize;
        // Its own address does not matter: only somebody who may read hears of a bad one.
        match call(
            libc::SYS_process_vm_readv,
            [target.owner as usize, at, 1, at, 1],
        ) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => reached("its memory"),
            other => Ok(format!("{}", other?)),
        }
    }),
    attempt("slow the owner down", Layer::Pids, |target| {
        let priority = [libc::PRIO_PROCESS as usize, target.owner as usize, 0, 0, 0];
        call(libc::SYS_setpriority, priority)?;
        reached("its priority")
    }),
    // Sockets.
    attempt("connect to an abstract socket", Layer::Network, |target| {
        let address = SocketAddr::from_abstract_name(&target.abstract_socket)?;
        UnixStream::connect_addr(&address)?;
        reached("a server")
    }),
    attempt("connect to a socket by path", Layer::Root, |target| {
        UnixStream::connect(format!("{}/listening", target.directory))?;
        reached("a server")
    }),
    attempt("connect by TCP", Layer::Network, |target| {
        TcpStream::connect(("127.0.0.1", target.port))?;
        reached("a server")
    }),
    attempt("send by UDP", Layer::Network, |target| {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        socket.send_to(b"x", ("127.0.0.1", target.port))?;
        reached("a packet is sent")
    }),
    attempt("make a raw socket", Layer::Privileges, |_| {
        raw_socket(AddressFamily::Inet, SockProtocol::Icmp)
    }),
    on_some("make a packet socket", Layer::Privileges, |_| {
        raw_socket(AddressFamily::Packet, SockProtocol::EthAll)
    }),
    // What is shared by all processes of a host.
    attempt("attach shared memory", Layer::Ipc, |target| {
        call(libc::SYS_shmget, [target.memory_key as usize, 1, 0, 0, 0])?;
        reached("the segment")
    }),
    attempt("make a message queue", Layer::Limits, |_| {
        let name = CString::new("joey-jail-test")?;
        let at = name.as_ptr() as usize;
        let flags = (libc::O_CREAT | libc::O_RDWR) as usize;
        call(libc::SYS_mq_open, [at, flags, 0o600, 0, 0])?;
        call(libc::SYS_mq_unlink, [at, 0, 0, 0, 0])?;
        reached("a queue")
    }),
    attempt("learn the host's name", Layer::Uts, |target| {
        let name = nix::unistd::gethostname()?;
        match name.to_str() {
            Some(name) if name == target.hostname => reached(name),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }),
    attempt("change the host's name", Layer::Privileges, |target| {
        sethostname(&target.hostname)?;
        reached("it is set")
    }),
    attempt("find a key of the session", Layer::Keys, |target| {
        let kind = CString::new("user")?;
        let name = CString::new(target.key.clone())?;
        let (kind, name) = (kind.as_ptr() as usize, name.as_ptr() as usize);
        call(libc::SYS_request_key, [kind, name, 0, 0, 0])?;
        reached("the key")
    }),
    // Rights.
    attempt("become root", Layer::User, |_| become_user(0)),
    attempt("become another VMM's user", Layer::User, |_| {
        become_user(64998)
    }),
    attempt("raise its capabilities", Layer::Privileges, |_| {
        let set = caps::CapSet::Effective;
        caps::raise(None, set, caps::Capability::CAP_NET_ADMIN).map_err(io::Error::other)?;
        reached("CAP_NET_ADMIN")
    }),
    on_some("raise a limit", Layer::Privileges, |_| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard + 1, hard + 1)?;
        reached("one descriptor more")
    }),
    attempt("lock memory", Layer::Limits, |_| {
        let page = vec![1_u8; 8192];
        call(libc::SYS_mlock, [page.as_ptr() as usize, 4096, 0, 0, 0])?;
        reached("a page")
    }),
    attempt("run before all others", Layer::Privileges, |_| {
        let own = [libc::PRIO_PROCESS as usize, 0, -5_i32 as usize, 0, 0];
        call(libc::SYS_setpriority, own)?;
        reached("a higher priority")
    }),
    // Parts of the kernel.
    on_some("load a kernel module", Layer::Privileges, |_| {
        // Only somebody who may hears that the module cannot be read.
        match call(libc::SYS_init_module, [0, 0, c"".as_ptr() as usize, 0, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => reached("it would be"),
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => reached("it would be"),
            other => Ok(format!("{}", other?)),
        }
    }),
    attempt("reboot", Layer::Privileges, |_| {
        // Only somebody who may hears that the magic numbers are wrong.
        match call(libc::SYS_reboot, [0, 0, 0, 0, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => reached("it may reboot"),
            other => Ok(format!("{}", other?)),
        }
    }),
    attempt("ask the kernel's log", Layer::Privileges, |_| {
        const SIZE_UNREAD: usize = 9;
        call(libc::SYS_syslog, [SIZE_UNREAD, 0, 0, 0, 0])?;
        reached("the log")
    }),
    on_some("reach ports of the machine", Layer::Privileges, |_| {
        call(libc::SYS_ioperm, [0x80, 1, 1, 0, 0])?;
        reached("a port")
    }),
    on_some("load a BPF program", Layer::Privileges, |_| load_bpf()),
    on_some("measure all processes", Layer::Privileges, |_| measure()),
    on_some("handle faults of the kernel", Layer::Privileges, |_| {
        call(libc::SYS_userfaultfd, [0; 5])?;
        reached("userfaultfd")
    }),
    on_some("use io_uring", Layer::FiltersAlone, |_| {
        let parameters = [0_u64; 15];
        let at = parameters.as_ptr() as usize;
        call(libc::SYS_io_uring_setup, [1, at, 0, 0, 0])?;
        reached("a ring")
    }),
    attempt("fork", Layer::FiltersAlone, |_| fork()),
    attempt("execute memory", Layer::FiltersAlone, |_| {
        let protection = (libc::PROT_READ | libc::PROT_EXEC) as usize;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
        // A sixth argument of zero: the offset.
        call(libc::SYS_mmap, [0, 4096, protection, flags, usize::MAX])?;
        reached("a page")
    }),
    attempt("find another descriptor", Layer::Descriptors, |target| {
        let is_open = |number: &RawFd| fcntl(borrowed(*number), FcntlArg::F_GETFD).is_ok();
        let others = (0..8192).filter(|number| !target.known.contains(number));
        if let Some(number) = others.into_iter().find(is_open) {
            return reached(&format!("descriptor {number}"));
        }
        Err(io::Error::from_raw_os_error(libc::EBADF))
    }),
];

fn reached(what: &str) -> Reached {
    Ok(what.to_owned())
}

fn read(path: &str) -> Reached {
    File::open(path)?;
    reached(&format!("{path} is open"))
}

fn list(path: &str) -> Reached {
    match fs::read_dir(path)?.next() {
        Some(entry) => reached(&format!("{:?}", entry?.file_name())),
        None => Err(ErrorKind::NotFound.into()),
    }
}

fn write(path: &str) -> Reached {
    File::create(path)?.write_all(b"x")?;
    reached(&format!("{path} is written"))
}

/// Whether a signal would reach a process; none is sent.
fn exists(pid: i32) -> Reached {
    kill(Pid::from_raw(pid), None)?;
    reached(&format!("process {pid}"))
}

fn raw_socket(family: AddressFamily, protocol: SockProtocol) -> Reached {
    socket(family, SockType::Raw, SockFlag::empty(), protocol)?;
    reached("a socket")
}

fn become_user(id: u32) -> Reached {
    let user = Uid::from_raw(id);
    setresuid(user, user, user)?;
    reached(&format!("user {id}"))
}

/// A program for packets that does nothing: `r0 = 0; exit`.
fn load_bpf() -> Reached {
    const PROG_LOAD: usize = 5;
    const SCHED_CLS: u64 = 3;
    let program = [0xb7_u64, 0x95];
    let license = c"GPL";
    // The first words of `union bpf_attr`: kind and length, program, license.
    let attributes = [
        SCHED_CLS | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
        0,
        0,
        0,
    ];
    let at = attributes.as_ptr() as usize;
    call(
        libc::SYS_bpf,
        [PROG_LOAD, at, size_of_val(&attributes), 0, 0],
    )?;
    reached("a program is loaded")
}

/// Counts what a whole processor does.
fn measure() -> Reached {
    // `struct perf_event_attr` of version 0: a software clock.
    const SOFTWARE: u64 = 1;
    let attributes = [SOFTWARE | 64 << 32, 0, 0, 0, 0, 0, 0, 0_u64];
    let at = attributes.as_ptr() as usize;
    let every = -1_i32 as usize;
    call(libc::SYS_perf_event_open, [at, every, 0, every, 0])?;
    reached("processor 0")
}

fn fork() -> Reached {
    // SAFETY: the child ends at once, without touching anything.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => vmm::sys::exit_now(0),
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None)?;
            reached(&format!("process {child}"))
        }
    }
}

/// A descriptor that may not be open: the attempt finds out.
fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is only handed to system calls, which refuse one that is not open, and the
    // process ends with the attempt.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// A system call as an attacker would make it.
pub fn call(number: libc::c_long, arguments: [usize; 5]) -> io::Result<i64> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: callers pass numbers, and pointers to what outlives the call and is as long as
    // the call expects.
    match unsafe { libc::syscall(number, a, b, c, d, e, ptr::null::<u8>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
