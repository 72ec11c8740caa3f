//! One pod's life with one fault in it.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail};
use integration::combination::has_vm;
use integration::cri::{ContainerPlan, ContainerState, Cri, Pod, PodPlan};
use integration::processes::{end, running};
use tokio::time::{Instant, sleep, timeout};

use super::LIMIT;
use super::host::{Containerd, joeyctl, shell};
use super::strike::{Striker, Target};

/// A directory of the host that the pods' containers see.
const VOLUME: &str = "/var/lib/faults-volume";
/// How long a guest may take to panic where it is emulated.
const PANIC_TIME: Duration = Duration::from_secs(3);
/// Between two looks at something that shall come about.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A removal may meet what a fault left for containerd to find out first; the
/// kubelet tries again too.
const REMOVALS: u32 = 5;
/// A containerd that is killed between naming a snapshot's directory and recording the
/// snapshot wants the same name again, whatever the runtime is, until it has collected its
/// garbage. The kubelet tries again; so many times must do.
const SNAPSHOTS: u32 = 60;
/// What it says.
const TORN_SNAPSHOT: &str = "failed to rename: rename /var/lib/containerd/";

/// The parts of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    RunPod,
    Create,
    Start,
    Exec,
    Save,
    Restore,
    Stop,
    StopPod,
    RemovePod,
}

impl Step {
    const LIFE: [Step; 7] = [
        Step::RunPod,
        Step::Create,
        Step::Start,
        Step::Exec,
        Step::Stop,
        Step::StopPod,
        Step::RemovePod,
    ];
    /// With a rest in it.
    const SAVED_LIFE: [Step; 9] = [
        Step::RunPod,
        Step::Create,
        Step::Start,
        Step::Exec,
        Step::Save,
        Step::Restore,
        Step::Stop,
        Step::StopPod,
        Step::RemovePod,
    ];
    const SAVING: [Step; 2] = [Step::Save, Step::Restore];

    fn life(saved: bool) -> &'static [Step] {
        match saved {
            true => &Step::SAVED_LIFE,
            false => &Step::LIFE,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Step::RunPod => "RunPodSandbox",
            Step::Create => "CreateContainer",
            Step::Start => "StartContainer",
            Step::Exec => "ExecSync",
            Step::Save => "snapshot save",
            Step::Restore => "snapshot restore",
            Step::Stop => "StopContainer",
            Step::StopPod => "StopPodSandbox",
            Step::RemovePod => "RemovePodSandbox",
        })
    }
}

/// What is killed, and when.
#[derive(Clone, Debug)]
pub struct Fault {
    target: Target,
    step: Step,
    /// Share of the step's usual time that passes before.
    moment: f64,
}

impl Fault {
    /// The fault of a round.
    pub fn draw(seed: u64, number: u64, handler: &str) -> Fault {
        let mut random =
            fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
        let targets: &[(Target, &[Step])] = &[
            // With the sandbox's end its processes are gone.
            (Target::Shim, &Step::LIFE[..6]),
            (Target::Containerd, &Step::LIFE),
            (Target::Vmm, &Step::LIFE[..6]),
            // A volume's server runs from the first container's start on, and ends first.
            (Target::Virtiofsd, &Step::LIFE[2..5]),
            // It takes a running container to hurt the guest.
            (Target::Guest, &Step::LIFE[3..5]),
            (Target::Spare, &Step::LIFE[..3]),
            // It is made after the pod's start.
            (Target::Template, &Step::LIFE[1..3]),
            (Target::Shim, &Step::SAVING),
            (Target::Vmm, &Step::SAVING),
            (Target::Virtiofsd, &Step::SAVING),
        ];
        let known = if has_vm(handler) { targets.len() } else { 2 };
        let (target, steps) = targets[random.usize(..known)];
        Fault {
            target,
            step: steps[random.usize(..steps.len())],
            moment: random.f64(),
        }
    }

    fn is_of_saving(&self) -> bool {
        Step::SAVING.contains(&self.step)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} in {}", self.target, self.step)
    }
}

/// How a round went that went well.
pub enum Outcome {
    /// The step was over before there was anything to hit.
    Missed,
    /// What the struck step answered.
    Struck {
        /// Its error, if it failed.
        failure: Option<String>,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Missed => out.write_str("missed"),
            Outcome::Struck { failure: None } => out.write_str("struck, the request succeeded"),
            Outcome::Struck {
                failure: Some(failure),
            } => write!(out, "struck: {failure}"),
        }
    }
}

/// All rounds of a run.
pub struct Rounds {
    cri: Cri,
    containerd: Containerd,
    handler: String,
    /// How long each step takes when nothing is struck.
    usual: HashMap<Step, Duration>,
}

/// A round's pod, as far as it has come.
struct Life {
    plan: PodPlan,
    pod: Option<Pod>,
    container: String,
    /// How many containers were asked for: each has a name of its own.
    asked: u32,
}

impl Life {
    fn new(handler: &str, name: &str) -> Life {
        Life {
            plan: PodPlan::new(handler, name, true),
            pod: None,
            container: String::new(),
            asked: 0,
        }
    }

    fn pod(&self) -> anyhow::Result<&Pod> {
        self.pod.as_ref().context("there is no pod")
    }

    async fn step(&mut self, cri: &mut Cri, step: Step) -> anyhow::Result<()> {
        match step {
            Step::RunPod => {
                let pod = past_torn_snapshots(async || cri.run_pod(&self.plan).await);
                self.pod = Some(pod.await?);
            }
            Step::Create => {
                let plan = ContainerPlan {
                    privileged: true,
                    volume: Some((VOLUME.into(), "/volume".into())),
                    ..ContainerPlan::idle()
                };
                self.asked += 1;
                let name = format!("victim-{}", self.asked);
                let pod = self.pod()?;
                let container = past_torn_snapshots(async || cri.create(pod, &name, &plan).await);
                self.container = container.await?;
            }
            Step::Start => cri.start(&self.container).await?,
            Step::Exec => {
                cri.exec(&self.container, "cat /volume/file").await?;
            }
            Step::Save => joeyctl(&["snapshot", "save", &self.pod()?.id]).await?,
            Step::Restore => joeyctl(&["snapshot", "restore", &self.pod()?.id]).await?,
            Step::Stop => cri.stop(&self.container, Duration::from_secs(1)).await?,
            Step::StopPod => cri.stop_pod(&self.pod()?.id).await?,
            Step::RemovePod => cri.remove_pod(&self.pod()?.id).await?,
        }
        Ok(())
    }
}

impl Rounds {
    /// None has been played.
    pub fn new(cri: Cri, containerd: Containerd, handler: &str) -> anyhow::Result<Rounds> {
        std::fs::create_dir_all(VOLUME)?;
        std::fs::write(format!("{VOLUME}/file"), "content\n")?;
        Ok(Rounds {
            cri,
            containerd,
            handler: handler.to_owned(),
            usual: HashMap::new(),
        })
    }

    /// A life without a fault: shows that there is one, and how long its steps take.
    pub async fn calibrate(&mut self) -> anyhow::Result<()> {
        // The first pod of a host makes what later ones find.
        let saved = has_vm(&self.handler).then_some(("saved", true));
        let lives = saved
            .into_iter()
            .chain([("warm-up", false), ("calibration", false)]);
        for (name, saved) in lives {
            let mut life = Life::new(&self.handler, name);
            for step in Step::life(saved).iter().copied() {
                let begin = Instant::now();
                bounded(step, life.step(&mut self.cri, step)).await?;
                self.usual.insert(step, begin.elapsed());
            }
        }
        Ok(())
    }

    /// Kills containerd and starts it again.
    pub async fn restart_containerd(&mut self) -> anyhow::Result<()> {
        for pid in running("containerd") {
            end(pid);
        }
        self.containerd.restart(&mut self.cri).await
    }

    /// One life with a fault in it.
    ///
    /// # Errors
    /// When something hangs, is not told truly, cannot be removed, or fails that
    /// was not hit.
    pub async fn play(&mut self, number: u64, fault: &Fault) -> anyhow::Result<Outcome> {
        let name = format!("victim-{number}");
        let mut life = Life::new(&self.handler, &name);
        let striker = Striker::new(&self.handler);
        if fault.target == Target::Template {
            // So that this pod's shim makes one.
            shell("joeyctl template remove")?;
        }
        let steps = Step::life(fault.is_of_saving()).iter();
        for step in steps.take_while(|step| **step < fault.step) {
            bounded(*step, life.step(&mut self.cri, *step)).await?;
        }
        let outcome = self.strike(&striker, &mut life, fault).await?;
        if let Outcome::Struck { failure } = &outcome {
            if let (true, Some(failure)) = (fault.target.is_nobodys(), failure) {
                bail!("the pod was hit: {failure}");
            }
            if fault.target == Target::Containerd {
                self.containerd.restart(&mut self.cri).await?;
            }
            // A virtiofsd that does not get to serve costs the container that needed it.
            let before_it_served =
                fault.target == Target::Virtiofsd && fault.step == Step::Start && failure.is_some();
            // A VM from the template that is gone before it answers is replaced by one that boots.
            let replaced =
                fault.target == Target::Vmm && fault.step == Step::RunPod && failure.is_none();
            // One that was written to disk by then goes on, in another VMM.
            let saved = fault.is_of_saving() && self.goes_on(&mut life).await?;
            let another = before_it_served || replaced;
            if !(saved || another && self.takes_another(&mut life).await?) {
                self.tells_the_truth(&mut life, fault).await?;
            }
        }
        self.remove(&name).await?;
        Ok(outcome)
    }

    async fn strike(
        &mut self,
        striker: &Striker,
        life: &mut Life,
        fault: &Fault,
    ) -> anyhow::Result<Outcome> {
        let delay = self.usual[&fault.step].mul_f64(fault.moment);
        let (ahead, delay) = match (fault.target, fault.step) {
            // It takes its time to panic, so that begins first.
            (Target::Guest, _) => (PANIC_TIME.mul_f64(fault.moment), Duration::ZERO),
            // The end of a sandbox begins with theirs.
            (Target::Shim | Target::Vmm, Step::StopPod) => (Duration::ZERO, delay / 20),
            _ => (Duration::ZERO, delay),
        };
        let container = life.container.clone();
        let mut cri = self.cri.clone();
        let strike = striker.strike(fault.target, delay, &container);
        let step = async {
            sleep(ahead).await;
            bounded(fault.step, life.step(&mut cri, fault.step)).await
        };
        tokio::pin!(strike, step);
        let (blow, answer) = tokio::select! {
            biased;
            blow = &mut strike => (blow, step.await),
            answer = &mut step => {
                answer?;
                return Ok(Outcome::Missed);
            }
        };
        if !bounded_as("the guest's panic", striker.has_hit(blow)).await? {
            answer?;
            return Ok(Outcome::Missed);
        }
        match answer {
            Err(error) if error.is::<Hangs>() => Err(error),
            answer => Ok(Outcome::Struck {
                failure: answer
                    .err()
                    .map(|error| format!("{error}: {}", error.root_cause())),
            }),
        }
    }

    /// Whether the pod works, once it is restored.
    async fn goes_on(&mut self, life: &mut Life) -> anyhow::Result<bool> {
        for step in [Step::Restore, Step::Exec] {
            match bounded(step, life.step(&mut self.cri, step)).await {
                Err(error) if error.is::<Hangs>() => return Err(error),
                Err(_) if step == Step::Exec => return Ok(false),
                // It may not have been saved, or be restored already.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(true)
    }

    /// Whether another container of the pod works, with the volume.
    async fn takes_another(&mut self, life: &mut Life) -> anyhow::Result<bool> {
        for step in [Step::Create, Step::Start, Step::Exec] {
            match bounded(step, life.step(&mut self.cri, step)).await {
                Ok(()) => {}
                Err(error) if error.is::<Hangs>() => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether containerd knows how the pod is after the fault.
    async fn tells_the_truth(&mut self, life: &mut Life, fault: &Fault) -> anyhow::Result<()> {
        let (Some(pod), true) = (&life.pod, fault.step < Step::StopPod) else {
            return Ok(());
        };
        let running = fault.step > Step::Start && fault.step < Step::Stop;
        let mut cri = self.cri.clone();
        if fault.target.is_nobodys() {
            return bounded_as("PodSandboxStatus", async {
                cri.is_ready(&pod.id)
                    .await?
                    .then_some(())
                    .context("the pod is not ready")
            })
            .await;
        }
        if fault.target == Target::Containerd {
            // It was away; the pod was not.
            if running {
                let said = bounded(Step::Exec, cri.exec(&life.container, "echo alive")).await?;
                anyhow::ensure!(said == "alive\n", "after the restart the pod said {said:?}");
            }
            return Ok(());
        }
        let id = pod.id.clone();
        eventually("the pod is reported not ready", async || {
            Ok(!cri.is_ready(&id).await?)
        })
        .await?;
        if running {
            let container = life.container.clone();
            let mut cri = self.cri.clone();
            eventually("the container is reported exited", async || {
                let status = cri.status(&container).await?;
                Ok(status.state() == ContainerState::ContainerExited && status.exit_code != 0)
            })
            .await?;
        }
        Ok(())
    }

    /// Removes the round's pod as the kubelet does: whatever containerd lists under
    /// its name, again when that fails.
    async fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let mut tries = 0;
        loop {
            let pods = bounded_as("ListPodSandbox", self.cri.pods()).await?;
            let mine = |pod: &integration::cri::PodSandbox| {
                pod.metadata.as_ref().is_some_and(|meta| meta.name == name)
            };
            let Some(pod) = pods.into_iter().find(mine) else {
                return Ok(());
            };
            match bounded_as("the removal", self.cri.end_pod(&pod.id)).await {
                Ok(()) => {}
                Err(error) if tries >= REMOVALS || error.is::<Hangs>() => {
                    return Err(error.context(format!("sandbox {} cannot be removed", pod.id)));
                }
                Err(_) => {
                    tries += 1;
                    sleep(LOOK_AGAIN * 2u32.pow(tries)).await;
                }
            }
        }
    }
}

/// A request that was not answered within [`LIMIT`].
#[derive(Debug, thiserror::Error)]
#[error("{what} is not answered within {} s", LIMIT.as_secs())]
struct Hangs {
    what: String,
}

async fn bounded<T>(
    step: Step,
    request: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    bounded_as(&step.to_string(), request).await
}

async fn bounded_as<T>(
    what: &str,
    request: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match timeout(LIMIT, request).await {
        Ok(answer) => answer,
        Err(_) => {
            let what = what.to_owned();
            Err(Hangs { what }.into())
        }
    }
}

/// Makes a request again for as long as it meets [`TORN_SNAPSHOT`].
async fn past_torn_snapshots<T>(
    mut request: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    for _ in 0..SNAPSHOTS {
        match request().await {
            Err(error) if format!("{error:#}").contains(TORN_SNAPSHOT) => {
                eprintln!("containerd met a snapshot that it had not recorded");
                sleep(Duration::from_secs(1)).await;
            }
            answer => return answer,
        }
    }
    request().await
}

/// Waits for something to come about.
async fn eventually(
    what: &str,
    mut check: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !check().await? {
        if Instant::now() > deadline {
            bail!("never came about: {what}");
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
