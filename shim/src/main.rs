//! `containerd-shim-joey-v2`: what containerd runs for the runtime type
//! `io.containerd.joey.v2`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use containerd_shim::Flags;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use shim::{bootstrap, cleanup, features, server};

/// The runtime type, as containerd's configuration has it.
const NAME: &str = "io.containerd.joey.v2";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd hands this to whoever asked for the pod.
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&args).context("arguments")?;
    if flags.version {
        println!("{NAME} {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return answer(&info());
    }
    bootstrap::check(&flags)?;
    match flags.action.as_str() {
        "start" => {
            let answer = bootstrap::start(&flags, &bundle(&flags)?)?;
            print(&serde_json::to_vec(&answer).context("encoding the answer")?)
        }
        "delete" => answer(&cleanup::delete(&flags, &bundle(&flags)?)),
        "" => server::run(&flags),
        other => bail!("unknown command {other:?}: containerd runs `start` and `delete`"),
    }
}

/// The bundle: where containerd says, or where it started us.
fn bundle(flags: &Flags) -> anyhow::Result<PathBuf> {
    if flags.bundle.is_empty() {
        return std::env::current_dir().context("the working directory");
    }
    Ok(Path::new(&flags.bundle).to_owned())
}

fn info() -> RuntimeInfo {
    RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        features: MessageField::some(features::any()),
        ..Default::default()
    }
}

fn answer(message: &impl Message) -> anyhow::Result<()> {
    print(&message.write_to_bytes().context("encoding the answer")?)
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).context("writing the answer")?;
    stdout.flush().context("writing the answer")
}
