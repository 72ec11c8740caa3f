//! Counters of the VM: plain data for whoever asks, atomics where they are counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

pub use crate::devices::virtio::balloon::BalloonStats;
pub use crate::devices::virtio::block::BlockStats;
pub use crate::devices::virtio::fs::FsStats;
pub use crate::devices::virtio::mem::MemStats;
pub use crate::devices::virtio::net::NetStats;
pub use crate::devices::virtio::rng::RngStats;
pub use crate::devices::virtio::vsock::VsockStats;

/// All counters since the start of the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All vCPUs together.
    pub vcpus: VcpuStats,
    /// vda, the image window.
    pub window: BlockStats,
    /// vdb, scratch.
    pub scratch: BlockStats,
    /// The volumes' disks, all together.
    pub volumes: BlockStats,
    /// The file system device.
    pub fs: FsStats,
    /// The NIC.
    pub net: NetStats,
    /// The socket device.
    pub vsock: VsockStats,
    /// The entropy source.
    pub rng: RngStats,
    /// The balloon.
    pub balloon: BalloonStats,
    /// Plugged memory.
    pub mem: MemStats,
}

/// vCPU threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// vCPUs that run.
    pub running: u64,
    /// Accesses to device registers that a vCPU thread answered.
    pub mmio_exits: u64,
    /// Accesses to I/O ports that a vCPU thread answered.
    pub port_exits: u64,
}

/// One counter, counted by one thread and read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One number that goes up and down, set by one thread and read by any.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters behind [`VcpuStats`].
#[derive(Debug, Default)]
pub struct VcpuCounters {
    /// See [`VcpuStats::running`].
    pub running: Counter,
    /// See [`VcpuStats::mmio_exits`].
    pub mmio_exits: Counter,
    /// See [`VcpuStats::port_exits`].
    pub port_exits: Counter,
}

impl VcpuCounters {
    /// Their values now.
    pub fn stats(&self) -> VcpuStats {
        VcpuStats {
            running: self.running.get(),
            mmio_exits: self.mmio_exits.get(),
            port_exits: self.port_exits.get(),
        }
    }
}
