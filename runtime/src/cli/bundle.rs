//! The bundle of a container: its directory, and the spec in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use oci_spec::runtime::Spec;

const CONFIG: &str = "config.json";

/// Where the bundle is.
#[derive(Debug, Args)]
pub(super) struct BundleDir {
    /// The bundle's directory (default: the current directory)
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

impl BundleDir {
    /// The directory and the spec.
    pub(super) fn load(&self) -> Result<(PathBuf, Spec)> {
        let named = self.bundle.as_deref().unwrap_or(Path::new("."));
        let bundle = named
            .canonicalize()
            .with_context(|| format!("bundle {}", named.display()))?;
        let path = bundle.join(CONFIG);
        let text =
            std::fs::read(&path).with_context(|| format!("read the spec {}", path.display()))?;
        let spec = serde_json::from_slice(&text)
            .with_context(|| format!("the spec {}", path.display()))?;
        Ok((bundle, spec))
    }
}
