//! `joeyctl bench`: how long microVMs take to start on this node. Without containerd, network
//! and containers, by the node's configuration; or of the sandboxes that run, as their shims
//! noted it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use shim::config::{Config, Mode};
use shim::guest::{self, Guest};
use shim::host::record::{self, Record};
use shim::pod::Size;
use shim::stages::{self, Stages};
use shim::vm::{Plan, Vm};
use shim::{pool, templates};

use crate::node;
use crate::waterfall::{self, Stage, Start};

/// Stands for containerd's namespace; no namespace begins with a dot.
const NAMESPACE: &str = ".bench";

/// Starts so many microVMs one after the other, and one before them that does not count:
/// as this node's sandboxes start, or, if that is asked, without a template.
pub fn run(config: &Config, runs: u32, cold: bool, json: bool) -> anyhow::Result<()> {
    if config.mode == Mode::Runc {
        bail!("by this configuration pods run on the host's kernel: there is no VM to start");
    }
    ensure!(runs > 0, "--runs must be at least 1");
    let config = Arc::new(Config {
        templates: config.uses_templates() && !cold,
        ..config.clone()
    });
    let starts = node::run(measure(&config, runs))?;
    let how = match config.templates {
        true => "from the template",
        false => "cold",
    };
    let title = format!("microVMs, from nothing to the agent's first answer, {how}");
    waterfall::print(&title, &starts, json)
}

async fn measure(config: &Arc<Config>, runs: u32) -> anyhow::Result<Vec<Start>> {
    if config.templates {
        templates::build(config).await?;
    }
    let mut starts = Vec::new();
    for number in 0..=runs {
        if config.templates {
            // As each sandbox does for the next.
            pool::fill(config.clone()).await;
        }
        let start = start(config, number).await;
        let start = start.with_context(|| format!("microVM {number}"))?;
        // The first one of a node formats the scratch template and reads files from disk.
        if number > 0 {
            starts.push(start);
        }
    }
    Ok(starts)
}

/// Tells what the starts of the sandboxes took that run on this node.
pub fn running(config: &Config, json: bool) -> anyhow::Result<()> {
    let starts: Vec<Start> = node::sandboxes(&config.state_dir)
        .iter()
        .filter_map(|record| noted(&config.state_dir, record))
        .collect();
    ensure!(!starts.is_empty(), "no sandbox runs on this node");
    waterfall::print(
        "the sandboxes of this node, without containers",
        &starts,
        json,
    )
}

/// As the shim writes it.
#[derive(Deserialize)]
struct Noted {
    total: u64,
    stages: Vec<Stage>,
}

/// What a shim noted; one that is still at it has not.
fn noted(state_dir: &Path, record: &Record) -> Option<Start> {
    let path = record::path(state_dir, &record.namespace, &record.id).join(stages::FILE);
    let noted: Noted = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(Start {
        total_us: noted.total,
        stages: noted.stages,
    })
}

/// Starts a microVM and ends it.
async fn start(config: &Arc<Config>, number: u32) -> anyhow::Result<Start> {
    let id = format!("bench-{}-{number}", std::process::id());
    let plan = Plan {
        cgroups_path: format!("/joey-{id}").into(),
        id,
        namespace: NAMESPACE.into(),
        bundle: None,
        netns: None,
        pod: Default::default(),
        socket: PathBuf::new(),
        size: Size::of_template(config),
        templates: true,
        config: config.clone(),
    };
    let stages = Arc::new(Stages::default());
    let begin = Instant::now();
    let (vm, _events) = Vm::start(&plan, &stages).await?;
    let answered = stages.time("first call", answer(&vm)).await;
    let total_us = u64::try_from(begin.elapsed().as_micros())?;
    vm.release().await;
    answered?;
    Ok(Start {
        total_us,
        stages: stages.list().into_iter().map(Stage::from).collect(),
    })
}

async fn answer(vm: &Vm) -> anyhow::Result<()> {
    let guest = Guest::connect(vm.vsock().clone()).await?;
    guest
        .guest
        .stats(guest::bounded(), &Default::default())
        .await
        .context("the agent does not answer")?;
    Ok(())
}
