//! Memory of a sandbox with one container.

use anyhow::Context;
use integration::cri::{Cri, Pod, PodPlan};
use integration::perf::memory;
use integration::perf::report::Cost;

use crate::pods::run_container;
use crate::rounds::{LIMIT, Rounds, bounded};

/// Measures it.
pub async fn measure(rounds: &mut Rounds, cri: &mut Cri) -> anyhow::Result<Cost> {
    rounds
        .once("cost of a sandbox", async |attempt| {
            let plan = PodPlan::new("joey", &format!("cost-{attempt}"), false);
            let pod = bounded(LIMIT, cri.run_pod(&plan)).await.context("start")?;
            let cost = bounded(LIMIT, with_container(cri, &pod)).await;
            cri.end_pod(&pod.id).await?;
            cost.context("container")
        })
        .await
}

async fn with_container(cri: &mut Cri, pod: &Pod) -> anyhow::Result<Cost> {
    run_container(cri, pod).await?;
    Ok(memory::cost_of_sandbox(&pod.id)?)
}
