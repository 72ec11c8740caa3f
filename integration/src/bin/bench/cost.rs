//! Memory of a sandbox with one container, beside a sandbox like it.

use anyhow::Context;
use integration::cri::{Cri, Pod, PodPlan};
use integration::perf::memory;
use integration::perf::report::Cost;
use tokio::time::timeout;

use crate::pods::run_container;
use crate::rounds::{LIMIT, Rounds};

/// Measures it.
pub async fn measure(rounds: &mut Rounds, cri: &mut Cri) -> anyhow::Result<Cost> {
    rounds
        .once("cost of a sandbox", async |attempt| {
            let mut pods = Vec::new();
            let cost = timeout(2 * LIMIT, of_one(cri, attempt, &mut pods)).await;
            for pod in pods {
                cri.end_pod(&pod.id).await?;
            }
            cost.context("two sandboxes")?
        })
        .await
}

async fn of_one(cri: &mut Cri, attempt: usize, pods: &mut Vec<Pod>) -> anyhow::Result<Cost> {
    for number in 0..2 {
        let plan = PodPlan::new("joey", &format!("cost-{attempt}-{number}"), false);
        pods.push(cri.run_pod(&plan).await?);
        run_container(cri, &pods[pods.len() - 1]).await?;
    }
    let vmm = cri.sandbox_pid(&pods[0]).await?;
    Ok(memory::cost_of_sandbox(vmm)?)
}
