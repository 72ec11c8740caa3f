//! Runs the same specs under runc and under joey's command line in a test host, and judges what
//! differs.

use anyhow::Context;
use integration::differential::document;
use integration::differential::report::Report;
use integration::install;
use integration::testbed::{Config, Layer, TestHost, build, repository};

use crate::{inner, write};

/// Where both programs are in the test host.
const JOEY: &str = "/usr/local/bin/joey";
const DRIVER: &str = "/usr/local/libexec/differential";

/// Passes on the driver's options. A whole run is written to `target/differential.json` and into
/// docs/differential.md.
pub fn run(options: &[String]) -> anyhow::Result<i32> {
    let driver = build("testhost/build-init.sh", &["differential"])?;
    install::build()?;
    let config = Config {
        layer: Layer::new()
            .file(driver, DRIVER, 0o755)
            .file(install::binary("joey"), JOEY, 0o755),
        ..Config::default()
    };
    let host = TestHost::boot(&config)?;
    let words = [DRIVER, "--joey", JOEY].map(str::to_owned);
    let words = words.into_iter().chain(options.iter().cloned());
    let (status, json) = inner::output(host.command(words))?;
    if !options.is_empty() || status > 1 {
        return Ok(status);
    }
    let report: Report = serde_json::from_slice(&json).context("the driver's report")?;
    let path = repository().join("target/differential.json");
    write(&path, &json)?;
    println!("all that was seen is in {}", path.display());
    let path = repository().join("docs/differential.md");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    write(&path, document::with_results(&text, &report)?.as_bytes())?;
    Ok(status)
}
