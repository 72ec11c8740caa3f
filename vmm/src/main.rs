//! `joey-vmm`: see the library's documentation. Its owner hands it two sockets,
//! as descriptors 3 and 4; there is nothing to run by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!("joey-vmm {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match vmm::process::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("joey-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}
