//! Many sandboxes at once in a test host with room for them.

use integration::testbed::{Config, repository};

use crate::{inner, write};

/// Memory of the test host: that of a small node.
const MEMORY_MIB: u32 = 8192;

/// Runs the inner half with these options, and keeps what it found in `target/bench`.
pub fn run(options: &[String]) -> anyhow::Result<i32> {
    let config = Config {
        memory_mib: MEMORY_MIB,
        ..Config::with_joey()?
    };
    let host = inner::boot(config, "density")?;
    host.lengthen_slices()?;
    let program = format!("{}/density", inner::DIRECTORY);
    let words = std::iter::once(program).chain(options.iter().cloned());
    let (status, json) = inner::output(host.command(words))?;
    if !json.is_empty() {
        let directory = repository().join("target/bench");
        std::fs::create_dir_all(&directory)?;
        write(&directory.join("density.json"), &json)?;
        print!("{}", String::from_utf8_lossy(&json));
    }
    Ok(status)
}
