//! Fault injection, inside the test host: in each round a pod goes through its life
//! and at a random moment something that it hangs on is killed. The system must
//! answer, tell the truth about the pod, let it be removed and serve the next one.
//! The same seed strikes at the same steps with the same targets.

mod host;
mod round;
mod strike;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use integration::cri::{ContainerPlan, Cri, Pod, PodPlan};
use integration::leaks;
use tokio::time::timeout;

use host::Containerd;
use round::{Fault, Outcome, Rounds};

/// Kills what pods hang on, and looks whether anything is lost or left.
#[derive(Parser)]
struct Arguments {
    /// What the faults are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults.
    #[arg(long, default_value_t = 500)]
    rounds: u64,
    /// Number of the first round, to go on or to repeat one.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// The runtime handler; `runc` shows what containerd itself leaves behind.
    #[arg(long, default_value = "joey")]
    handler: String,
    /// Rounds between two looks for leaks.
    #[arg(long, default_value_t = 25)]
    look: u64,
}

/// Time for anything that is not struck. It takes seconds; this catches hangs.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut cri = Cri::connect();
    let containerd = Containerd::find()?;
    let survivor = Survivor::start(&mut cri, &arguments.handler).await?;
    let mut rounds = Rounds::new(cri.clone(), containerd, &arguments.handler)?;
    // Also makes what the first pod of a host leaves for all later ones.
    rounds.calibrate().await.context("a life without a fault")?;
    let before = leaks::at_rest(host::shell)?;

    let mut tally = BTreeMap::<String, (u32, u32)>::new();
    for number in arguments.first..arguments.first + arguments.rounds {
        let fault = Fault::draw(arguments.seed, number, &arguments.handler);
        let outcome = rounds.play(number, &fault).await;
        let outcome = outcome.with_context(|| repeat(&arguments, number, &fault))?;
        println!("round {number}: {fault}: {outcome}");
        let counts = tally.entry(fault.to_string()).or_default();
        match outcome {
            Outcome::Missed => counts.1 += 1,
            Outcome::Struck { .. } => counts.0 += 1,
        }
        survivor
            .check(&mut cri)
            .await
            .with_context(|| repeat(&arguments, number, &fault))?;
        if number % arguments.look == 0 {
            look(&before, &mut rounds, number).await?;
        }
    }
    let last = arguments.first + arguments.rounds - 1;
    look(&before, &mut rounds, last).await?;
    cri.end_pod(&survivor.pod.id).await?;

    println!("\n{:<34} {:>6} {:>6}", "fault", "struck", "missed");
    for (fault, (struck, missed)) in &tally {
        println!("{fault:<34} {struck:>6} {missed:>6}");
    }
    let struck: u32 = tally.values().map(|(struck, _)| struck).sum();
    println!(
        "{} rounds, {struck} faults struck, nothing left behind",
        arguments.rounds
    );
    Ok(())
}

fn repeat(arguments: &Arguments, number: u64, fault: &Fault) -> String {
    format!(
        "round {number} ({fault}); to repeat it: FAULT_SEED={} FAULT_FIRST={number} FAULT_ROUNDS=1",
        arguments.seed
    )
}

async fn look(before: &leaks::Snapshot, rounds: &mut Rounds, number: u64) -> anyhow::Result<()> {
    let mut left = leaks::settled(before, host::shell)?;
    if let [(leaks::BUNDLES, listing)] = &left[..] {
        println!("containerd has lost a bundle; starting it anew: {listing}");
        rounds.restart_containerd().await?;
        left = leaks::settled(before, host::shell)?;
    }
    let listings: Vec<_> = left.into_iter().map(|(_, listing)| listing).collect();
    anyhow::ensure!(
        listings.is_empty(),
        "left behind after round {number}:\n{}",
        listings.join("\n")
    );
    Ok(())
}

/// A pod that no fault is meant for.
struct Survivor {
    pod: Pod,
    container: String,
}

impl Survivor {
    async fn start(cri: &mut Cri, handler: &str) -> anyhow::Result<Survivor> {
        let pod = cri
            .run_pod(&PodPlan::new(handler, "survivor", false))
            .await?;
        let container = cri.create(&pod, "idle", &ContainerPlan::idle()).await?;
        cri.start(&container).await?;
        Ok(Survivor { pod, container })
    }

    async fn check(&self, cri: &mut Cri) -> anyhow::Result<()> {
        let said = timeout(LIMIT, cri.exec(&self.container, "echo alive"))
            .await
            .context("the surviving pod does not answer")?
            .context("the surviving pod")?;
        anyhow::ensure!(said == "alive\n", "the surviving pod said {said:?}");
        Ok(())
    }
}
