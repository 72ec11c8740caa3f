//! Runs critest in a test host, with runc and with joey, and compares the two.
//!
//! Each test has a critest of its own: one that hangs or breaks containerd then takes
//! no other with it, and is bounded in time from outside.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use integration::critest::document;
use integration::critest::results::{self, Handler, Outcome, Results};
use integration::testbed::{Config, TestHost, build, repository};

use crate::write;

/// What a test may take. Those that wait for something give up after a minute each,
/// and an emulated test host is slow.
const LIMIT: Duration = Duration::from_secs(420);
/// How often a broken test host is replaced.
const REPLACEMENTS: usize = 3;
/// What critest calls itself in ginkgo's names.
const SUITE: &str = "CRI validation";
const REPORT: &str = "/tmp/critest-report.json";

/// Runs what the environment asks for. A run of all tests is written to
/// `target/critest.json` and held against docs/critest.md; the logs of tests that
/// failed are in `target/critest`.
pub fn run() -> anyhow::Result<i32> {
    let handlers = std::env::var("CRITEST_HANDLERS").unwrap_or_else(|_| "runc,joey".into());
    let focus = std::env::var("CRITEST_FOCUS").unwrap_or_default();
    let target = repository().join("target");
    let json = target.join("critest.json");
    let mut results: Results = match fs::read(&json) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged: remove it", json.display()))?,
        Err(_) => Results::new(),
    };
    for name in handlers.split(',') {
        let logs = target.join("critest").join(name);
        let mut run = Run::new(name, logs)?;
        let done = run.all(&focus)?;
        let Handler {
            passed,
            failed,
            skipped,
        } = &done;
        println!(
            "{name}: {} passed, {} failed, {} skipped",
            passed.len(),
            failed.len(),
            skipped.len()
        );
        if focus.is_empty() {
            results.insert(name.to_owned(), done);
            write(&json, &serde_json::to_vec_pretty(&results)?)?;
        }
    }
    if !focus.is_empty() {
        return Ok(0);
    }

    let path = repository().join("docs/critest.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let complaints = document::complaints(&results, &document::list(&text)?);
    for complaint in &complaints {
        println!("{complaint}");
    }
    write(&path, document::with_table(&text, &results)?.as_bytes())?;
    Ok(i32::from(!complaints.is_empty()))
}

/// The tests of one handler.
struct Run {
    handler: String,
    logs: PathBuf,
    config: Config,
    host: TestHost,
    replacements: usize,
}

impl Run {
    fn new(handler: &str, logs: PathBuf) -> anyhow::Result<Run> {
        if !["runc", "joey"].contains(&handler) {
            bail!(
                "the test host has no runtime handler {handler:?}: CRITEST_HANDLERS is a list of runc and joey"
            );
        }
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
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
        let host = boot(&config)?;
        Ok(Run {
            handler: handler.to_owned(),
            logs,
            config,
            host,
            replacements: REPLACEMENTS,
        })
    }

    fn all(&mut self, focus: &str) -> anyhow::Result<Handler> {
        let dry = self.host.command([
            "critest",
            "-ginkgo.dry-run",
            &format!("-ginkgo.focus={focus}"),
            &format!("-ginkgo.json-report={REPORT}"),
        ]);
        dry.run()?.success()?;
        let names: Vec<_> = self
            .report()?
            .into_iter()
            .filter(|spec| spec.outcome == Outcome::Passed)
            .map(|spec| spec.name)
            .collect();
        if names.is_empty() {
            bail!("critest has no test that matches {focus:?}");
        }
        let mut handler = Handler::default();
        for (number, name) in names.iter().enumerate() {
            let begin = Instant::now();
            let outcome = self.one(number, name)?;
            handler.add(name, &outcome);
            let (word, why) = match &outcome {
                Outcome::Passed => ("passed ", ""),
                Outcome::Skipped(why) => ("skipped", why.as_str()),
                Outcome::Failed(why) => ("FAILED ", why.as_str()),
            };
            println!(
                "{} {:>3}/{} {word} {:>4.0} s  {name}",
                self.handler,
                number + 1,
                names.len(),
                begin.elapsed().as_secs_f64()
            );
            if !why.is_empty() {
                println!("    {}", why.trim().replace('\n', "\n    "));
            }
        }
        let log = self.logs.join("containerd.log");
        self.host.copy_out("/var/log/containerd.log", &log)?;
        Ok(handler)
    }

    fn one(&mut self, number: usize, name: &str) -> anyhow::Result<Outcome> {
        let seconds = LIMIT.as_secs().to_string();
        let focus = format!("-ginkgo.focus={}", results::focus(SUITE, name));
        let handler = format!("-runtime-handler={}", self.handler);
        let report = format!("-ginkgo.json-report={REPORT}");
        let command = self
            .host
            .command([
                "sh",
                "-c",
                r#"rm -f "$0"; exec timeout -k 10 "$@""#,
                REPORT,
                &seconds,
                "critest",
                "-ginkgo.no-color",
                &focus,
                &handler,
                &report,
            ])
            .limit(LIMIT + Duration::from_secs(60));
        let output = match command.run() {
            Ok(output) => output,
            Err(error) => {
                let why = format!("{error}");
                if self.replacements == 0 {
                    bail!("{why}");
                }
                self.replacements -= 1;
                self.host = boot(&self.config)?;
                return Ok(Outcome::Failed(why));
            }
        };
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let outcome = match self.report() {
            _ if output.status == 124 || output.status == 137 => {
                Outcome::Failed(format!("no end within {seconds} s"))
            }
            Ok(specs) => specs
                .into_iter()
                .find(|spec| spec.name == name)
                .map(|spec| spec.outcome)
                .with_context(|| format!("critest's report has no test {name:?}"))?,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        if let Outcome::Failed(_) = &outcome {
            write(&self.logs.join(format!("{:03}.log", number + 1)), &said)?;
            // What it left would be in the way of the others.
            self.host.shell("crictl rmp -fa").run()?;
        }
        Ok(outcome)
    }

    fn report(&self) -> anyhow::Result<Vec<results::Spec>> {
        let output = self.host.command(["cat", REPORT]).run()?;
        let text = output.success().context("critest left no report")?;
        results::parse(text.as_bytes()).context("critest's report")
    }
}

fn boot(config: &Config) -> anyhow::Result<TestHost> {
    let host = TestHost::boot(config)?;
    host.start_containerd()?;
    Ok(host)
}
