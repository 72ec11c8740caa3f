//! critest, the conformance tests of the CRI.
//!
//! Each test has a critest of its own: one that hangs or breaks containerd then takes
//! no other with it, and is bounded in time from outside.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use integration::conformance::ginkgo::{self, Spec};
use integration::conformance::results::Outcome;
use integration::testbed::{Config, TestHost, build, repository};

use crate::suite::{self, Bed, End, Suite};

/// What a test may take. Those that wait for something give up after a minute each,
/// and an emulated test host is slow.
const LIMIT: Duration = Duration::from_secs(420);
/// What critest calls itself in ginkgo's names.
const SUITE: &str = "CRI validation";
const REPORT: &str = "/tmp/critest-report.json";

/// Runs it as [`suite::run`] says, and holds a whole run against docs/critest.md.
pub fn run() -> anyhow::Result<i32> {
    match suite::run("critest", Critest::new)? {
        Some(results) => suite::judge("critest", &results, Vec::new()),
        None => Ok(0),
    }
}

struct Critest {
    handler: String,
    bed: Bed,
    /// The last test failed.
    failed: bool,
}

impl Critest {
    fn new(handler: &str) -> anyhow::Result<Critest> {
        let mut config = Config::with_joey()?;
        config.images = "testhost/build-critest-images.sh".into();
        let guest = repository().join("integration/guest/critest");
        // By itself too: the suite's own would lie over the tree's.
        let containerd = "etc/containerd/config.toml";
        config.layer = config
            .layer
            .file(
                build("testhost/build-critest.sh", &[])?,
                "/usr/local/bin/critest",
                0o755,
            )
            .file(guest.join(containerd), format!("/{containerd}"), 0o644)
            .tree(guest);
        Ok(Critest {
            handler: handler.to_owned(),
            bed: Bed::new(config, boot)?,
            failed: false,
        })
    }

    fn report(&self) -> anyhow::Result<Vec<Spec>> {
        let output = self.bed.host.command(["cat", REPORT]).run()?;
        let text = output.success().context("critest left no report")?;
        ginkgo::parse(text.as_bytes()).context("critest's report")
    }
}

impl Suite for Critest {
    fn tests(&mut self, focus: &str) -> anyhow::Result<Vec<String>> {
        let dry = self.bed.host.command([
            "critest",
            "-ginkgo.dry-run",
            &format!("-ginkgo.focus={focus}"),
            &format!("-ginkgo.json-report={REPORT}"),
        ]);
        dry.run()?.success()?;
        Ok(self
            .report()?
            .into_iter()
            .filter(|spec| spec.outcome == Outcome::Passed)
            .map(|spec| spec.name)
            .collect())
    }

    fn one(&mut self, name: &str, log: &Path) -> anyhow::Result<Outcome> {
        let argv = [
            "sh",
            "-c",
            r#"rm -f "$0"; exec critest "$@""#,
            REPORT,
            "-ginkgo.no-color",
            &format!("-ginkgo.focus={}", ginkgo::focus(SUITE, name)),
            &format!("-runtime-handler={}", self.handler),
            &format!("-ginkgo.json-report={REPORT}"),
        ];
        let (output, outcome) = match self.bed.run(LIMIT, &argv)? {
            End::Broken(why) => return Ok(Outcome::failed(why)),
            End::Late(output, why) => (output, Outcome::failed(why)),
            End::Done(output) => {
                let outcome = match self.report() {
                    Ok(specs) => specs
                        .into_iter()
                        .find(|spec| spec.name == name)
                        .map(|spec| spec.outcome)
                        .with_context(|| format!("critest's report has no test {name:?}"))?,
                    Err(error) => Outcome::failed(format!("{error:#}")),
                };
                (output, outcome)
            }
        };
        self.failed = matches!(outcome, Outcome::Failed(_));
        if self.failed {
            suite::keep(log, &output)?;
        }
        Ok(outcome)
    }

    /// Only a test that failed leaves pods.
    fn clean_up(&mut self) -> anyhow::Result<Vec<String>> {
        if std::mem::take(&mut self.failed) {
            self.bed.host.shell("crictl rmp -fa").run()?;
        }
        Ok(Vec::new())
    }

    fn keep_logs(&self, directory: &Path) -> anyhow::Result<()> {
        let log = directory.join("containerd.log");
        Ok(self.bed.host.copy_out("/var/log/containerd.log", &log)?)
    }
}

fn boot(config: &Config) -> anyhow::Result<TestHost> {
    let host = TestHost::boot(config)?;
    host.start_containerd()?;
    Ok(host)
}
