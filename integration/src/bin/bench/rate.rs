//! What sandboxes cost the host that start and end at once: its busy time for each of them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use integration::cri::{Cri, PodPlan};
use integration::perf::busy::Mark;
use integration::perf::report::{Rate, RateReport};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Arguments;
use crate::rounds::{LIMIT, Rounds, bounded};

const HANDLERS: [&str; 2] = ["runc", "joey"];
/// Sandboxes that each figure is made from, as far as that can be divided.
const SANDBOXES: usize = 50;
/// Until what is removed is gone: the kernel's work on namespaces, the end of shims. A host
/// with nothing to do skips it.
const SETTLE: Duration = Duration::from_secs(1);
/// What a wave may take longer for each of its sandboxes; they take half of it. A guest that
/// hangs is emulated spinning until then.
const EACH: Duration = Duration::from_millis(500);
/// All pods of this driver have such names.
const NAME: &str = "rate-";

/// Measures waves of these sizes.
pub async fn measure(
    arguments: &Arguments,
    rounds: &mut Rounds,
    cri: &mut Cri,
) -> anyhow::Result<RateReport> {
    let mut report = RateReport {
        unit: arguments.unit.clone(),
        handlers: Default::default(),
    };
    for handler in HANDLERS {
        // What the first pod of a host makes for all later ones.
        repeated(rounds, cri, handler, 1).await?;
        for at_once in &arguments.at_once {
            let waves = SANDBOXES.div_ceil(*at_once);
            let mut busy = Duration::ZERO;
            let mut last_ready = Vec::new();
            for _ in 0..waves {
                let wave = repeated(rounds, cri, handler, *at_once).await?;
                busy += wave.busy;
                last_ready.push(wave.last_ready);
            }
            let rate = Rate::of(busy, waves * at_once, &last_ready);
            eprintln!("bench: {handler}, {at_once} at once: {rate:?}");
            report
                .handlers
                .entry(handler.to_owned())
                .or_default()
                .insert(*at_once, rate);
        }
    }
    Ok(report)
}

/// A wave that was not lost.
async fn repeated(
    rounds: &mut Rounds,
    cri: &mut Cri,
    handler: &str,
    at_once: usize,
) -> anyhow::Result<Wave> {
    let title = format!("{handler}, {at_once} at once");
    rounds
        .once(&title, async |_| {
            let limit = LIMIT + EACH * u32::try_from(at_once)?;
            let wave = bounded(limit, Wave::run(cri, handler, at_once)).await;
            if wave.is_err() {
                remove_all(cri).await?;
            }
            wave
        })
        .await
}

/// Sandboxes that were made and removed together.
struct Wave {
    /// How long the host was busy with it.
    busy: Duration,
    /// When the last sandbox was ready, since the first was asked for.
    last_ready: Duration,
}

impl Wave {
    async fn run(cri: &mut Cri, handler: &str, at_once: usize) -> anyhow::Result<Wave> {
        let mark = Mark::now()?;
        let begin = Instant::now();
        let mut starts = JoinSet::new();
        for number in 0..at_once {
            let mut cri = cri.clone();
            let plan = PodPlan::new(handler, &format!("{NAME}{handler}-{number}"), false);
            starts.spawn(async move { cri.run_pod(&plan).await });
        }
        let mut pods = Vec::new();
        while let Some(pod) = starts.join_next().await {
            pods.push(pod??);
        }
        let last_ready = begin.elapsed();
        let mut ends = JoinSet::new();
        for pod in pods {
            let mut cri = cri.clone();
            ends.spawn(async move { cri.end_pod(&pod.id).await });
        }
        while let Some(end) = ends.join_next().await {
            end??;
        }
        tokio::time::sleep(SETTLE).await;
        Ok(Wave {
            busy: mark.busy()?,
            last_ready,
        })
    }
}

/// Removes what a lost wave left, so that its names are free again.
async fn remove_all(cri: &mut Cri) -> anyhow::Result<()> {
    for _ in 0..60 {
        let pods = cri.pods().await?;
        if pods.is_empty() {
            return Ok(());
        }
        for pod in pods {
            // containerd is at it too when a start was given up.
            let _ = timeout(LIMIT, cri.end_pod(&pod.id)).await;
        }
        tokio::time::sleep(SETTLE).await;
    }
    let left = cri.pods().await.context("what a lost wave left")?.len();
    ensure!(left == 0, "{left} pods of a lost wave cannot be removed");
    Ok(())
}
