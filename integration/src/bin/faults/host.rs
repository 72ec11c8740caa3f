//! The processes of the test host, and containerd's end and return.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use integration::cri::Cri;
use integration::processes::running;
use tokio::time::{Instant, sleep};

/// How long containerd may take to serve again.
const RESTART_LIMIT: Duration = Duration::from_secs(60);

/// Runs a shell script and returns what it printed.
pub fn shell(script: &str) -> anyhow::Result<String> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `joeyctl`.
///
/// # Errors
/// What it said when it failed.
pub async fn joeyctl(arguments: &[&str]) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("joeyctl")
        .args(arguments)
        .output();
    let output = output.await.context("joeyctl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}", said.trim());
    Ok(())
}

/// containerd, and how it was started.
pub struct Containerd {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Containerd {
    /// The one that runs.
    pub fn find() -> anyhow::Result<Containerd> {
        let pid = *running("containerd")
            .first()
            .context("containerd is not running")?;
        let words = fs::read(format!("/proc/{pid}/cmdline"))?;
        let words = String::from_utf8(words)?;
        Ok(Containerd {
            program: fs::read_link(format!("/proc/{pid}/exe"))?,
            arguments: words
                .split_terminator('\0')
                .skip(1)
                .map(str::to_owned)
                .collect(),
            log: fs::read_link(format!("/proc/{pid}/fd/2"))?,
        })
    }

    /// Starts it again and waits until it serves.
    pub async fn restart(&self, cri: &mut Cri) -> anyhow::Result<()> {
        let log = || -> std::io::Result<File> { OpenOptions::new().append(true).open(&self.log) };
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?)
            .process_group(0)
            .spawn()
            .context("cannot start containerd again")?;
        let deadline = Instant::now() + RESTART_LIMIT;
        while let Err(error) = cri.pods().await {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("containerd ended at its start: {status}");
            }
            if Instant::now() > deadline {
                return Err(error.context("containerd does not serve after its restart"));
            }
            sleep(Duration::from_millis(50)).await;
        }
        // It lives longer than we watch it; it is reaped when it is killed again.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}
