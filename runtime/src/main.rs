//! `joey`: containers from OCI bundles, with the command line of runc.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
