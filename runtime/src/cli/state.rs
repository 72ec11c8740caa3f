//! `state`, and the description of a container that `list` prints too.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use std::collections::HashMap;

use anyhow::{Context, Result};
use clap::Args;
use runtime::{Container, Status};
use serde::Serialize;

use super::Global;

#[derive(Debug, Args)]
pub(super) struct State {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
}

impl State {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let state_dir = global.state_dir();
        let container = Container::load(&state_dir, &self.id)?;
        let description = Description::new(&container, &state_dir)?;
        println!("{}", serde_json::to_string_pretty(&description)?);
        Ok(())
    }
}

/// What callers are told about a container: the state of the specification, and what runc adds.
#[derive(Debug, Serialize)]
pub(super) struct Description {
    #[serde(rename = "ociVersion")]
    version: String,
    pub id: String,
    /// 0 when it is stopped.
    pub pid: u32,
    pub status: String,
    pub bundle: PathBuf,
    rootfs: PathBuf,
    pub created: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    pub owner: String,
}

impl Description {
    pub(super) fn new(container: &Container, state_dir: &Path) -> Result<Self> {
        let spec = container.spec();
        let status = container.status();
        let uid = std::fs::metadata(state_dir.join(container.id()))
            .with_context(|| format!("the state of {}", container.id()))?
            .uid();
        let root = spec.root().as_ref().map(|root| root.path().clone());
        Ok(Self {
            version: spec.version().clone(),
            id: container.id().to_owned(),
            pid: if status == Status::Stopped {
                0
            } else {
                container.pid()
            },
            status: status.to_string(),
            bundle: container.bundle().to_owned(),
            rootfs: container.bundle().join(root.unwrap_or_default()),
            created: humantime::format_rfc3339_nanos(container.created()).to_string(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            owner: user_name(uid).unwrap_or_else(|| format!("#{uid}")),
        })
    }
}

/// The name of a user in /etc/passwd: a static program has no other name services.
fn user_name(uid: u32) -> Option<String> {
    let table = std::fs::read_to_string("/etc/passwd").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
