//! Programs that a spec wants run at certain points of a container's life, with the container's
//! state on their standard input.

use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks, State};
use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;

use crate::process;
use crate::state::ends_within;

/// Why a hook failed.
#[derive(Debug, Error)]
#[error("{kind} hook {path}: {problem}")]
pub struct HookError {
    /// `createRuntime`, `prestart`, ...
    pub kind: &'static str,
    /// The program.
    pub path: String,
    /// What went wrong, with the end of what it wrote to standard error.
    pub problem: String,
}

/// How much of a hook's standard error goes into the message.
const SHOWN: u64 = 2048;

/// Where hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// In the caller's namespaces: in the bundle's directory, and with the caller's environment if
    /// the hook names none, as with runc.
    Host,
    /// In the container's namespaces. Nothing of the caller's environment is shown there.
    Container,
}

/// Runs hooks one after the other, up to the first that fails.
pub(crate) fn run(
    kind: &'static str,
    hooks: &Option<Vec<Hook>>,
    state: &State,
    side: Side,
) -> Result<(), HookError> {
    hooks
        .iter()
        .flatten()
        .try_for_each(|hook| run_one(kind, hook, state, side))
}

/// Runs those that belong between the making of a container's namespaces and the entry of its root.
pub(crate) fn run_before_entry(hooks: &Hooks, state: &State) -> Result<(), HookError> {
    run("prestart", hooks.prestart(), state, Side::Host)?;
    run("createRuntime", hooks.create_runtime(), state, Side::Host)
}

/// Runs all hooks on the host; one that fails is logged and does not keep the next from running.
pub(crate) fn run_all(kind: &'static str, hooks: &Option<Vec<Hook>>, state: &State) {
    for hook in hooks.iter().flatten() {
        if let Err(error) = run_one(kind, hook, state, Side::Host) {
            tracing::warn!("container {}: {error}", state.id());
        }
    }
}

fn run_one(kind: &'static str, hook: &Hook, state: &State, side: Side) -> Result<(), HookError> {
    execute(hook, state, side).map_err(|problem| HookError {
        kind,
        path: hook.path().display().to_string(),
        problem,
    })
}

fn execute(hook: &Hook, state: &State, side: Side) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    // Files in memory instead of pipes: nobody has to feed or drain them while the hook runs, and
    // a process that the hook leaves behind holds nothing open that is waited for.
    let mut input = memory_file().map_err(text)?;
    let json = serde_json::to_vec(state).map_err(|error| error.to_string())?;
    input.write_all(&json).map_err(text)?;
    input.rewind().map_err(text)?;
    let mut errors = memory_file().map_err(text)?;

    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let env: Vec<&String> = hook.env().iter().flatten().collect();
    if side == Side::Container || !env.is_empty() {
        command.env_clear();
    }
    if side == Side::Host && state.bundle().is_dir() {
        command.current_dir(state.bundle());
    }
    command
        .args(args)
        .envs(env.iter().filter_map(|entry| entry.split_once('=')))
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .stderr(Stdio::from(errors.try_clone().map_err(text)?));
    let mut child = command.spawn().map_err(text)?;
    let timeout = hook
        .timeout()
        .map(|seconds| Duration::from_secs(seconds.max(0) as u64));
    if !ended(child.id(), timeout).map_err(text)? {
        // It may end by itself at this very moment.
        let _ = child.kill();
        child.wait().map_err(text)?;
        return Err(format!(
            "timed out after {} s",
            timeout.unwrap_or_default().as_secs()
        ));
    }
    let status = child.wait().map_err(text)?;
    if status.success() {
        return Ok(());
    }
    let problem = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or(0)),
    };
    let mut written = Vec::new();
    errors.rewind().map_err(text)?;
    errors.take(SHOWN).read_to_end(&mut written).map_err(text)?;
    match String::from_utf8_lossy(&written).trim() {
        "" => Err(problem),
        written => Err(format!("{problem}: {written}")),
    }
}

fn memory_file() -> std::io::Result<std::fs::File> {
    Ok(memfd_create("hook", MemfdFlags::CLOEXEC)?.into())
}

/// Waits for the end of a child, without collecting it. False when it took too long.
fn ended(pid: u32, timeout: Option<Duration>) -> std::io::Result<bool> {
    ends_within(process::open(pid)?.as_fd(), timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{HookBuilder, StateBuilder};

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let mut hook = HookBuilder::default()
            .path("/bin/sh")
            .args(["sh", "-c", script].map(str::to_owned).to_vec())
            .env(vec!["ANSWER=42".to_owned()])
            .build()
            .unwrap();
        hook.set_timeout(timeout);
        hook
    }

    fn state() -> State {
        StateBuilder::default().id("c1").pid(7).build().unwrap()
    }

    #[test]
    fn a_hook_sees_the_state_and_its_environment() {
        let hook = shell("[ $ANSWER = 42 ] && grep -q '\"id\":\"c1\"'", None);
        run("prestart", &Some(vec![hook]), &state(), Side::Host).unwrap();
    }

    #[test]
    fn a_failing_hook_says_why_and_stops_the_rest() {
        let hooks = vec![shell("echo no such luck >&2; exit 3", None)];
        let error = run("prestart", &Some(hooks), &state(), Side::Host).unwrap_err();
        assert_eq!(
            error.to_string(),
            "prestart hook /bin/sh: exited with 3: no such luck"
        );
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let error = run(
            "prestart",
            &Some(vec![shell("exec sleep 1000", Some(1))]),
            &state(),
            Side::Host,
        )
        .unwrap_err();
        assert_eq!(error.problem, "timed out after 1 s");
    }
}
