//! The threads of the vCPUs: how more are made while the VM runs, and how all are stopped
//! at once. One thread makes those that come later, as most guests never have as many
//! processors as they may.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use std::{io, iter};

use nix::unistd::{Pid, gettid};

use crate::arch::x86_64::state::SavedCpu;
use crate::kvm::Leash;
use crate::poll::spawn;
use crate::seccomp::ThreadKind;
use crate::sys;
use crate::vcpu::{Stop, Vcpu};
use crate::vm::CpuFactory;

/// How long the owner waits for a vCPU before it is told that it failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why vCPUs do not do what they are told.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// There is none of that number.
    #[error("there is no vCPU {cpu} to start: the VM may have {most}")]
    Absent {
        /// As asked for.
        cpu: u8,
        /// How many there may be.
        most: u8,
    },
    /// It cannot be made, or read.
    #[error("{0}")]
    Failed(String),
    /// Another one is being made.
    #[error("vCPU {0} cannot start before another one has")]
    Busy(u8),
    /// It was made once, and that failed.
    #[error("vCPU {0} did not start")]
    Lost(u8),
    /// It does not answer, or has ended.
    #[error("vCPU {0} does not answer: the guest is gone, or the host has no time for it")]
    Silent(u8),
    /// A thread cannot be started, or reached.
    #[error("a vCPU's thread: {0}")]
    Thread(#[from] io::Error),
    /// Only what stands still can be saved.
    #[error("the VM runs: pause it first")]
    Running,
}

/// Which vCPU to make, and where the outcome goes.
type Command = (u8, SyncSender<Result<Cpu, CpuError>>);

/// The vCPUs of a VM, which all run or all stand still.
pub struct Cpus {
    cpus: Vec<Cpu>,
    running: bool,
    /// How many there may be.
    most: u8,
    /// Which were made, or tried, by bits.
    tried: u64,
    commands: Option<SyncSender<Command>>,
}

impl Cpus {
    /// Starts the threads of the vCPUs that there are, and the one that makes others,
    /// unless there can be none. Nothing runs yet.
    pub fn start(
        made: Vec<(u8, Vcpu)>,
        most: u8,
        factory: &CpuFactory,
        stop: &Arc<Stop>,
    ) -> Result<Self, CpuError> {
        let tried = made.iter().map(|(index, _)| 1 << index).sum();
        let cpus = made
            .into_iter()
            .map(|(index, vcpu)| Cpu::start(index, vcpu, stop))
            .collect::<Result<Vec<_>, _>>()?;
        let mut commands = None;
        if most > 1 {
            let (sender, incoming) = sync_channel::<Command>(1);
            let (factory, end) = (factory.clone(), Arc::clone(stop));
            spawn("cpus", ThreadKind::Cpus, stop, move || {
                for (index, answer) in incoming {
                    let made = factory
                        .make(index)
                        .and_then(|vcpu| vcpu.announce().map(|()| vcpu));
                    let made = made.map_err(|error| CpuError::Failed(error.to_string()));
                    // Who asked may have given up.
                    let _ = answer.send(made.and_then(|vcpu| Cpu::start(index, vcpu, &end)));
                }
                // The sender lives as long as the process.
                Ok("the VMM ends".into())
            })?;
            commands = Some(sender);
        }
        Ok(Self {
            cpus,
            running: false,
            most,
            tried,
            commands,
        })
    }

    /// Makes a vCPU and its thread, so that the guest can start it; one that is there
    /// already is fine.
    pub fn online(&mut self, cpu: u8) -> Result<(), CpuError> {
        let most = self.most;
        let Some(commands) = self.commands.as_ref().filter(|_| (1..most).contains(&cpu)) else {
            return Err(CpuError::Absent { cpu, most });
        };
        if self.cpus.iter().any(|there| there.index == cpu) {
            return Ok(());
        }
        if self.tried & 1 << cpu != 0 {
            return Err(CpuError::Lost(cpu));
        }
        let (answer, answered) = sync_channel(1);
        match commands.try_send((cpu, answer)) {
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(CpuError::Busy(cpu));
            }
            // Never made twice, whatever becomes of it.
            Ok(()) => self.tried |= 1 << cpu,
        }
        let made = answered.recv_timeout(PATIENCE);
        let made = made.map_err(|_| CpuError::Lost(cpu))??;
        if self.running {
            made.order(Order::Run)?;
        }
        self.cpus.push(made);
        Ok(())
    }

    /// Lets all run.
    pub fn resume(&mut self) -> Result<(), CpuError> {
        if !self.running {
            for cpu in &self.cpus {
                cpu.leash.loosen();
                cpu.order(Order::Run)?;
            }
            self.running = true;
        }
        Ok(())
    }

    /// Stops all: none is in the guest when this returns.
    pub fn pause(&mut self) -> Result<(), CpuError> {
        if !self.running {
            return Ok(());
        }
        for cpu in &self.cpus {
            cpu.leash.pull();
            sys::signal_thread(cpu.thread, sys::KICK)?;
        }
        for cpu in &self.cpus {
            match cpu.answer()? {
                Answer::Stopped => {}
                _ => return Err(CpuError::Silent(cpu.index)),
            }
        }
        self.running = false;
        Ok(())
    }

    /// Whether none is in the guest.
    pub fn check_paused(&self) -> Result<(), CpuError> {
        match self.running {
            true => Err(CpuError::Running),
            false => Ok(()),
        }
    }

    /// Takes all down.
    pub fn save(&self) -> Result<Vec<(u8, SavedCpu)>, CpuError> {
        self.check_paused()?;
        let saved = self.cpus.iter().map(|cpu| {
            cpu.order(Order::Save)?;
            match cpu.answer()? {
                Answer::Saved(saved) => Ok((cpu.index, *saved)),
                Answer::Failed(error) => Err(CpuError::Failed(error)),
                _ => Err(CpuError::Silent(cpu.index)),
            }
        });
        saved.collect()
    }
}

/// Asked of a vCPU's thread.
enum Order {
    Run,
    Save,
}

/// What it answers.
enum Answer {
    /// It is there, and stands still.
    There(Pid),
    /// It has left the guest.
    Stopped,
    Saved(Box<SavedCpu>),
    Failed(String),
}

/// The owner's end of a vCPU's thread.
struct Cpu {
    index: u8,
    thread: Pid,
    leash: Leash,
    orders: SyncSender<Order>,
    answers: Receiver<Answer>,
}

impl Cpu {
    /// Starts the thread.
    fn start(index: u8, vcpu: Vcpu, stop: &Arc<Stop>) -> Result<Self, CpuError> {
        // Never dropped: its thread may not close descriptors, and its leash is held.
        let mut vcpu = ManuallyDrop::new(vcpu);
        let leash = vcpu.leash();
        let (orders, told) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let name = format!("vcpu{index}");
        spawn(&name, ThreadKind::Vcpu, stop, move || {
            Ok(serve(&mut vcpu, leash, &told, &answer))
        })?;
        match answers.recv_timeout(PATIENCE) {
            Ok(Answer::There(thread)) => Ok(Self {
                index,
                thread,
                leash,
                orders,
                answers,
            }),
            _ => Err(CpuError::Silent(index)),
        }
    }

    fn order(&self, order: Order) -> Result<(), CpuError> {
        // One that has ended takes none, and one that does not listen has one already.
        let given = self.orders.try_send(order);
        given.map_err(|_| CpuError::Silent(self.index))
    }

    fn answer(&self) -> Result<Answer, CpuError> {
        let answer = self.answers.recv_timeout(PATIENCE);
        answer.map_err(|_| CpuError::Silent(self.index))
    }
}

/// Follows orders until the guest is gone; returns why.
fn serve(
    vcpu: &mut Vcpu,
    leash: Leash,
    orders: &Receiver<Order>,
    answers: &SyncSender<Answer>,
) -> String {
    // An answer that nobody waits for any more is dropped with its channel.
    let _ = answers.send(Answer::There(gettid()));
    for order in iter::from_fn(|| orders.recv().ok()) {
        let answer = match order {
            Order::Run => match vcpu.run(leash) {
                Some(reason) => return reason,
                None => Answer::Stopped,
            },
            Order::Save => match vcpu.save() {
                Ok(saved) => Answer::Saved(Box::new(saved)),
                Err(error) => Answer::Failed(error.to_string()),
            },
        };
        let _ = answers.send(answer);
    }
    "the VMM ends".into()
}
