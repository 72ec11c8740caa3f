//! Drives the engine from a script: reads a [`Script`] as JSON from standard input, takes its steps
//! one after the other and writes a JSON list with the outcome of each. The tests use it, because
//! the engine wants a process with one thread.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use runtime::{
    CgroupDriver, Container, CreateError, CreateOptions, ExecError, Io, LaunchOptions, Launched,
    StartError, TerminalSize,
};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::Deserialize;
use serde_json::{Value, json};

/// What to do with one container.
#[derive(Deserialize)]
struct Script {
    id: String,
    bundle: PathBuf,
    state_dir: PathBuf,
    spec: Spec,
    /// Written to the first process's terminal; with it, it has one.
    terminal: Option<String>,
    steps: Vec<Step>,
}

/// One thing to do.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Create,
    Start,
    /// Adds a process and waits for its end.
    Exec {
        process: Box<Process>,
        /// Written to its terminal; with it, it has one.
        terminal: Option<String>,
    },
    /// Waits for the end of the first process.
    Wait,
    Kill(i32),
    KillAll(i32),
    Pause,
    Resume,
    Update(Box<LinuxResources>),
    Stats,
    Pids,
    Status,
    State,
    /// Lets go of the container and finds it again by its id.
    Load,
    Delete {
        force: bool,
    },
    /// Whether there is a child of this process that nobody has collected.
    Children,
}

/// A process with what it writes.
struct Running {
    launched: Launched,
    output: Option<File>,
    input: String,
}

impl Running {
    /// Waits for the end of the process.
    fn finish(self) -> Result<Value> {
        let mut text = Vec::new();
        if let Some(master) = self.launched.terminal {
            let mut master = File::from(master);
            master.write_all(self.input.as_bytes())?;
            // The kernel says EIO when the last process with the other side has gone.
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                text.extend_from_slice(&buffer[..length]);
            }
        }
        let status = waitid(
            WaitId::PidFd(self.launched.pidfd.as_fd()),
            WaitIdOptions::EXITED,
        )?
        .context("no child")?;
        if let Some(mut output) = self.output {
            output.rewind()?;
            output.read_to_end(&mut text)?;
        }
        Ok(json!({
            "code": status.exit_status(),
            "signal": status.terminating_signal(),
            "output": String::from_utf8_lossy(&text),
        }))
    }
}

/// Streams for a process: a terminal, or nothing in and a file in memory for both outputs.
fn streams(terminal: Option<&String>) -> Result<(Io, Option<File>)> {
    if terminal.is_some() {
        let size = Some(TerminalSize {
            columns: 80,
            rows: 25,
        });
        return Ok((Io::Terminal { size }, None));
    }
    let output = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
    let io = Io::Files {
        stdin: OwnedFd::from(File::open("/dev/null")?),
        stdout: output.try_clone()?.into(),
        stderr: output.try_clone()?.into(),
    };
    Ok((io, Some(output)))
}

fn error(error: &dyn std::error::Error, kind: &str) -> Value {
    json!({ "error": error.to_string(), "kind": kind })
}

fn outcome<T: Into<Value>, E: std::error::Error>(result: Result<T, E>) -> Value {
    match result {
        Ok(value) => value.into(),
        Err(failed) => error(&failed, "other"),
    }
}

/// What is known between steps.
struct Driver {
    script: Script,
    container: Option<Container>,
    first: Option<Running>,
}

impl Driver {
    fn take(&mut self, step: Step) -> Result<Value> {
        let Self {
            script,
            container,
            first,
        } = self;
        let existing = || container.as_ref().context("no container");
        Ok(match step {
            Step::Create => {
                let (io, output) = streams(script.terminal.as_ref())?;
                let created = Container::create(CreateOptions {
                    id: script.id.clone(),
                    bundle: script.bundle.clone(),
                    spec: script.spec.clone(),
                    state_dir: script.state_dir.clone(),
                    io,
                    cgroup: CgroupDriver::Cgroupfs,
                    launch: LaunchOptions::default(),
                });
                match created {
                    Ok((made, launched)) => {
                        let pid = launched.pid;
                        *first = Some(Running {
                            launched,
                            output,
                            input: script.terminal.clone().unwrap_or_default(),
                        });
                        *container = Some(made);
                        json!({ "pid": pid })
                    }
                    Err(failed) => {
                        let kind = match &failed {
                            CreateError::CommandNotFound(_) => "command not found",
                            CreateError::CommandNotExecutable(_) => "command not executable",
                            CreateError::Plan(_) => "plan",
                            _ => "other",
                        };
                        error(&failed, kind)
                    }
                }
            }
            Step::Start => match container.as_mut().context("no container")?.start() {
                Ok(()) => Value::Null,
                Err(failed) => {
                    let kind = match &failed {
                        StartError::CommandNotFound(_) => "command not found",
                        StartError::CommandNotExecutable(_) => "command not executable",
                        _ => "other",
                    };
                    error(&failed, kind)
                }
            },
            Step::Exec { process, terminal } => {
                let (io, output) = streams(terminal.as_ref())?;
                match existing()?.exec(&process, io) {
                    Ok(launched) => Running {
                        launched,
                        output,
                        input: terminal.unwrap_or_default(),
                    }
                    .finish()?,
                    Err(failed) => {
                        let kind = match &failed {
                            ExecError::CommandNotFound(_) => "command not found",
                            ExecError::CommandNotExecutable(_) => "command not executable",
                            _ => "other",
                        };
                        error(&failed, kind)
                    }
                }
            }
            Step::Wait => first.take().context("no first process")?.finish()?,
            Step::Kill(signal) => outcome(existing()?.kill(signal).map(|()| Value::Null)),
            Step::KillAll(signal) => outcome(existing()?.kill_all(signal).map(|()| Value::Null)),
            Step::Pause => outcome(existing()?.pause().map(|()| Value::Null)),
            Step::Resume => outcome(existing()?.resume().map(|()| Value::Null)),
            Step::Update(resources) => {
                outcome(existing()?.update(&resources).map(|()| Value::Null))
            }
            Step::Stats => outcome(existing()?.stats().map(|stats| {
                json!({
                    "cpu_usage": stats.cpu.usage_usec,
                    "memory": stats.memory.as_ref().map(|memory| memory.usage),
                    "memory_limit": stats.memory.as_ref().and_then(|memory| memory.limit),
                    "oom_kill": stats.memory.as_ref()
                        .and_then(|memory| memory.events.get("oom_kill").copied()),
                    "pids": stats.pids.as_ref().map(|pids| pids.current),
                    "pids_limit": stats.pids.as_ref().and_then(|pids| pids.limit),
                })
            })),
            Step::Pids => outcome(existing()?.pids()),
            Step::Status => existing()?.status().to_string().into(),
            Step::State => serde_json::to_value(existing()?.state())?,
            Step::Load => {
                let loaded = Container::load(&script.state_dir, &script.id);
                let value = match &loaded {
                    Ok(_) => Value::Null,
                    Err(failed) => error(failed, "other"),
                };
                *container = loaded.ok();
                value
            }
            Step::Delete { force } => outcome(
                container
                    .as_mut()
                    .context("no container")?
                    .delete(force)
                    .map(|()| Value::Null),
            ),
            Step::Children => {
                let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                json!(waitid(WaitId::All, look).is_ok())
            }
        })
    }
}

fn main() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut script: Script = serde_json::from_str(&text).context("the script")?;
    let steps = std::mem::take(&mut script.steps);
    let mut driver = Driver {
        script,
        container: None,
        first: None,
    };
    let outcomes: Vec<Value> = steps
        .into_iter()
        .map(|step| {
            driver.take(step).unwrap_or_else(
                |failed| json!({ "error": format!("{failed:#}"), "kind": "driver" }),
            )
        })
        .collect();
    println!("{}", Value::from(outcomes));
    Ok(())
}
