//! Runs one case under one runtime and notes what is seen of it.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use super::bundle::Place;
use super::case::{Case, Step};
use super::compare::{NAMES, SAID, shape};
use super::console::Console;
use super::host::{self, Before};

/// What one command, or the container's process, may take in an emulated test host.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two tries of [`Step::Until`].
const PAUSE: Duration = Duration::from_millis(50);
/// What the runtime finds in its environment.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a case in a directory of its own below `work`, and leaves nothing.
///
/// The process must be a subreaper: containers' processes come to it when the runtime ends.
///
/// # Errors
/// When the case cannot be prepared or cleaned up. What the runtime does is no error.
pub fn observe(case: &Case, runtime: &Path, work: &Path) -> anyhow::Result<Value> {
    let place = Place::new(work, case, runtime);
    let outermost = Before::take(&place);
    fs::create_dir_all(&place.dir)?;
    place
        .make(case)
        .with_context(|| format!("{}: make the bundle", case.name))?;
    let result = prepared(case, &place, runtime);
    shell(case, &place, case.tidy, None)?;
    outermost
        .clean(&place)
        .with_context(|| format!("{}: clean up", case.name))?;
    result
}

fn prepared(case: &Case, place: &Place, runtime: &Path) -> anyhow::Result<Value> {
    let (code, said) = shell(case, place, case.prepare, None)?;
    anyhow::ensure!(code == 0, "{}: its preparation failed: {said}", case.name);
    let before = Before::take(place);
    let mut life = Life {
        case,
        place,
        runtime,
        console: None,
        reader: None,
        calls: 0,
        errors_from: 0,
        pid: None,
    };
    if case.terminal {
        life.console = Some(Console::listen(&place.dir.join("console"))?);
    }
    let mut steps = Vec::new();
    for step in &case.steps {
        let (outcome, goes_on) = life.take(step)?;
        steps.push(outcome);
        if !goes_on {
            break;
        }
    }
    let left = before.left(place);
    // What is left is noted; the runtime cleans better than we do.
    if left["state"]
        .as_array()
        .is_some_and(|left| !left.is_empty())
    {
        life.call("cleanup", &["delete", "--force", &place.id])?;
    }
    Ok(json!({ "steps": steps, "left": left }))
}

/// A case on its way.
struct Life<'a> {
    case: &'a Case,
    place: &'a Place,
    runtime: &'a Path,
    console: Option<Console>,
    reader: Option<JoinHandle<Vec<u8>>>,
    calls: usize,
    /// How much of the process's standard error was there when `create` ended.
    errors_from: usize,
    pid: Option<u32>,
}

impl Life<'_> {
    /// Takes a step; false with its outcome when the case ends there.
    fn take(&mut self, step: &Step) -> anyhow::Result<(Value, bool)> {
        Ok(match step {
            Step::Create(options) => return self.create(options),
            Step::Call(words) => (self.call(words[0], words)?.0, true),
            Step::Shape(words) => {
                let (mut outcome, text) = self.call(words[0], words)?;
                let value: Option<Value> = serde_json::from_str(&text).ok();
                outcome["output"] = value.map_or("no JSON".into(), |value| shape(&value));
                (outcome, true)
            }
            Step::Wait => (self.wait()?, true),
            Step::Look => {
                let seen = self.pid.map_or(Value::Null, host::look);
                (json!({ "step": "look", "seen": seen }), true)
            }
            Step::Shell(script) => {
                let (code, text) = shell(self.case, self.place, script, self.pid)?;
                let output = self.normal(&text);
                (
                    json!({ "step": "shell", "code": code, "output": output }),
                    true,
                )
            }
            Step::Until(script) => {
                let mut tries = LIMIT.as_millis() / PAUSE.as_millis();
                let mut done = false;
                while !done && tries > 0 {
                    done = shell(self.case, self.place, script, self.pid)?.0 == 0;
                    tries -= 1;
                    if !done {
                        std::thread::sleep(PAUSE);
                    }
                }
                (json!({ "step": "until", "done": done }), true)
            }
        })
    }

    fn create(&mut self, options: &[&str]) -> anyhow::Result<(Value, bool)> {
        let pid_file = self.file("pid");
        let bundle = self.place.bundle().display().to_string();
        let console = self.file("console");
        let mut words = vec!["create", "--bundle", &bundle, "--pid-file", &pid_file];
        if self.console.is_some() {
            words.extend(["--console-socket", &console]);
        }
        words.extend(options);
        words.push(&self.place.id);
        let (stdout, stderr) = (self.file("stdout"), self.file("stderr"));
        let status = self.spawn(&words, &stdout, &stderr)?;
        let said = fs::read_to_string(&stderr)?;
        self.errors_from = said.len();
        let created = status == 0;
        if created {
            self.pid = Some(fs::read_to_string(&pid_file)?.trim().parse()?);
            if let Some(console) = &self.console {
                self.reader = Some(console.read().context("the console socket")?);
            }
        }
        Ok((self.outcome("create", status, &said), created))
    }

    /// A verb with its words; its outcome and what it wrote.
    fn call(&mut self, verb: &str, words: &[&str]) -> anyhow::Result<(Value, String)> {
        self.calls += 1;
        let stdout = self.file(&format!("call-{}.out", self.calls));
        let stderr = self.file(&format!("call-{}.err", self.calls));
        let words: Vec<_> = words.iter().map(|word| self.place.fill(word)).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let status = self.spawn(&words, &stdout, &stderr)?;
        if self.pid.is_none() {
            let written = fs::read_to_string(self.file("pid")).unwrap_or_default();
            self.pid = written.trim().parse().ok();
        }
        let text = fs::read_to_string(&stdout)?;
        let failed = status != 0;
        let mut outcome = self.outcome(verb, status, &fs::read_to_string(&stderr)?);
        if failed && !["exec", "run"].contains(&verb) {
            // Help of some kind.
            outcome[SAID] = format!("{}{text}", outcome[SAID].as_str().unwrap_or_default()).into();
        } else if !text.is_empty() {
            outcome["output"] = self.normal(&text);
        }
        Ok((outcome, text))
    }

    fn outcome(&self, verb: &str, status: Value, said: &str) -> Value {
        let failed = status != 0;
        let mut outcome = json!({ "step": verb, "status": status });
        if failed || !said.is_empty() {
            outcome[SAID] = said.into();
        }
        if failed && !self.case.says.is_empty() {
            // The case's own name must not count.
            let said = said.replace(&self.place.dir.display().to_string(), "");
            let said = said.replace(&self.place.id, "").to_lowercase();
            outcome[NAMES] = self.case.says.iter().any(|word| said.contains(word)).into();
        }
        outcome
    }

    /// Runs the runtime with both outputs in files; its exit status.
    fn spawn(&self, words: &[&str], stdout: &str, stderr: &str) -> anyhow::Result<Value> {
        let open = |path: &str| File::options().create(true).append(true).open(path);
        let mut command = match self.case.descriptors {
            0 => Command::new(self.runtime),
            count => {
                let opening: String = (3..3 + count)
                    .map(|fd| format!("{fd}</dev/zero "))
                    .collect();
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("exec {opening}; exec \"$0\" \"$@\"")]);
                shell.arg(self.runtime);
                shell
            }
        };
        let mut child = command
            .args(["--root", &self.place.state().display().to_string()])
            .args(words)
            .current_dir(&self.place.dir)
            .env_clear()
            .env("PATH", SEARCH)
            .envs(self.case.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(open(stdout)?)
            .stderr(open(stderr)?)
            .spawn()
            .with_context(|| format!("start {}", self.runtime.display()))?;
        Ok(match end(&mut child, self.pid)? {
            Some(status) => json_status(status),
            None => format!("no end within {} s", LIMIT.as_secs()).into(),
        })
    }

    /// Waits for the end of the container's process.
    fn wait(&mut self) -> anyhow::Result<Value> {
        let Some(pid) = self.pid else {
            return Ok(json!({ "step": "wait", "end": "it has no process" }));
        };
        let end = if gone(pid, None)? {
            match waitpid(nix::unistd::Pid::from_raw(i32::try_from(pid)?), None) {
                Ok(WaitStatus::Exited(_, code)) => format!("exit {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("{signal}"),
                other => format!("{other:?}"),
            }
        } else {
            format!("no end within {} s", LIMIT.as_secs())
        };
        let output = match self.reader.take() {
            Some(reader) if !end.starts_with("no end") => reader.join().unwrap_or_default(),
            Some(_) => Vec::new(),
            None => fs::read(self.file("stdout")).unwrap_or_default(),
        };
        let errors = fs::read_to_string(self.file("stderr")).unwrap_or_default();
        Ok(json!({
            "step": "wait",
            "end": end,
            "output": self.normal(&String::from_utf8_lossy(&output)),
            "errors": errors.get(self.errors_from..),
        }))
    }

    fn file(&self, name: &str) -> String {
        self.place.dir.join(name).display().to_string()
    }

    /// What was written, without what is of the moment. JSON is taken apart.
    fn normal(&self, text: &str) -> Value {
        if let Ok(value) = serde_json::from_str(text) {
            return without_moment(value);
        }
        let pid = self.pid.map(|pid| pid.to_string());
        let lines = text.lines().map(|line| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => without_moment(value),
            _ => match &pid {
                Some(pid) => line.replace(pid, "PID").into(),
                None => line.into(),
            },
        });
        lines.collect()
    }
}

/// Replaces those members of states and lists of them that no two runs have in common.
fn without_moment(mut value: Value) -> Value {
    let states = match &mut value {
        Value::Array(values) => values.iter_mut().collect(),
        one => vec![one],
    };
    for state in states.into_iter().filter_map(Value::as_object_mut) {
        for (name, value) in state {
            let moment = match name.as_str() {
                "created" => value.is_string(),
                // Each states its own.
                "ociVersion" => value.is_string(),
                "pid" => value.as_u64().is_some_and(|pid| pid > 2),
                _ => false,
            };
            if moment {
                *value = format!("a {name}").into();
            }
        }
    }
    value
}

/// A shell command on the host: its exit code and all that it wrote.
fn shell(
    case: &Case,
    place: &Place,
    script: &str,
    container: Option<u32>,
) -> anyhow::Result<(Value, String)> {
    if script.is_empty() {
        return Ok((0.into(), String::new()));
    }
    let path = place.dir.join("shell.out");
    let output = File::create(&path)?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", &place.fill(script)])
        .current_dir(&place.dir)
        .env_clear()
        .env("PATH", SEARCH)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let status = end(&mut child, container)?;
    let status = status.with_context(|| format!("{}: no end of {script:?}", case.name))?;
    Ok((json_status(status), fs::read_to_string(path)?))
}

fn json_status(status: ExitStatus) -> Value {
    match status.code() {
        Some(code) => code.into(),
        None => status.to_string().into(),
    }
}

/// The end of a child of ours, which is killed when it takes too long.
fn end(child: &mut Child, container: Option<u32>) -> io::Result<Option<ExitStatus>> {
    if gone(child.id(), container)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Waits until a process that nobody has collected yet has ended. `other` is not collected either.
fn gone(pid: u32, other: Option<u32>) -> io::Result<bool> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(raw.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
    let turn = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&turn))? > 0 {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        host::reap(&[pid, other.unwrap_or(pid)]);
    }
}
