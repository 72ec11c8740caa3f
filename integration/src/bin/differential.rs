//! Runs the corpus of [`integration::differential`] under two runtimes on this machine and prints
//! the report as JSON; the summary goes to standard error.
//!
//! Static, because the same program is the probe inside the containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use integration::differential::report::{Report, Row};
use integration::differential::{bundle, corpus, host, probe, run};

const USAGE: &str = "\
usage: differential [OPTION...]   runs the corpus and prints a report
       differential --list        prints the cases' names
options:
  --runc PATH   the runtime that is held against (default /usr/sbin/runc)
  --joey PATH   the runtime that is looked at (default /usr/local/bin/joey)
  --case TEXT   only the cases whose names have this text
  --work DIR    where bundles are made (default /run/joey-differential)";

struct Arguments {
    runc: PathBuf,
    joey: PathBuf,
    case: String,
    work: PathBuf,
    list: bool,
}

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    if Path::new(&program) == Path::new(probe::PATH) {
        println!("{}", probe::view());
        return ExitCode::SUCCESS;
    }
    match arguments().and_then(|arguments| compare(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("differential: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut read = Arguments {
        runc: "/usr/sbin/runc".into(),
        joey: "/usr/local/bin/joey".into(),
        case: String::new(),
        work: "/run/joey-differential".into(),
        list: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(option) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{option} has no value\n{USAGE}"))
        };
        match option.as_str() {
            "--runc" => read.runc = value()?.into(),
            "--joey" => read.joey = value()?.into(),
            "--case" => read.case = value()?,
            "--work" => read.work = value()?.into(),
            "--list" => read.list = true,
            _ => bail!("unknown option {option}\n{USAGE}"),
        }
    }
    Ok(read)
}

fn compare(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut cases = corpus::all();
    cases.retain(|case| case.name.contains(&arguments.case));
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(ExitCode::SUCCESS);
    }
    if cases.is_empty() {
        bail!("no case's name has {:?}: see --list", arguments.case);
    }
    let mut report = Report {
        whole: arguments.case.is_empty(),
        ..Report::default()
    };
    for (name, path) in [("runc", &arguments.runc), ("joey", &arguments.joey)] {
        report.versions.insert(name.into(), version(path)?);
    }
    nix::sys::prctl::set_child_subreaper(true)?;
    let parent = Path::new(host::CGROUPS).join(bundle::CGROUP);
    fs::create_dir_all(&parent).with_context(|| format!("make {}", parent.display()))?;
    for (number, case) in cases.iter().enumerate() {
        eprintln!("{:>3}/{} {}", number + 1, cases.len(), case.name);
        let runc = run::observe(case, &arguments.runc, &arguments.work)?;
        let joey = run::observe(case, &arguments.joey, &arguments.work)?;
        let row = Row::new(case.name, runc, joey);
        report.cases.insert(case.name.into(), row);
    }
    fs::remove_dir(&parent).with_context(|| format!("remove {}", parent.display()))?;
    fs::remove_dir(&arguments.work)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    eprint!("{}", report.summary());
    Ok(ExitCode::from(u8::from(!report.is_clean())))
}

fn version(runtime: &Path) -> anyhow::Result<String> {
    let output = Command::new(runtime)
        .arg("--version")
        .output()
        .with_context(|| format!("run {}", runtime.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .next()
        .map(str::to_owned)
        .with_context(|| format!("{} has no version", runtime.display()))
}
