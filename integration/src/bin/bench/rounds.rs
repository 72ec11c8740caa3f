//! Rounds of measurements: how many there are, and what happens to one that is lost.

use std::time::Duration;

use integration::perf::report::{Case, Run};
use integration::processes::{end, running};
use tokio::time::timeout;

/// Longest time of a part of a round; it takes a fifth of a second.
pub const LIMIT: Duration = Duration::from_secs(5);
/// The name of VMMs' processes.
const VMM: &str = "joey-vmm";
/// Rounds that may be lost.
const MAX_LOST: usize = 5;

/// The result of a part of a round, unless it takes too long. Then the guests are killed, of
/// which one hangs: what is left would wait for it at the cost of minutes, as its spinning is
/// what an instruction counter counts.
pub async fn bounded<T>(
    limit: Duration,
    part: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match timeout(limit, part).await {
        Ok(result) => result,
        Err(late) => {
            kill_guests();
            Err(late.into())
        }
    }
}

fn kill_guests() {
    for pid in running(VMM) {
        // One that has ended meanwhile is as good.
        end(pid);
    }
}

/// How often cases are measured. QEMU's instruction counter now and then delivers an
/// interrupt to a nested guest twice, which then hangs on one of its own locks: see
/// docs/adr/0010. Such a round is measured again; more than a few are an error.
pub struct Rounds {
    warm_up: usize,
    runs: usize,
    lost: usize,
}

impl Rounds {
    /// So many `runs` after a `warm_up`, which does not count.
    pub fn new(warm_up: usize, runs: usize) -> Rounds {
        Rounds {
            warm_up,
            runs,
            lost: 0,
        }
    }

    /// Measures the cases of these names by turns, so that what drifts drifts for all.
    /// `round` makes one run of each, and is told how many rounds there were before it.
    pub async fn measure(
        &mut self,
        names: &[String],
        mut round: impl AsyncFnMut(usize) -> anyhow::Result<Vec<Run>>,
    ) -> anyhow::Result<Vec<(String, Case)>> {
        let title = names.join(", ");
        let mut runs = vec![Vec::new(); names.len()];
        let mut done = 0;
        while done < self.warm_up + self.runs {
            progress(&title, done);
            // What a lost round made keeps its name for a while.
            match round(done + self.lost).await {
                Ok(of_round) => {
                    done += 1;
                    for (runs, run) in runs.iter_mut().zip(of_round) {
                        runs.push(run);
                    }
                }
                Err(error) => self.lost(error.context(title.clone()))?,
            }
        }
        Ok(names
            .iter()
            .zip(runs)
            .map(|(name, runs)| {
                let totals: Vec<_> = runs.iter().map(|run| run.total.as_micros()).collect();
                eprintln!("bench: {name}, microseconds: {totals:?}");
                (name.clone(), self.case(&runs))
            })
            .collect())
    }

    /// Measures one case.
    pub async fn measure_one(
        &mut self,
        name: &str,
        mut run: impl AsyncFnMut() -> anyhow::Result<Run>,
    ) -> anyhow::Result<(String, Case)> {
        let mut cases = self
            .measure(&[name.to_owned()], async |_| Ok(vec![run().await?]))
            .await?;
        Ok(cases.remove(0))
    }

    /// Tries what is measured once until it is not lost; `attempt` is told how many were.
    pub async fn once<T>(
        &mut self,
        name: &str,
        mut attempt: impl AsyncFnMut(usize) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        loop {
            eprintln!("bench: {name}");
            match attempt(self.lost).await {
                Ok(found) => return Ok(found),
                Err(error) => self.lost(error.context(name.to_owned()))?,
            }
        }
    }

    /// The number of each round, warm-up included, for what is never lost.
    pub fn numbers(&self, title: &str) -> impl Iterator<Item = usize> {
        let title = title.to_owned();
        (0..self.warm_up + self.runs).inspect(move |round| progress(&title, *round))
    }

    /// The case of the runs after the warm-up.
    pub fn case(&self, runs: &[Run]) -> Case {
        Case::of(&runs[self.warm_up..])
    }

    fn lost(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        self.lost += 1;
        eprintln!("bench: a round is lost and measured again: {error:#}");
        if self.lost > MAX_LOST {
            return Err(error.context(format!("{} rounds were lost", self.lost)));
        }
        Ok(())
    }
}

/// Says on standard error what is measured now: a whole bench takes minutes.
fn progress(title: &str, round: usize) {
    eprintln!("bench: {title}, round {}", round + 1);
}
