//! `update`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Args;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use runtime::Status;

use super::Global;

#[derive(Debug, Args)]
pub(super) struct Update {
    /// File with linux.resources of a spec, or - for standard input; other options have no effect
    /// then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<String>,
    /// Weight of block devices, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Length of a period of processor time, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_period: Option<u64>,
    /// Processor time in a period, in microseconds; -1 for no limit
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Processor time that may be saved up, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_burst: Option<u64>,
    /// Share of the processors, beside other containers
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Length of a period of real-time processor time, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_rt_period: Option<u64>,
    /// Real-time processor time in a period, in microseconds
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// 1: run only when nobody else wants to
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
    /// Processors to run on
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Limit of memory, in bytes or with k, m, g; -1 for no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory that is left to the container when it is short
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory_reservation: Option<i64>,
    /// Limit of memory and swap together; -1 for no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Limit of processes; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    #[arg(long, hide = true)]
    kernel_memory_tcp: Option<String>,
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl Update {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = global.container(&self.id)?;
        let status = container.status();
        ensure!(
            status != Status::Stopped,
            "container {} is {status}; only a running one has limits to change",
            self.id
        );
        let resources = match &self.resources {
            Some(file) => read(file)?,
            None => self.resources(),
        };
        Ok(container.update(&resources)?)
    }

    fn resources(&self) -> LinuxResources {
        if self.kernel_memory.is_some() || self.kernel_memory_tcp.is_some() {
            tracing::warn!("limits of kernel memory have no effect");
        }
        let mut cpu = LinuxCpu::default();
        cpu.set_period(self.cpu_period)
            .set_quota(self.cpu_quota)
            .set_burst(self.cpu_burst)
            .set_shares(self.cpu_share)
            .set_realtime_period(self.cpu_rt_period)
            .set_realtime_runtime(self.cpu_rt_runtime)
            .set_idle(self.cpu_idle)
            .set_cpus(self.cpuset_cpus.clone())
            .set_mems(self.cpuset_mems.clone());
        let mut memory = LinuxMemory::default();
        memory
            .set_limit(self.memory)
            .set_reservation(self.memory_reservation)
            .set_swap(self.memory_swap);
        let mut block = LinuxBlockIo::default();
        block.set_weight(self.blkio_weight);
        let mut resources = LinuxResources::default();
        // The default has a rule that denies all devices.
        resources
            .set_devices(None)
            .set_cpu(Some(cpu))
            .set_memory(Some(memory))
            .set_block_io(Some(block));
        if let Some(limit) = self.pids_limit {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            resources.set_pids(Some(pids));
        }
        resources
    }
}

fn read(file: &str) -> Result<LinuxResources> {
    let mut text = Vec::new();
    match file {
        "-" => std::io::stdin().read_to_end(&mut text),
        path => {
            std::fs::File::open(Path::new(path)).and_then(|mut file| file.read_to_end(&mut text))
        }
    }
    .with_context(|| format!("read the resources from {file}"))?;
    let mut resources: LinuxResources =
        serde_json::from_slice(&text).with_context(|| format!("the resources in {file}"))?;
    // Rules for devices are the container's for good, as with runc.
    resources.set_devices(None);
    Ok(resources)
}

/// A number of bytes: 1024, 512k, 1.5GiB. -1 is no limit.
fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a number of bytes, as in 536870912, 512m or 1.5g");
    if text == "-1" {
        return Ok(-1);
    }
    let at = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(wrong()),
    };
    Ok((number * (1i64 << shift) as f64) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (text, value) in [
            ("-1", -1),
            ("0", 0),
            ("1024", 1024),
            ("1k", 1024),
            ("1.5m", 1_572_864),
            ("2G", 2_147_483_648),
            ("2 GiB", 2_147_483_648),
            ("2gb", 2_147_483_648),
        ] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for text in ["", "m", "1x", "1.2.3", "-2"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
