//! The bench's inner half: runs in the test host, prints the report as JSON.

mod cost;
mod lives;
mod microvms;
mod pods;
mod rate;
mod rounds;

use std::path::PathBuf;

use clap::Parser;
use integration::cri::Cri;
use integration::perf::report::{Findings, Report};
use rounds::Rounds;

/// Measures the start of sandboxes.
#[derive(Parser)]
struct Arguments {
    /// Measured runs of each case.
    #[arg(long, default_value_t = 31)]
    runs: usize,
    /// Unmeasured runs before them.
    #[arg(long, default_value_t = 2)]
    warm_up: usize,
    /// Names of the cases, with commas; without it all of them.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Measures instead what sandboxes cost the host of which so many start at once; several
    /// numbers with commas.
    #[arg(long, value_delimiter = ',')]
    at_once: Vec<usize>,
    /// A firecracker binary to measure beside.
    #[arg(long)]
    firecracker: Option<PathBuf>,
    /// An archive with a minimal init, for Firecracker.
    #[arg(long, default_value = "/usr/local/share/joey/doorbell.cpio")]
    doorbell: PathBuf,
    /// Unit of the report: the test host knows which clock it has.
    #[arg(long, default_value = "wall_ms")]
    unit: String,
}

impl Arguments {
    /// Whether a case is to be measured.
    fn wants(&self, name: &str) -> bool {
        let all = self.cases.is_empty() && self.at_once.is_empty();
        all || self.cases.iter().any(|case| case == name)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let directory = PathBuf::from("/var/lib/joey-bench");
    std::fs::create_dir_all(&directory)?;
    let mut rounds = Rounds::new(arguments.warm_up, arguments.runs);
    let mut cri = Cri::connect();

    let mut cases = microvms::measure(&arguments, &mut rounds, &directory).await?;
    let oci = lives::measure(&arguments, &rounds, &directory)?;
    cases.extend(pods::measure(&arguments, &mut rounds, &mut cri).await?);
    let cost = match arguments.wants("cost") {
        true => Some(cost::measure(&mut rounds, &mut cri).await?),
        false => None,
    };

    let rate = match arguments.at_once.is_empty() {
        false => Some(rate::measure(&arguments, &mut rounds, &mut cri).await?),
        true => None,
    };

    std::fs::remove_dir_all(&directory)?;
    let start = Report {
        unit: arguments.unit.clone(),
        runs: arguments.runs,
        cases: cases.into_iter().collect(),
    };
    let findings = Findings {
        start,
        oci,
        cost,
        rate,
    };
    println!("{}", serde_json::to_string(&findings)?);
    Ok(())
}
