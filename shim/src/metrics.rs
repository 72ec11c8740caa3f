//! What a pod costs the host, from its cgroup: the VMM and all that the guest
//! uses.

use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryStat, Metrics, PidsStat};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::host::memory::Memory;
use crate::printable::printable;

/// Name under which containerd knows the message.
pub const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

/// The cgroup's numbers; one that its kernel does not keep is 0.
pub fn read(cgroup: &Path) -> Metrics {
    let cpu = fields(&cgroup.join("cpu.stat"));
    let memory = fields(&cgroup.join("memory.stat"));
    Metrics {
        pids: MessageField::some(PidsStat {
            current: number(&cgroup.join("pids.current")),
            limit: number(&cgroup.join("pids.max")),
            ..Default::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: cpu("usage_usec"),
            user_usec: cpu("user_usec"),
            system_usec: cpu("system_usec"),
            nr_periods: cpu("nr_periods"),
            nr_throttled: cpu("nr_throttled"),
            throttled_usec: cpu("throttled_usec"),
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            anon: memory("anon"),
            file: memory("file"),
            kernel_stack: memory("kernel_stack"),
            slab: memory("slab"),
            sock: memory("sock"),
            shmem: memory("shmem"),
            file_mapped: memory("file_mapped"),
            inactive_anon: memory("inactive_anon"),
            active_anon: memory("active_anon"),
            inactive_file: memory("inactive_file"),
            active_file: memory("active_file"),
            pgfault: memory("pgfault"),
            pgmajfault: memory("pgmajfault"),
            usage: number(&cgroup.join("memory.current")),
            usage_limit: number(&cgroup.join("memory.max")),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The numbers as Stats answers them.
///
/// # Errors
/// When they cannot be encoded.
pub fn stats(cgroup: &Path) -> Result<Any, containerd_shim_protos::protobuf::Error> {
    Ok(Any {
        type_url: TYPE_URL.to_owned(),
        value: read(cgroup).write_to_bytes()?,
        ..Default::default()
    })
}

/// Number of the field that holds a [`protocol::shim::Memory`]: none of containerd's, so that
/// whoever knows it not skips it.
pub const MEMORY_FIELD: u32 = 1000;

/// As [`stats`], with what the sandbox costs in memory and by whom.
///
/// # Errors
/// When they cannot be encoded.
pub fn stats_of_sandbox(
    cgroup: &Path,
    memory: &Memory,
) -> Result<Any, containerd_shim_protos::protobuf::Error> {
    let memory = protocol::shim::Memory {
        vmm: memory.vmm,
        shim: memory.shim,
        guest_private: memory.guest_private,
        shared: memory.shared,
        ..Default::default()
    };
    let mut metrics = read(cgroup);
    metrics
        .mut_unknown_fields()
        .add_length_delimited(MEMORY_FIELD, memory.write_to_bytes()?);
    Ok(Any {
        type_url: TYPE_URL.to_owned(),
        value: metrics.write_to_bytes()?,
        ..Default::default()
    })
}

/// Largest statistics of a container, in bytes: some twenty numbers, and a few for each
/// disk.
const MAX_BYTES: usize = 16 << 10;

/// Statistics that are not passed on.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// containerd would take them for something else.
    #[error("they are of type {0:?}")]
    Type(String),
    /// They would cost containerd much memory.
    #[error("they have {0} bytes")]
    Size(usize),
    /// containerd could not read them, and would refuse all other containers' with them.
    #[error("they cannot be read")]
    Content(#[from] containerd_shim_protos::protobuf::Error),
}

/// A guest's statistics of a container, made anew from what they say.
///
/// # Errors
/// When they are not what containerd expects.
pub fn checked(theirs: &Any) -> Result<Any, StatsError> {
    if theirs.type_url != TYPE_URL {
        return Err(StatsError::Type(printable(theirs.type_url.as_bytes(), 64)));
    }
    if theirs.value.len() > MAX_BYTES {
        return Err(StatsError::Size(theirs.value.len()));
    }
    Ok(Any {
        type_url: TYPE_URL.to_owned(),
        value: Metrics::parse_from_bytes(&theirs.value)?.write_to_bytes()?,
        ..Default::default()
    })
}

/// A file of one number; "max" is the largest.
fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or_default(),
    }
}

/// A file of lines "name number".
fn fields(path: &Path) -> impl Fn(&str) -> u64 + use<> {
    let text = fs::read_to_string(path).unwrap_or_default();
    move |name| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::UnknownValueRef;

    use super::*;

    #[test]
    fn a_guests_statistics_are_read_before_they_are_passed_on() {
        let any = |type_url: &str, value: Vec<u8>| Any {
            type_url: type_url.to_owned(),
            value,
            ..Default::default()
        };
        let mut metrics = Metrics::new();
        metrics.pids.mut_or_insert_default().current = 7;
        let good = any(TYPE_URL, metrics.write_to_bytes().unwrap());
        assert_eq!(checked(&good).unwrap(), good);
        assert!(matches!(
            checked(&any("x", vec![])),
            Err(StatsError::Type(_))
        ));
        let long = any(TYPE_URL, vec![0; MAX_BYTES + 1]);
        assert!(matches!(checked(&long), Err(StatsError::Size(_))));
        for garbage in [vec![0xff], vec![10, 200], vec![0; 9]] {
            let garbage = any(TYPE_URL, garbage);
            assert!(matches!(checked(&garbage), Err(StatsError::Content(_))));
        }
    }

    #[test]
    fn a_cgroups_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 12\nuser_usec 7\nsystem_usec 5\n");
        write("memory.stat", "anon 4096\nfile_mapped 3\nfile 8192\n");
        write("memory.current", "20480\n");
        write("memory.max", "max\n");
        write("pids.current", "3\n");
        let metrics = read(dir.path());
        assert_eq!(metrics.cpu.usage_usec, 12);
        assert_eq!(metrics.cpu.nr_periods, 0);
        assert_eq!(metrics.memory.file, 8192);
        assert_eq!(metrics.memory.usage, 20480);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.pids.current, 3);
        let any = stats(dir.path()).unwrap();
        assert_eq!(Metrics::parse_from_bytes(&any.value).unwrap(), metrics);

        let memory = Memory {
            guest_private: 7 << 20,
            ..Memory::default()
        };
        let any = stats_of_sandbox(dir.path(), &memory).unwrap();
        let with_memory = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(with_memory.memory, metrics.memory);
        let (number, value) = with_memory.unknown_fields().iter().next().unwrap();
        assert_eq!(number, MEMORY_FIELD);
        let UnknownValueRef::LengthDelimited(bytes) = value else {
            panic!("{value:?}");
        };
        let told = protocol::shim::Memory::parse_from_bytes(bytes).unwrap();
        assert_eq!((told.guest_private, told.shim), (7 << 20, 0));
    }
}
