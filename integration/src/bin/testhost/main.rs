//! The test host for people and make: a shell in it, or commands with their
//! output as it comes.

#[cfg(feature = "drivers")]
mod bench;
#[cfg(feature = "drivers")]
mod budget;
mod conformance;
mod critest;
#[cfg(feature = "drivers")]
mod density;
mod differential;
#[cfg(feature = "drivers")]
mod inner;
mod suite;
mod terminal;

use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use integration::testbed::{Config, Event, TestHost};

const USAGE: &str = "\
usage: testhost [OPTION...] shell          a shell in a new test host
       testhost [OPTION...] run COMMAND... a program with arguments, or one shell command
       testhost [OPTION...] demo           the demo of the README
       testhost bench [RUNS [CASES]]       the benches, on the virtual clock (default 31 runs);
                                           CASES chooses less, by names with commas
       testhost budget [FILE]              a short bench, held against integration/perf/budget.toml
       testhost rate [NUMBERS]             the host's busy time for each of so many sandboxes
                                           that start at once (default 1,10,50)
       testhost density [OPTION...]        many idle sandboxes at once (--help lists options)
       testhost critest                    critest with runc and with joey; CRITEST_FOCUS (a Go
                                           regular expression) and CRITEST_HANDLERS choose less
       testhost conformance                the OCI's validation suite with runc and with joey;
                                           CONFORMANCE_FOCUS (names of programs, with commas)
                                           and CONFORMANCE_HANDLERS choose less
       testhost differential [OPTION...]   specs under runc and joey's command line; with options
                                           (--case TEXT) nothing is written
       testhost faults|soak [OPTION...]    fault injection; many pods (--help lists options)
options:
  --bare            without joey and without containerd running
  --virtual-clock   one processor, on which an instruction takes a nanosecond
  --processors N    number of processors (default 1)
  --memory MIB      memory (default 4096)";

/// A day: people decide themselves when they have waited long enough.
const LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

const DEMO: &str = include_str!("../../../scripts/demo.sh");

#[derive(Debug, Default)]
struct Options {
    bare: bool,
    virtual_clock: bool,
    processors: Option<u32>,
    memory_mib: Option<u32>,
}

fn main() -> ExitCode {
    match run() {
        // Exit codes of commands fit in a byte.
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("testhost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<i32> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut options = Options::default();
    while let Some(option) = arguments.next_if(|word| word.starts_with("--")) {
        let mut number = || match arguments.next().map(|word| word.parse()) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => bail!("{option} wants a number\n{USAGE}"),
        };
        match option.as_str() {
            "--bare" => options.bare = true,
            "--virtual-clock" => options.virtual_clock = true,
            "--processors" => options.processors = number()?,
            "--memory" => options.memory_mib = number()?,
            _ => bail!("unknown option {option}\n{USAGE}"),
        }
    }
    let verb = arguments.next().unwrap_or_default();
    let words: Vec<String> = arguments.collect();
    match (verb.as_str(), words.as_slice()) {
        ("shell", []) => shell(&boot(&options)?),
        ("demo", []) => stream(boot(&options)?.command(["bash", "-s"]), DEMO.as_bytes()),
        #[cfg(feature = "drivers")]
        ("bench", []) => bench::run("31", None),
        #[cfg(feature = "drivers")]
        ("bench", [runs]) => bench::run(runs, None),
        #[cfg(feature = "drivers")]
        ("bench", [runs, cases]) => bench::run(runs, Some(cases)),
        #[cfg(feature = "drivers")]
        ("budget", []) => budget::run(None),
        #[cfg(feature = "drivers")]
        ("budget", [file]) => budget::run(Some(file)),
        #[cfg(feature = "drivers")]
        ("rate", []) => bench::rate("1,10,50"),
        #[cfg(feature = "drivers")]
        ("rate", [at_once]) => bench::rate(at_once),
        #[cfg(feature = "drivers")]
        ("density", options) => density::run(options),
        #[cfg(feature = "drivers")]
        ("faults" | "soak", options) => inner::run(&verb, options),
        ("critest", []) => critest::run(),
        ("conformance", []) => conformance::run(),
        ("differential", options) => differential::run(options),
        ("run", [script]) => stream(boot(&options)?.shell(script), std::io::empty()),
        ("run", [_, ..]) => stream(boot(&options)?.command(words), std::io::empty()),
        _ => bail!("{USAGE}"),
    }
}

fn boot(options: &Options) -> anyhow::Result<TestHost> {
    let mut config = if options.bare {
        Config::default()
    } else {
        Config::with_joey()?
    };
    config.virtual_clock = options.virtual_clock;
    config.processors = options.processors.unwrap_or(config.processors);
    config.memory_mib = options.memory_mib.unwrap_or(config.memory_mib);
    let begin = Instant::now();
    let host = TestHost::boot(&config)?;
    if !options.bare {
        host.start_containerd()?;
    }
    eprintln!(
        "test host: ready after {:.1} s ({:?})",
        begin.elapsed().as_secs_f64(),
        config.acceleration
    );
    Ok(host)
}

fn stream(
    command: integration::testbed::Command<'_>,
    input: impl std::io::Read + Send,
) -> anyhow::Result<i32> {
    Ok(command.limit(LIMIT).stream(input, print)?)
}

fn print(event: Event) -> std::io::Result<()> {
    match event {
        Event::Stdout(bytes) => stdout().write_all(&bytes).and_then(|()| stdout().flush()),
        Event::Stderr(bytes) => stderr().write_all(&bytes),
        Event::Exit(_) => Ok(()),
    }
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn shell(host: &TestHost) -> anyhow::Result<i32> {
    if stdin().is_terminal() {
        terminal::interact(host.command(["bash", "--login"]).directory("/root"))
    } else {
        stream(host.command(["bash"]).directory("/root"), stdin())
    }
}
