//! The engine's counters as containerd's message.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::MessageField;
use runtime::CgroupStats;
use runtime::cgroup::{CpuStats, IoStats, MemoryStats, PidsStats};

/// What containerd, and the kubelet behind it, take for "no limit".
const UNLIMITED: u64 = u64::MAX;

/// Counters of a container's cgroup. The pod's network is counted by the host.
pub fn from_cgroup(stats: CgroupStats) -> Metrics {
    Metrics {
        cpu: MessageField::some(cpu(&stats.cpu)),
        memory: stats.memory.as_ref().map(memory).into(),
        memory_events: stats.memory.as_ref().map(memory_events).into(),
        pids: stats.pids.as_ref().map(pids).into(),
        io: stats.io.map(io).into(),
        ..Default::default()
    }
}

fn cpu(stats: &CpuStats) -> CPUStat {
    CPUStat {
        usage_usec: stats.usage_usec,
        user_usec: stats.user_usec,
        system_usec: stats.system_usec,
        nr_periods: stats.nr_periods,
        nr_throttled: stats.nr_throttled,
        throttled_usec: stats.throttled_usec,
        ..Default::default()
    }
}

fn memory(stats: &MemoryStats) -> MemoryStat {
    let stat = |name: &str| stats.stat.get(name).copied().unwrap_or(0);
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        // Linux split these two in 5.9; containerd's message has the sums.
        workingset_refault: stat("workingset_refault_anon") + stat("workingset_refault_file"),
        workingset_activate: stat("workingset_activate_anon") + stat("workingset_activate_file"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: stats.usage,
        usage_limit: stats.limit.unwrap_or(UNLIMITED),
        swap_usage: stats.swap_usage,
        swap_limit: stats.swap_limit.unwrap_or(UNLIMITED),
        max_usage: stats.peak.unwrap_or(0),
        ..Default::default()
    }
}

fn memory_events(stats: &MemoryStats) -> MemoryEvents {
    let event = |name: &str| stats.events.get(name).copied().unwrap_or(0);
    MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: event("oom_kill"),
        oom_group_kill: event("oom_group_kill"),
        ..Default::default()
    }
}

fn pids(stats: &PidsStats) -> PidsStat {
    PidsStat {
        current: stats.current,
        // Here 0 is "no limit".
        limit: stats.limit.unwrap_or(0),
        ..Default::default()
    }
}

fn io(devices: Vec<IoStats>) -> IOStat {
    let entry = |device: IoStats| IOEntry {
        major: device.major.into(),
        minor: device.minor.into(),
        rbytes: device.read_bytes,
        wbytes: device.write_bytes,
        rios: device.read_operations,
        wios: device.write_operations,
        ..Default::default()
    };
    IOStat {
        usage: devices.into_iter().map(entry).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_arrive_and_absent_parts_stay_absent() {
        let stats = CgroupStats {
            memory: Some(MemoryStats {
                usage: 4096,
                stat: [("anon".into(), 7), ("workingset_refault_file".into(), 2)].into(),
                events: [("oom_kill".into(), 1)].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let metrics = from_cgroup(stats);
        assert_eq!((metrics.memory.usage, metrics.memory.anon), (4096, 7));
        assert_eq!(metrics.memory.workingset_refault, 2);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.memory_events.oom_kill, 1);
        assert!(metrics.pids.is_none() && metrics.io.is_none());
    }
}
