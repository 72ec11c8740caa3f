//! Programs that drive containerd from inside the test host.

use std::path::PathBuf;

use anyhow::bail;
use integration::testbed::{Command, Config, Event, TestHost, repository};

/// Where they are in the test host.
pub const DIRECTORY: &str = "/usr/local/libexec";

/// A program of this crate, built beside this one.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is not built: use `make {name}`", path.display());
    }
    Ok(path)
}

/// Boots `config` with a program of this crate in it, containerd running and the
/// image pulled that the programs run.
pub fn boot(mut config: Config, name: &str) -> anyhow::Result<TestHost> {
    config.layer = config
        .layer
        .file(program(name)?, format!("{DIRECTORY}/{name}"), 0o755);
    let host = TestHost::boot(&config)?;
    if config.virtual_clock {
        host.keep_data_in_memory()?;
    }
    host.start_containerd()?;
    host.check(&format!("crictl pull {}", integration::cri::IMAGE))?;
    Ok(host)
}

/// Runs a program, passes on what it says on standard error, and returns its exit code and
/// its standard output.
pub fn output(command: Command<'_>) -> anyhow::Result<(i32, Vec<u8>)> {
    let mut said = Vec::new();
    let status = command
        .limit(super::LIMIT)
        .stream(std::io::empty(), |event| {
            match event {
                Event::Stdout(bytes) => said.extend(bytes),
                other => super::print(other)?,
            }
            Ok(())
        })?;
    Ok((status, said))
}

/// What tells why a program failed.
const LOGS: &str = "tail -n 3000 /var/log/containerd.log; echo '== kernel'; dmesg | tail -n 300";

/// Boots a test host, runs a program in it with arguments, and passes on its output. When
/// it fails, the host's logs are kept in `target`.
pub fn run(name: &str, arguments: &[String]) -> anyhow::Result<i32> {
    let host = boot(Config::with_joey()?, name)?;
    host.lengthen_slices()?;
    let words = std::iter::once(format!("{DIRECTORY}/{name}")).chain(arguments.iter().cloned());
    let code = super::stream(host.command(words), std::io::empty())?;
    if code != 0 {
        let path = repository().join(format!("target/{name}-failure.log"));
        crate::write(&path, host.run(LOGS)?.text().as_bytes())?;
        eprintln!("the host's logs are in {}", path.display());
    }
    Ok(code)
}
