//! What conformance suites have in common: they run with runc and with joey, each in a test
//! host of its own, and the two are compared.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use integration::conformance::document;
use integration::conformance::results::{Handler, Outcome, Results, side_by_side};
use integration::testbed::{Config, Output, TestHost, repository};

use crate::write;

/// How often a broken test host is replaced.
const REPLACEMENTS: usize = 3;

/// A suite's tests in a test host, with one runtime.
pub trait Suite {
    /// The names of those that `focus` chooses; an empty one chooses all.
    fn tests(&mut self, focus: &str) -> anyhow::Result<Vec<String>>;

    /// Runs one. When it fails, what it said is written to `log`.
    fn one(&mut self, name: &str, log: &Path) -> anyhow::Result<Outcome>;

    /// Removes what the last test left, and names it.
    fn clean_up(&mut self) -> anyhow::Result<Vec<String>>;

    /// Adds to the logs when all have run.
    fn keep_logs(&self, _directory: &Path) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Runs what the environment asks for of the suite `name`: `NAME_FOCUS` says which tests,
/// `NAME_HANDLERS` with what. Logs of tests that failed are in `target/NAME`. A run of all
/// tests is written to `target/NAME.json`, which is returned: with the results of the last
/// run for the runtime that had none now.
pub fn run<S: Suite>(
    name: &str,
    open: impl Fn(&str) -> anyhow::Result<S>,
) -> anyhow::Result<Option<Results>> {
    let asked = |what: &str| std::env::var(format!("{}_{what}", name.to_uppercase())).ok();
    let handlers = asked("HANDLERS").unwrap_or_else(|| "runc,joey".into());
    let focus = asked("FOCUS").unwrap_or_default();
    let target = repository().join("target");
    let json = target.join(format!("{name}.json"));
    let mut results: Results = match fs::read(&json) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged: remove it", json.display()))?,
        Err(_) => Results::new(),
    };
    for handler in handlers.split(',') {
        if !["runc", "joey"].contains(&handler) {
            bail!(
                "the test host has no runtime {handler:?}: {}_HANDLERS is a list of runc and joey",
                name.to_uppercase()
            );
        }
        let logs = target.join(name).join(handler);
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let mut suite = open(handler)?;
        let done = all(&mut suite, handler, &focus, &logs)?;
        suite.keep_logs(&logs)?;
        println!(
            "{handler}: {} passed, {} failed, {} skipped",
            done.passed.len(),
            done.failed.len(),
            done.skipped.len()
        );
        if focus.is_empty() {
            results.insert(handler.to_owned(), done);
            write(&json, &serde_json::to_vec_pretty(&results)?)?;
        }
    }
    Ok(focus.is_empty().then_some(results))
}

fn all(suite: &mut impl Suite, handler: &str, focus: &str, logs: &Path) -> anyhow::Result<Handler> {
    let names = suite.tests(focus)?;
    if names.is_empty() {
        bail!("no test matches {focus:?}");
    }
    let mut done = Handler::default();
    for (number, name) in names.iter().enumerate() {
        let begin = Instant::now();
        let outcome = suite.one(name, &logs.join(format!("{:03}.log", number + 1)))?;
        let (word, why) = match &outcome {
            Outcome::Passed => ("passed ", String::new()),
            Outcome::Skipped(why) => ("skipped", why.clone()),
            Outcome::Failed(failure) => ("FAILED ", failure.findings.join("\n")),
        };
        println!(
            "{handler} {:>3}/{} {word} {:>4.0} s  {name}",
            number + 1,
            names.len(),
            begin.elapsed().as_secs_f64()
        );
        let left = suite.clean_up()?;
        for line in why.trim().lines().chain(left.iter().map(String::as_str)) {
            println!("    {line}");
        }
        done.add(name, outcome);
        if !left.is_empty() {
            done.leftovers.insert(name.clone(), left);
        }
    }
    Ok(done)
}

/// Shows the results side by side, holds them against docs/NAME.md and writes its table.
/// Returns the exit code: that of a failure when the document or `more` has to complain.
pub fn judge(name: &str, results: &Results, more: Vec<String>) -> anyhow::Result<i32> {
    println!("runc     joey");
    for (test, [runc, joey]) in side_by_side(results) {
        println!("{runc:<8} {joey:<8} {test}");
    }
    let path = repository().join(format!("docs/{name}.md"));
    let here = || path.display().to_string();
    let text = fs::read_to_string(&path).with_context(here)?;
    let list = document::list(&text).with_context(here)?;
    let mut complaints = document::complaints(results, &list);
    complaints.extend(more);
    for complaint in &complaints {
        println!("{complaint}");
    }
    let text = document::with_table(&text, results).with_context(here)?;
    write(&path, text.as_bytes())?;
    Ok(i32::from(!complaints.is_empty()))
}

/// A test host that is replaced when a test breaks it.
pub struct Bed {
    config: Config,
    boot: fn(&Config) -> anyhow::Result<TestHost>,
    replacements: usize,
    /// The present one.
    pub host: TestHost,
}

/// How a bounded command ended.
pub enum End {
    /// By itself.
    Done(Output),
    /// It was killed when its time was over; what it had said until then, and a message.
    Late(Output, String),
    /// The test host broke and is another one now; with a message.
    Broken(String),
}

impl Bed {
    /// Boots by `boot`.
    pub fn new(
        config: Config,
        boot: fn(&Config) -> anyhow::Result<TestHost>,
    ) -> anyhow::Result<Bed> {
        Ok(Bed {
            host: boot(&config)?,
            config,
            boot,
            replacements: REPLACEMENTS,
        })
    }

    /// Runs a program with arguments for no longer than `limit` of the test host's time.
    pub fn run(&mut self, limit: Duration, argv: &[&str]) -> anyhow::Result<End> {
        let seconds = limit.as_secs().to_string();
        let bounded = ["timeout", "-k", "10", &seconds];
        let command = self
            .host
            .command(bounded.iter().chain(argv).copied())
            .limit(limit + Duration::from_secs(60));
        match command.run() {
            Ok(output) if output.status == 124 || output.status == 137 => {
                Ok(End::Late(output, format!("no end within {seconds} s")))
            }
            Ok(output) => Ok(End::Done(output)),
            Err(error) if self.replacements == 0 => Err(error.into()),
            Err(error) => {
                self.replacements -= 1;
                self.host = (self.boot)(&self.config)?;
                Ok(End::Broken(error.to_string()))
            }
        }
    }
}

/// Keeps what a test that failed said.
pub fn keep(log: &Path, output: &Output) -> anyhow::Result<()> {
    write(log, &[output.stdout.as_slice(), &output.stderr].concat())
}
