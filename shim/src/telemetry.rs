//! What this process counts, and how it is told as Prometheus has it. One process serves
//! one pod, so the counters are the process's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use protocol::shim::{Family, Sample};

use crate::host::memory::Memory;
use crate::stages::Stage;

/// Requests by name and outcome.
static REQUESTS: Mutex<BTreeMap<(&str, &str), u64>> = Mutex::new(BTreeMap::new());
/// Bytes of standard streams, into the guest and out of it.
static BYTES_IN: AtomicU64 = AtomicU64::new(0);
static BYTES_OUT: AtomicU64 = AtomicU64::new(0);
/// Times that containerd did not take an event.
static EVENT_RETRIES: AtomicU64 = AtomicU64::new(0);

/// containerd's request `name` was served.
pub fn request(name: &'static str, failed: bool) {
    let outcome = if failed { "error" } else { "ok" };
    *REQUESTS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry((name, outcome))
        .or_default() += 1;
}

/// Bytes were typed.
pub fn stream_in(bytes: usize) {
    BYTES_IN.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Bytes were printed.
pub fn stream_out(bytes: usize) {
    BYTES_OUT.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// containerd did not take an event.
pub fn event_retry() {
    EVENT_RETRIES.fetch_add(1, Ordering::Relaxed);
}

/// Of the VMM's numbers, those that go down too.
const GAUGES: [&str; 3] = ["running", "requested_bytes", "plugged_bytes"];

/// The counters of this process.
pub fn of_shim(stages: &[Stage]) -> Vec<Family> {
    let requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    let requests = requests
        .iter()
        .map(|((name, outcome), count)| {
            sample(&[("request", name), ("outcome", outcome)], *count as f64)
        })
        .collect();
    let bytes = |direction: &str, counter: &AtomicU64| {
        sample(
            &[("direction", direction)],
            counter.load(Ordering::Relaxed) as f64,
        )
    };
    let stages = stages
        .iter()
        .map(|stage| {
            let seconds = (stage.end_us.saturating_sub(stage.start_us)) as f64 / 1e6;
            sample(&[("stage", stage.name)], seconds)
        })
        .collect();
    let retries = EVENT_RETRIES.load(Ordering::Relaxed) as f64;
    vec![
        family(
            "joey_sandbox_start_stage_seconds",
            "gauge",
            "Time that each part of the sandbox's start took; parts overlap",
            stages,
        ),
        family(
            "joey_shim_requests_total",
            "counter",
            "Requests of containerd",
            requests,
        ),
        family(
            "joey_shim_stream_bytes_total",
            "counter",
            "Bytes of standard streams",
            vec![bytes("in", &BYTES_IN), bytes("out", &BYTES_OUT)],
        ),
        family(
            "joey_shim_event_retries_total",
            "counter",
            "Events that containerd did not take at first",
            vec![sample(&[], retries)],
        ),
        family(
            "joey_shim_open_fds",
            "gauge",
            "Open descriptors of the shim",
            vec![sample(&[], open_fds() as f64)],
        ),
    ]
}

/// What the sandbox costs in memory.
pub fn of_memory(memory: &Memory) -> Vec<Family> {
    let parts = memory.parts().into_iter();
    vec![family(
        "joey_sandbox_memory_bytes",
        "gauge",
        "Memory of the sandbox on the host: what VMM, shim and guest hold alone, and pages of \
         files that others map too",
        parts
            .map(|(part, bytes)| sample(&[("part", part)], bytes as f64))
            .collect(),
    )]
}

/// The counters of the VMM: one metric for each counter of each device.
pub fn of_vmm(stats: &vmm::Stats) -> Vec<Family> {
    let Ok(serde_json::Value::Object(devices)) = serde_json::to_value(stats) else {
        return Vec::new();
    };
    let mut families = Vec::new();
    for (device, counters) in devices {
        for (counter, value) in counters.as_object().into_iter().flatten() {
            let Some(value) = value.as_f64() else {
                continue;
            };
            let help = format!("{} of the VMM's {device}", counter.replace('_', " "));
            let (name, kind) = if GAUGES.contains(&counter.as_str()) {
                (format!("joey_vmm_{device}_{counter}"), "gauge")
            } else {
                (format!("joey_vmm_{device}_{counter}_total"), "counter")
            };
            families.push(family(&name, kind, &help, vec![sample(&[], value)]));
        }
    }
    families
}

fn family(name: &str, kind: &str, help: &str, samples: Vec<Sample>) -> Family {
    Family {
        name: name.to_owned(),
        kind: kind.to_owned(),
        help: help.to_owned(),
        samples,
        ..Default::default()
    }
}

fn sample(labels: &[(&str, &str)], value: f64) -> Sample {
    Sample {
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        value,
        ..Default::default()
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(families: &[Family], name: &str) -> f64 {
        let family = families.iter().find(|family| family.name == name).unwrap();
        family.samples.iter().map(|sample| sample.value).sum()
    }

    #[test]
    fn what_was_counted_is_told() {
        let before = value(&of_shim(&[]), "joey_shim_requests_total");
        request("create", false);
        request("create", true);
        let stage = Stage {
            name: "boot",
            start_us: 500,
            end_us: 1_500_500,
        };
        let families = of_shim(&[stage]);
        assert_eq!(value(&families, "joey_shim_requests_total"), before + 2.0);
        assert_eq!(value(&families, "joey_sandbox_start_stage_seconds"), 1.5);
        assert!(value(&families, "joey_shim_open_fds") > 2.0);
    }

    #[test]
    fn memory_is_told_by_parts() {
        let memory = Memory {
            vmm: 1,
            shim: 2,
            guest_private: 3,
            shared: 4,
        };
        let families = of_memory(&memory);
        let labels = |sample: &Sample| sample.labels["part"].clone();
        let told: Vec<_> = families[0]
            .samples
            .iter()
            .map(|sample| (labels(sample), sample.value as u64))
            .collect();
        let parts = memory.parts().map(|(part, bytes)| (part.to_owned(), bytes));
        assert_eq!(told, parts);
    }

    #[test]
    fn every_counter_of_the_vmm_is_a_metric() {
        let mut stats = vmm::Stats::default();
        stats.net.sent_bytes = 7;
        stats.vcpus.running = 2;
        let families = of_vmm(&stats);
        assert_eq!(value(&families, "joey_vmm_net_sent_bytes_total"), 7.0);
        assert_eq!(value(&families, "joey_vmm_vcpus_running"), 2.0);
    }
}
