//! How long the parts of a sandbox's start take: for the log, and for the bench,
//! which reads `stages.json` in the state directory.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Name of the file.
pub const FILE: &str = "stages.json";

/// A stop watch for one start.
#[derive(Debug)]
pub struct Stages {
    begun: Instant,
    done: Mutex<Vec<Stage>>,
}

/// One part of a start, in microseconds since its begin. Parts overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
}

/// All parts, as written.
#[derive(Debug, Serialize)]
struct Report<'a> {
    sandbox: &'a str,
    unit: &'static str,
    total: u64,
    stages: &'a [Stage],
}

impl Default for Stages {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            done: Mutex::default(),
        }
    }
}

impl Stages {
    /// Times one part.
    pub async fn time<T>(&self, name: &'static str, part: impl Future<Output = T>) -> T {
        let start_us = self.elapsed();
        let result = part.await;
        self.push(name, start_us);
        result
    }

    /// Times one part that blocks.
    pub fn time_blocking<T>(&self, name: &'static str, part: impl FnOnce() -> T) -> T {
        let start_us = self.elapsed();
        let result = part();
        self.push(name, start_us);
        result
    }

    /// All parts so far.
    pub fn list(&self) -> Vec<Stage> {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The report, as JSON.
    pub fn report(&self, sandbox: &str) -> String {
        let stages = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let report = Report {
            sandbox,
            unit: "us",
            total: self.elapsed(),
            stages: &stages,
        };
        serde_json::to_string(&report).expect("a report is plain data")
    }

    fn push(&self, name: &'static str, start_us: u64) {
        let stage = Stage {
            name,
            start_us,
            end_us: self.elapsed(),
        };
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(stage);
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_every_part() {
        let stages = Stages::default();
        assert_eq!(stages.time_blocking("network", || 7), 7);
        stages.time_blocking("boot", || ());
        let report: serde_json::Value = serde_json::from_str(&stages.report("abc")).unwrap();
        assert_eq!(report["sandbox"], "abc");
        assert_eq!(report["stages"][0]["name"], "network");
        assert_eq!(report["stages"][1]["name"], "boot");
        assert!(report["total"].as_u64() >= report["stages"][1]["end_us"].as_u64());
    }
}
