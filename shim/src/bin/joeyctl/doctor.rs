//! `joeyctl doctor`: all checks, one line each.

use std::path::Path;
use std::process::ExitCode;

use shim::config::Config;

use crate::checks;

/// What a check found.
pub enum Finding {
    /// Good; with what was seen.
    Good(String),
    /// Pods run, but something is worse than it could be.
    Poor(String),
    /// Pods do not run, and what to do about it.
    Bad(String),
}

/// Runs all checks. Every one of them runs, whatever the others found.
pub fn run(config: Option<&Path>) -> ExitCode {
    let loaded = match config {
        Some(path) => Config::read(path),
        None => Config::load(),
    };
    let (config, configuration) = match loaded {
        Ok(config) => {
            let text = "no unknown keys, all values in range".into();
            (config, Finding::Good(text))
        }
        Err(error) => (
            Config::default(),
            Finding::Bad(format!(
                "{}; the other checks use the defaults",
                shim::error::chain(&error)
            )),
        ),
    };
    let mut findings = vec![("configuration", configuration), ("user", checks::user())];
    findings.extend([
        ("kvm", checks::kvm()),
        ("kernel", checks::kernel(&config)),
        ("agent", checks::agent(&config)),
        ("vmm", checks::vmm(&config)),
        ("virtiofsd", checks::virtiofsd(&config)),
        ("mkfs.erofs", checks::tool("mkfs.erofs", "erofs-utils")),
        ("mkfs.ext4", checks::tool("mkfs.ext4", "e2fsprogs")),
        ("cgroup", checks::cgroup()),
        ("tun", checks::tun()),
        ("bpf", checks::bpf()),
        ("user namespaces", checks::user_namespaces()),
        ("landlock", checks::landlock()),
        ("data directory", checks::data_dir(&config.data_dir)),
        ("state directory", checks::state_dir(&config.state_dir)),
        ("shim", checks::shim_binary()),
        ("remains", checks::remains(&config)),
    ]);

    let mut failed = false;
    for (name, finding) in findings {
        let (mark, text) = match finding {
            Finding::Good(text) => ("ok  ", text),
            Finding::Poor(text) => ("warn", text),
            Finding::Bad(text) => {
                failed = true;
                ("FAIL", text)
            }
        };
        println!("{mark}  {name:<16} {text}");
    }
    if failed {
        println!("\nThis host does not run pods in microVMs yet; see the lines marked FAIL.");
        ExitCode::FAILURE
    } else {
        println!("\nThis host runs pods in microVMs.");
        ExitCode::SUCCESS
    }
}
