//! Loads the eBPF programs with the `bpf` system call.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_long};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

include!(concat!(env!("OUT_DIR"), "/programs.rs"));

// linux/bpf.h: commands, types and flags of the system call.
const BPF_MAP_CREATE: c_long = 0;
const BPF_MAP_LOOKUP_ELEM: c_long = 1;
const BPF_MAP_UPDATE_ELEM: c_long = 2;
const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;
const BPF_LINK_DETACH: c_long = 34;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_PSEUDO_MAP_FD: u64 = 1;
const NAME_BYTES: usize = 16;

/// `struct traffic` of `bpf/link.c`: packets, then bytes.
const VALUE_BYTES: usize = 16;
const VERIFIER_LOG_BYTES: usize = 64 << 10;
/// The end of the verifier's log, where it says what it minds.
const VERIFIER_LOG_SHOWN: usize = 512;

/// Why the kernel did not take the programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpfError {
    /// The list of CPUs, which sets a value's size, cannot be read.
    #[error("reading {CPUS}; is sysfs mounted?")]
    Cpus(#[source] io::Error),
    /// The counters' map was refused.
    #[error("making the map of counters; CAP_BPF is needed, and a kernel with CONFIG_BPF_SYSCALL")]
    Map(#[source] io::Error),
    /// A program was refused.
    #[error(
        "loading {program}; CAP_BPF and CAP_NET_ADMIN are needed. The verifier's last words: {log:?}"
    )]
    Program {
        /// The program's name.
        program: &'static str,
        /// The end of the verifier's log; empty where it was not asked.
        log: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program could not be attached by a `bpf_link`.
    #[error(
        "attaching a program with TCX; kernel 6.6 is needed, or the modules sch_ingress and cls_bpf for the clsact hook"
    )]
    Tcx(#[source] io::Error),
    /// A program could not be attached by a clsact filter.
    #[error(
        "attaching a program with clsact; the kernel modules sch_ingress and cls_bpf are needed"
    )]
    Clsact(#[source] crate::netlink::NetlinkError),
    /// The counters cannot be read.
    #[error("reading the counters")]
    Counters(#[source] io::Error),
    /// The listener cannot be given to its program.
    #[error("making the map of the listener; kernel 5.9 is needed, and CAP_NET_ADMIN")]
    Listener(#[source] io::Error),
    /// The program that steers connections could not be attached.
    #[error("steering the namespace's connections; kernel 5.9 is needed")]
    SkLookup(#[source] io::Error),
}

const CPUS: &str = "/sys/devices/system/cpu/possible";

/// What the loader writes into an instruction.
#[derive(Clone, Copy)]
enum Symbol {
    /// The descriptor of the program's one map.
    Map,
    /// The index of the interface to send to.
    Target,
}

/// Where a program runs.
#[derive(Clone, Copy)]
enum Kind {
    /// On frames that arrive at an interface.
    SchedCls,
    /// When a namespace looks for the socket that takes a new connection.
    SkLookup,
}

/// A program as compiled: instructions and where the loader's values go.
pub(crate) struct Program {
    name: &'static CStr,
    kind: Kind,
    code: &'static [u64],
    fixups: &'static [(usize, Symbol)],
}

impl Program {
    /// The name the kernel shows, for messages and filters.
    pub(crate) fn name(&self) -> &'static str {
        self.name.to_str().unwrap_or_default()
    }

    fn code(&self, map: RawFd, target: u32) -> Vec<u64> {
        let mut code = self.code.to_vec();
        for &(index, symbol) in self.fixups {
            // A 64-bit load: the immediate's low half is this instruction's
            // upper half; bits 12 to 15 say what it refers to.
            code[index] |= match symbol {
                Symbol::Map => BPF_PSEUDO_MAP_FD << 12 | (map as u32 as u64) << 32,
                Symbol::Target => u64::from(target) << 32,
            };
        }
        code
    }

    /// Loads the program with its map and, where it sends somewhere, the index of
    /// that interface; the kernel drops it with the last descriptor and link to it.
    pub(crate) fn load(&self, map: BorrowedFd, target: u32) -> Result<OwnedFd, BpfError> {
        let code = self.code(map.as_raw_fd(), target);
        let (prog_type, expected_attach_type) = match self.kind {
            Kind::SchedCls => (BPF_PROG_TYPE_SCHED_CLS, 0),
            Kind::SkLookup => (BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP),
        };
        let mut attributes = ProgLoad {
            prog_type,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
            prog_name: name(self.name),
            prog_ifindex: 0,
            expected_attach_type,
        };
        // SAFETY: the pointers in `attributes` lead to `code`, of as many
        // instructions as it says, and to a string that ends in a NUL; both
        // outlive the call, which only reads them.
        let first = match unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) } {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        // Once more for the reason, which costs too much to ask for every time.
        let mut log = vec![0u8; VERIFIER_LOG_BYTES];
        attributes.log_level = 1;
        attributes.log_size = log.len() as u32;
        attributes.log_buf = log.as_mut_ptr() as u64;
        // SAFETY: as above, and the kernel writes at most `log_size` bytes to
        // `log`, which nothing else borrows during the call.
        match unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) } {
            Ok(fd) => Ok(fd),
            Err(_) => Err(BpfError::Program {
                program: self.name(),
                log: log_end(&log),
                source: first,
            }),
        }
    }
}

/// The end of what the verifier wrote before the first NUL.
fn log_end(log: &[u8]) -> String {
    let written = log.split(|&byte| byte == 0).next().unwrap_or_default();
    let from = written.len().saturating_sub(VERIFIER_LOG_SHOWN);
    String::from_utf8_lossy(&written[from..]).trim().to_owned()
}

/// Packets and bytes in each direction, counted by each CPU for itself.
#[derive(Debug)]
pub(crate) struct CounterMap {
    fd: OwnedFd,
}

impl CounterMap {
    /// One value for each of `directions`.
    pub(crate) fn create(directions: u32) -> Result<Self, BpfError> {
        let attributes = MapCreate {
            map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
            key_size: size_of::<u32>() as u32,
            value_size: VALUE_BYTES as u32,
            max_entries: directions,
            map_flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: name(c"joey_counters"),
        };
        // SAFETY: `attributes` holds no pointers.
        let fd = unsafe { bpf_fd(BPF_MAP_CREATE, &attributes) }.map_err(BpfError::Map)?;
        Ok(Self { fd })
    }

    /// Packets and bytes counted under `key`, over all CPUs.
    pub(crate) fn read(&self, key: u32) -> Result<(u64, u64), BpfError> {
        let mut values = vec![[0u64; VALUE_BYTES / size_of::<u64>()]; possible_cpus()?];
        let attributes = MapElement {
            map_fd: self.fd.as_raw_fd() as u32,
            padding: 0,
            key: &raw const key as u64,
            value: values.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads a u32 at `key` and writes one value for
        // each possible CPU, which is how many `values` holds.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attributes) }.map_err(BpfError::Counters)?;
        // Wrapping, as the kernel's own counters do.
        Ok(values.iter().fold((0, 0), |sum: (u64, u64), value| {
            (sum.0.wrapping_add(value[0]), sum.1.wrapping_add(value[1]))
        }))
    }
}

impl AsFd for CounterMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A program that is attached until this is dropped, or this process is killed.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Drop for Link {
    fn drop(&mut self) {
        // Closing it is not enough: a child of ours that has not executed its program yet holds
        // all our descriptors too. What the kernel refuses is detached already.
        let attributes = LinkDetach {
            link_fd: self.0.as_raw_fd() as u32,
        };
        // SAFETY: `attributes` holds no pointers.
        let _ = unsafe { bpf(BPF_LINK_DETACH, &attributes) };
    }
}

/// Attaches `program` where frames arrive at the interface `index` of the
/// calling thread's namespace, after the programs already there. The link
/// ends with the interface too.
pub(crate) fn attach_tcx(program: BorrowedFd, index: u32) -> Result<Link, BpfError> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target: index,
        attach_type: BPF_TCX_INGRESS,
        flags: 0,
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: `attributes` holds no pointers.
    let link = unsafe { bpf_fd(BPF_LINK_CREATE, &attributes) };
    link.map(Link).map_err(BpfError::Tcx)
}

/// The socket that [`LOOPBACK`] steers connections to.
#[derive(Debug)]
pub(crate) struct ListenerMap {
    fd: OwnedFd,
}

impl ListenerMap {
    /// Holds `listener`, but does not keep it open.
    pub(crate) fn create(listener: BorrowedFd) -> Result<Self, BpfError> {
        let attributes = MapCreate {
            map_type: BPF_MAP_TYPE_SOCKMAP,
            key_size: size_of::<u32>() as u32,
            value_size: size_of::<u32>() as u32,
            max_entries: 1,
            map_flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: name(c"joey_listener"),
        };
        // SAFETY: `attributes` holds no pointers.
        let fd = unsafe { bpf_fd(BPF_MAP_CREATE, &attributes) }.map_err(BpfError::Listener)?;
        let (key, value) = (0u32, listener.as_raw_fd() as u32);
        let attributes = MapElement {
            map_fd: fd.as_raw_fd() as u32,
            padding: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads a u32 at `key` and one at `value`, the sizes
        // that the map was made with; both outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attributes) }.map_err(BpfError::Listener)?;
        Ok(Self { fd })
    }
}

impl AsFd for ListenerMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `program` for each new connection in `namespace`. The link ends with its
/// descriptor or with the namespace.
pub(crate) fn attach_sk_lookup(
    program: BorrowedFd,
    namespace: BorrowedFd,
) -> Result<OwnedFd, BpfError> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target: namespace.as_raw_fd() as u32,
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: `attributes` holds no pointers.
    unsafe { bpf_fd(BPF_LINK_CREATE, &attributes) }.map_err(BpfError::SkLookup)
}

/// The number of CPUs there can ever be: the kernel returns a value for each.
fn possible_cpus() -> Result<usize, BpfError> {
    let text = fs::read_to_string(CPUS).map_err(BpfError::Cpus)?;
    count_cpus(&text).ok_or_else(|| BpfError::Cpus(io::ErrorKind::InvalidData.into()))
}

/// Counts a list like `0-3,8`, up to its highest member as the kernel does.
fn count_cpus(list: &str) -> Option<usize> {
    list.trim()
        .split([',', '-'])
        .map(|cpu| cpu.parse::<usize>().ok())
        .try_fold(0, |most, cpu| Some(most.max(cpu?.checked_add(1)?)))
}

/// A name as the kernel takes it, cut to its 15 bytes.
fn name(name: &CStr) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    for (to, from) in bytes[..NAME_BYTES - 1].iter_mut().zip(name.to_bytes()) {
        *to = *from;
    }
    bytes
}

// The members of `union bpf_attr` for each command, as far as they are used;
// the kernel takes a shorter union for one whose rest is zero.

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME_BYTES],
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_BYTES],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    /// An interface's index or a namespace's descriptor.
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// The system call.
///
/// # Safety
///
/// `T` is the member of `union bpf_attr` that `command` takes, without padding
/// bytes, and its pointers lead to memory the kernel may use as `command` says.
unsafe fn bpf<T>(command: c_long, attributes: &T) -> io::Result<c_long> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes at `attributes`, which
    // is how many there are; the caller answers for what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    Ok(Errno::result(result)?)
}

/// The system call, for commands that return a descriptor.
///
/// # Safety
///
/// As for [`bpf`], and `command` returns a new descriptor.
unsafe fn bpf_fd<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise is the callee's.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted_to_their_highest() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3\n"), Some(4));
        assert_eq!(count_cpus("0-1,8-11\n"), Some(12));
        assert_eq!(count_cpus("\n"), None);
        assert_eq!(count_cpus("0-x\n"), None);
    }

    #[test]
    fn programs_take_map_and_target() {
        for program in [&TO_GUEST, &FROM_GUEST] {
            let code = program.code(5, 7);
            let loads: Vec<_> = program.fixups.iter().map(|&(i, _)| code[i]).collect();
            assert_eq!(loads.len(), 2, "{}", program.name());
            // A 64-bit load is opcode 0x18.
            assert!(loads.iter().all(|load| load & 0xff == 0x18));
            assert!(
                loads
                    .iter()
                    .any(|load| load >> 32 == 5 && load >> 12 & 0xf == 1)
            );
            assert!(
                loads
                    .iter()
                    .any(|load| load >> 32 == 7 && load >> 12 & 0xf == 0)
            );
        }
    }

    #[test]
    fn steering_takes_its_map_alone() {
        let code = LOOPBACK.code(5, 7);
        let [(at, _)] = LOOPBACK.fixups else {
            panic!("one place for the map")
        };
        assert_eq!((code[*at] & 0xff, code[*at] >> 12 & 0xf), (0x18, 1));
        assert_eq!(code[*at] >> 32, 5);
    }

    #[test]
    fn the_end_of_a_log_is_shown() {
        assert_eq!(
            log_end(b"0: (b7)\nR0 !read_ok\n\0\0"),
            "0: (b7)\nR0 !read_ok"
        );
        assert_eq!(log_end(&[b'x'; 4096]).len(), VERIFIER_LOG_SHOWN);
        assert_eq!(log_end(&[0; 16]), "");
    }

    #[test]
    fn names_are_cut_and_end_in_nul() {
        assert_eq!(&name(c"joey_from_guest_and_more"), b"joey_from_guest\0");
    }
}
