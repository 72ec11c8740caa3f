//! A short run of what `make faults` does at length.

use std::process::Command;
use std::time::Duration;

use integration::testbed::{Output, TestHost};
use libtest_mimic::Trial;

use crate::cri::handler;
use crate::trial;

/// What the faults are drawn from. Another seed hits other moments, but a test that
/// fails shall fail again.
const SEED: u32 = 1;
const ROUNDS: u32 = 12;
/// How long all may take: more than what hangs needs to be found by the program itself.
const LIMIT: Duration = Duration::from_secs(1200);

pub fn trials() -> Vec<Trial> {
    vec![trial("faults::a_dozen", a_dozen)]
}

fn a_dozen() {
    // The way into the test host is slow, and nine tenths of the program are for debuggers.
    let program = std::env::temp_dir().join(format!("joey-faults-{}", std::process::id()));
    let stripped = Command::new("strip")
        .args(["-o".as_ref(), program.as_os_str()])
        .arg(env!("CARGO_BIN_EXE_faults"))
        .status();
    assert!(stripped.expect("binutils are installed").success());
    let copied = TestHost::shared().copy_in(&program, "/usr/local/libexec/faults");
    let _ = std::fs::remove_file(&program);
    copied.unwrap_or_else(|error| panic!("{error}"));
    let script = format!(
        "/usr/local/libexec/faults --handler {} --seed {SEED} --rounds {ROUNDS} --look {ROUNDS}; code=$?; rm -f /usr/local/libexec/faults; exit $code",
        handler()
    );
    let ran = TestHost::shared().shell(&script).limit(LIMIT).run();
    let said = ran.and_then(Output::success);
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    println!("{said}");
    assert!(said.contains("nothing left behind"), "{said}");
}
