//! The thread that makes vCPUs while the VM runs, and threads for them: one that waits for
//! all, as most guests never have as many processors as they may.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::poll::spawn;
use crate::seccomp::ThreadKind;
use crate::vcpu::Stop;
use crate::vm::CpuFactory;

/// How long the owner waits for a new vCPU before it is told that it failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which vCPU to make, and where the outcome goes.
type Command = (u8, SyncSender<Result<(), String>>);

/// The owner's side.
pub struct Cpus {
    /// How many there may be.
    most: u8,
    /// Which were started, by bits.
    started: u64,
    commands: Option<SyncSender<Command>>,
}

impl Cpus {
    /// Starts the thread, unless the boot CPU is the only one there may be.
    pub fn start(most: u8, factory: &CpuFactory, stop: &Arc<Stop>) -> io::Result<Self> {
        let mut cpus = Self {
            most,
            started: 1,
            commands: None,
        };
        if most > 1 {
            let (commands, incoming) = sync_channel::<Command>(1);
            let (factory, end) = (factory.clone(), Arc::clone(stop));
            spawn("cpus", ThreadKind::Cpus, stop, move || {
                for (index, answer) in incoming {
                    // Who asked may have given up.
                    let _ = answer.send(make(&factory, index, &end));
                }
                // The sender lives as long as the process.
                Ok("the VMM ends".into())
            })?;
            cpus.commands = Some(commands);
        }
        Ok(cpus)
    }

    /// Makes a vCPU and its thread; one that runs already is fine.
    pub fn online(&mut self, cpu: u8) -> Result<(), String> {
        let most = self.most;
        let Some(commands) = self.commands.as_ref().filter(|_| (1..most).contains(&cpu)) else {
            return Err(format!(
                "there is no vCPU {cpu} to start: the VM may have {most}"
            ));
        };
        if self.started & 1 << cpu != 0 {
            return Ok(());
        }
        let (answer, answered) = sync_channel(1);
        match commands.try_send((cpu, answer)) {
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(format!("vCPU {cpu} cannot start before another one has"));
            }
            // Never made twice, whatever becomes of it.
            Ok(()) => self.started |= 1 << cpu,
        }
        match answered.recv_timeout(TIMEOUT) {
            Ok(result) => result,
            Err(_) => Err(format!("vCPU {cpu} did not start")),
        }
    }
}

fn make(factory: &CpuFactory, index: u8, stop: &Arc<Stop>) -> Result<(), String> {
    let vcpu = factory.make(index).map_err(|error| error.to_string())?;
    // Never dropped: its thread may not close descriptors.
    let mut vcpu = ManuallyDrop::new(vcpu);
    let name = format!("vcpu{index}");
    spawn(&name, ThreadKind::Vcpu, stop, move || Ok(vcpu.run())).map_err(|error| error.to_string())
}
