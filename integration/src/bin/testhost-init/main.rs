//! PID 1 of the test host: sets the machine up, serves commands, reaps orphans.
//!
//! It is the only program of the initramfs and runs in three roles: as PID 1
//! (no argument), as the command server (`serve`), which is its child so that
//! reaping orphans never takes away a command's exit status, and between the
//! server and a command that wants a terminal (`terminal`).

mod boot;
mod server;
mod session;

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((role, [token])) if role == "serve" => server::serve(token),
        Some((role, [program, rest @ ..])) if role == "terminal" => terminal(program, rest),
        _ if std::process::id() == 1 => {
            if let Err(error) = init() {
                eprintln!("testhost: {error:#}");
            }
            // QEMU runs with -no-reboot, so this ends it.
            reboot(RebootCommand::Restart).context("reboot")
        }
        _ => bail!("testhost-init is the test host's PID 1 and does not run by hand"),
    }
}

/// Sets up and serves until the server ends, which it never does by itself.
fn init() -> anyhow::Result<()> {
    let token = boot::set_up()?;
    let server = Command::new("/proc/self/exe")
        .arg0("testhost-init")
        .args(["serve", &token])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("TERM", "linux")
        .spawn()
        .context("start the command server")?;
    loop {
        let (pid, status) = match wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for children"),
        };
        if pid.as_raw_nonzero().get() as u32 == server.id() {
            bail!("the command server ended: {status:?}");
        }
    }
}

/// Makes standard input the controlling terminal of a new session, and becomes
/// `program`.
fn terminal(program: &str, arguments: &[String]) -> anyhow::Result<()> {
    rustix::process::setsid().context("setsid")?;
    rustix::process::ioctl_tiocsctty(std::io::stdin()).context("TIOCSCTTY")?;
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{program}: {error}");
    std::process::exit(127)
}
