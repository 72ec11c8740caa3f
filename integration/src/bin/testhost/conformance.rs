//! The validation suite of OCI runtimes (runtime-tools): programs that run a runtime's
//! commands and look at what it made.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use integration::conformance::results::Outcome;
use integration::conformance::{document, tap};
use integration::install;
use integration::testbed::{Config, TestHost, build};

use crate::suite::{self, Bed, End, Suite};

/// What a program may take. Most of them wait for seconds, some a dozen times, and an
/// emulated test host is slow.
const LIMIT: Duration = Duration::from_secs(240);
/// Where the programs are in the test host.
const DIRECTORY: &str = "/usr/local/libexec/conformance";
/// What is beside them: the program of their containers, and the containers' root.
const COMPANIONS: [&str; 2] = ["runtimetest", "rootfs-amd64.tar.gz"];

/// Deletes what containers the runtime knows. Says one line about each.
const DELETE: &str = r#"for id in $("$0" list -q); do
    "$0" delete --force "$id" && echo "a container" || echo "a container that cannot be deleted"
done"#;

/// What may be left then, one thing a line.
const STATE: &str = r#"find /sys/fs/cgroup -mindepth 1 -type d -printf 'cgroup /%P\n'
awk '{print "mount", $5}' /proc/self/mountinfo
find /run -mindepth 2 -printf 'file %p\n'
ps -e -o args= | grep -v '^\[' | sed 's/^/process /'"#;

/// Removes the bundles of programs that gave up. Without a mount namespace a container's mounts
/// are the host's.
const REMOVE: &str = r"awk '$5 ~ /^\/tmp\/ocitest/ {print $5}' /proc/self/mountinfo | tac | xargs -r umount -l
rm -rf --one-file-system /tmp/ocitest*";

/// Runs it as [`suite::run`] says, and holds a whole run against docs/conformance.md.
pub fn run() -> anyhow::Result<i32> {
    match suite::run("conformance", Programs::new)? {
        Some(results) => suite::judge("conformance", &results, document::further(&results)),
        None => Ok(0),
    }
}

struct Programs {
    runtime: &'static str,
    programs: Vec<String>,
    bed: Bed,
    /// The last [`STATE`].
    state: BTreeSet<String>,
}

impl Programs {
    fn new(handler: &str) -> anyhow::Result<Programs> {
        let directory = build("testhost/build-conformance.sh", &[])?;
        let mut config = Config::default();
        let mut programs = Vec::new();
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            config.layer = config
                .layer
                .file(entry.path(), format!("{DIRECTORY}/{name}"), 0o755);
            if !COMPANIONS.contains(&name.as_str()) {
                programs.push(name);
            }
        }
        programs.sort();
        let runtime = if handler == "joey" {
            let path = "/usr/local/bin/joey";
            config.layer = config
                .layer
                .file(install::build()?.join("joey"), path, 0o755);
            path
        } else {
            "/usr/sbin/runc"
        };
        let bed = Bed::new(config, |config| Ok(TestHost::boot(config)?))?;
        let mut this = Programs {
            runtime,
            programs,
            bed,
            state: BTreeSet::new(),
        };
        println!("{handler}: {}", this.version()?);
        this.clean_up()?;
        Ok(this)
    }

    fn version(&self) -> anyhow::Result<String> {
        let output = self.bed.host.command([self.runtime, "--version"]).run()?;
        Ok(output.success()?.replace('\n', ", "))
    }
}

impl Suite for Programs {
    fn tests(&mut self, focus: &str) -> anyhow::Result<Vec<String>> {
        if focus.is_empty() {
            return Ok(self.programs.clone());
        }
        focus
            .split(',')
            .map(
                |name| match self.programs.iter().any(|known| known == name) {
                    true => Ok(name.to_owned()),
                    false => bail!(
                        "the suite has no program {name:?}: it has {}",
                        self.programs.join(", ")
                    ),
                },
            )
            .collect()
    }

    fn one(&mut self, name: &str, log: &Path) -> anyhow::Result<Outcome> {
        let runtime = format!("RUNTIME={}", self.runtime);
        let program = format!("{DIRECTORY}/{name}");
        let (output, outcome) = match self
            .bed
            .run(LIMIT, &["env", "-C", DIRECTORY, &runtime, &program])?
        {
            End::Broken(why) => return Ok(Outcome::failed(why)),
            End::Late(output, why) => (output, Outcome::failed(why)),
            End::Done(output) => {
                let stdout = String::from_utf8_lossy(&output.stdout);
                let outcome = tap::outcome(name, output.status, &stdout);
                (output, outcome)
            }
        };
        if let Outcome::Failed(_) = outcome {
            suite::keep(&log.with_file_name(format!("{name}.log")), &output)?;
        }
        Ok(outcome)
    }

    fn clean_up(&mut self) -> anyhow::Result<Vec<String>> {
        let host = &self.bed.host;
        let deleted = host.command(["sh", "-c", DELETE, self.runtime]).run()?;
        let state: BTreeSet<String> = host.check(STATE)?.lines().map(str::to_owned).collect();
        let mut left: Vec<String> = deleted.text().lines().map(str::to_owned).collect();
        left.extend(state.difference(&self.state).cloned());
        host.check(REMOVE)?;
        self.state = state;
        Ok(left)
    }
}
