//! `joeyctl template`: what sandboxes start from.

use std::sync::Arc;

use anyhow::bail;
use clap::Subcommand;
use shim::config::Config;
use shim::{pool, templates};

use crate::node;

/// What is to be done.
#[derive(Subcommand)]
pub enum Template {
    /// Makes the template of this node's kernel, agent and configuration unless it is
    /// there, as the first sandbox would.
    Build,
    /// Lists the templates in memory.
    List {
        /// All that is known, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Removes all templates and the VMs that wait for a pod. Sandboxes go on; the next
    /// one boots.
    Remove,
}

/// Does it.
pub fn run(config: &Config, what: Template) -> anyhow::Result<()> {
    match what {
        Template::Build => build(config),
        Template::List { json } => list(config, json),
        Template::Remove => remove(config),
    }
}

fn build(config: &Config) -> anyhow::Result<()> {
    if !config.uses_templates() {
        bail!("sandboxes of this node boot: set templates, and not console, in the configuration");
    }
    let config = Arc::new(config.clone());
    let (key, made) = node::run(async { Ok(templates::build(&config).await?) })?;
    println!("{key} {}", if made { "made" } else { "is there" });
    Ok(())
}

fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let all = templates::list(&config.state_dir);
    if json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{:<34} {:>8} {:>10} {:>6}  STATE",
        "TEMPLATE", "VM MIB", "USED KIB", "SPARE"
    );
    for one in all {
        println!(
            "{:<34} {:>8} {:>10} {:>6}  {}",
            one.key,
            one.memory_mib,
            one.bytes / 1024,
            pool::count(config, &one.key),
            if one.current { "used" } else { "outdated" }
        );
    }
    Ok(())
}

fn remove(config: &Config) -> anyhow::Result<()> {
    for key in templates::remove_all(&config.state_dir)? {
        println!("removed {key}");
    }
    let ended = pool::drain(config);
    if ended > 0 {
        println!("ended {ended} spare VMs");
    }
    Ok(())
}
