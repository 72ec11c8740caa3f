//! Pods as the CRI client sees them: RunPodSandbox, request to answer, and a container in
//! it, create and start.

use std::time::{Duration, Instant};

use anyhow::Context;
use integration::cri::{ContainerPlan, Cri, Pod, PodPlan};
use integration::perf::report::{Case, Run};
use tokio::time::sleep;

use crate::Arguments;
use crate::rounds::{LIMIT, Rounds, bounded};

/// A way to run pods.
#[derive(Clone, Copy)]
struct Way {
    /// The case of its sandboxes.
    pod: &'static str,
    /// The case of a container in them, where it is measured.
    container: Option<&'static str>,
    /// The runtime handler.
    handler: &'static str,
    /// joey's configuration.
    config: &'static str,
}

/// Where joey finds it; the test host has none of its own.
const CONFIG: &str = "/etc/joey/config.toml";

const WAYS: [Way; 4] = [
    Way {
        pod: "runc_pod",
        container: None,
        handler: "runc",
        config: "",
    },
    Way {
        pod: "joey_runc_pod",
        container: None,
        handler: "joey-runc",
        config: "",
    },
    Way {
        pod: "joey_cold",
        container: None,
        handler: "joey",
        config: "templates = false\n",
    },
    Way {
        pod: "joey_template",
        container: Some("joey_container"),
        handler: "joey",
        config: "",
    },
];

/// Until the host has nothing to do any more: the kernel takes the last pod's network apart
/// behind our back, with a lock that the next one needs. Its clock skips this.
const SETTLE: Duration = Duration::from_secs(1);

/// Measures those that are asked for; a container's with its pod.
pub async fn measure(
    arguments: &Arguments,
    rounds: &mut Rounds,
    cri: &mut Cri,
) -> anyhow::Result<Vec<(String, Case)>> {
    let ways: Vec<Way> = WAYS
        .into_iter()
        .map(|way| Way {
            container: way.container.filter(|name| arguments.wants(name)),
            ..way
        })
        .filter(|way| arguments.wants(way.pod) || way.container.is_some())
        .collect();
    let names: Vec<String> = ways
        .iter()
        .flat_map(|way| [Some(way.pod), way.container])
        .flatten()
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    if ways.iter().any(|way| way.pod == "joey_template") {
        let _ = std::fs::remove_file(CONFIG);
        let made = std::process::Command::new("joeyctl")
            .args(["template", "build"])
            // Ours is for the report.
            .stdout(std::io::stderr())
            .status()
            .context("cannot run joeyctl")?;
        anyhow::ensure!(made.success(), "joeyctl cannot make a template");
    }
    rounds
        .measure(&names, async |round| {
            let mut runs = Vec::new();
            for way in &ways {
                runs.extend(life(cri, way, round).await.context(way.pod)?);
            }
            Ok(runs)
        })
        .await
}

/// A pod, removed again: how long it took to start and, if that is asked, its container.
async fn life(cri: &mut Cri, way: &Way, round: usize) -> anyhow::Result<Vec<Run>> {
    let plan = PodPlan::new(
        way.handler,
        &format!("bench-{}-{round}", way.pod.replace('_', "-")),
        false,
    );
    std::fs::create_dir_all("/etc/joey")?;
    std::fs::write(CONFIG, way.config)?;
    sleep(SETTLE).await;
    let begin = Instant::now();
    let pod = bounded(LIMIT, cri.run_pod(&plan)).await.context("start")?;
    let total = begin.elapsed();
    let stages = stages_of(&pod.id);
    let container = match way.container {
        Some(_) => Some(bounded(LIMIT, run_container(cri, &pod)).await),
        None => None,
    };
    // With its pod a container goes too.
    cri.end_pod(&pod.id).await?;
    let mut runs = vec![Run {
        total,
        stages: stages?,
    }];
    if let Some(container) = container {
        runs.push(container.context("container")?);
    }
    Ok(runs)
}

/// Creates and starts a container that does nothing, both requests together.
pub async fn run_container(cri: &mut Cri, pod: &Pod) -> anyhow::Result<Run> {
    let begin = Instant::now();
    let id = cri.create(pod, "idle", &ContainerPlan::idle()).await?;
    let created = begin.elapsed();
    cri.start(&id).await?;
    let total = begin.elapsed();
    Ok(Run {
        total,
        stages: vec![
            ("create".to_owned(), Duration::ZERO, created),
            ("start".to_owned(), created, total),
        ],
    })
}

/// What the shim noted of a sandbox's start; nothing of one that has no VM.
fn stages_of(sandbox: &str) -> anyhow::Result<Vec<(String, Duration, Duration)>> {
    let path = format!("/run/joey/k8s.io/{sandbox}/stages.json");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| path.clone())?,
    };
    let report: serde_json::Value = serde_json::from_str(&text).with_context(|| path)?;
    let micros = |value: &serde_json::Value| Duration::from_micros(value.as_u64().unwrap_or(0));
    Ok(report["stages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|stage| {
            let name = stage["name"].as_str().unwrap_or("?").to_owned();
            (name, micros(&stage["start_us"]), micros(&stage["end_us"]))
        })
        .collect())
}
