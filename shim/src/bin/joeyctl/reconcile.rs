//! `joeyctl reconcile`: removes what a crash or a reboot left.

use anyhow::bail;
use shim::config::Config;
use shim::host::remains;

/// Removes it, or with `look` only says what there is.
pub fn run(config: &Config, look: bool) -> anyhow::Result<()> {
    let Some(findings) = remains::reconcile(config, !look)? else {
        bail!("a shim is at it right now: try again in a moment");
    };
    let mut failed = 0;
    for finding in &findings {
        match &finding.error {
            Some(error) => {
                failed += 1;
                println!("cannot remove {}: {error}", finding.what);
            }
            None if look => println!("{}", finding.what),
            None => println!("removed {}", finding.what),
        }
    }
    if findings.is_empty() {
        println!("nothing is left behind");
    }
    if failed > 0 {
        bail!("{failed} of {} could not be removed", findings.len());
    }
    Ok(())
}
