//! The threads of the vCPUs, and how all of them are stopped at once.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use std::{io, iter};

use nix::unistd::{Pid, gettid};

use crate::arch::x86_64::state::SavedCpu;
use crate::kvm::Leash;
use crate::poll::spawn;
use crate::seccomp::{self, ThreadKind};
use crate::sys;
use crate::vcpu::{Stop, Vcpu};
use crate::vm::CpuFactory;

/// How long the owner waits for a vCPU before it is told that it failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why vCPUs do not do what they are told.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// There is none of that number.
    #[error("there is no vCPU {cpu} to start: 1 to {most} are")]
    Absent {
        /// As asked for.
        cpu: u8,
        /// The last one.
        most: usize,
    },
    /// It cannot be made, or read.
    #[error("{0}")]
    Failed(String),
    /// It does not answer, or has ended.
    #[error("vCPU {0} does not answer: the guest is gone, or the host has no time for it")]
    Silent(u8),
    /// Its thread cannot be reached.
    #[error("cannot signal a vCPU's thread: {0}")]
    Signal(#[from] io::Error),
    /// Only what stands still can be saved.
    #[error("the VM runs: pause it first")]
    Running,
}

/// Asked of a vCPU's thread.
enum Order {
    Run,
    Save,
}

/// What it answers.
enum Answer {
    /// It is there, and stands still.
    Made(Pid, Leash),
    /// It has left the guest.
    Stopped,
    Saved(Box<SavedCpu>),
    Failed(String),
}

/// The owner's end of a vCPU's thread.
struct Cpu {
    index: u8,
    orders: SyncSender<Order>,
    answers: Receiver<Answer>,
    /// Once it is made.
    made: Option<(Pid, Leash)>,
}

/// The vCPUs of a VM, which all run or all stand still.
pub struct Cpus {
    cpus: Vec<Cpu>,
    running: bool,
}

impl Cpus {
    /// Starts the threads of the vCPUs that are there already, and of those that the guest
    /// may start later, `count` in all. Nothing runs yet.
    pub fn start(
        made: Vec<(u8, Vcpu)>,
        count: u8,
        factory: &CpuFactory,
        stop: &Arc<Stop>,
    ) -> Result<Self, CpuError> {
        let mut made = made.into_iter().peekable();
        let mut cpus = Vec::new();
        for index in 0..count {
            let vcpu = made.next_if(|(of, _)| *of == index).map(|(_, vcpu)| vcpu);
            let there = vcpu.is_some();
            let mut cpu = Cpu::start(index, vcpu, factory, stop)?;
            if there {
                cpu.await_made()?;
            }
            cpus.push(cpu);
        }
        Ok(Self {
            cpus,
            running: false,
        })
    }

    /// Makes a vCPU, so that the guest can start it; one that is there already is fine.
    pub fn online(&mut self, cpu: u8) -> Result<(), CpuError> {
        let most = self.cpus.len() - 1;
        let running = self.running;
        let absent = CpuError::Absent { cpu, most };
        let one = self.cpus.get_mut(usize::from(cpu)).filter(|_| cpu > 0);
        let one = one.ok_or(absent)?;
        if one.made.is_some() {
            return Ok(());
        }
        // The first order makes it.
        one.order(Order::Run)?;
        one.await_made()?;
        if running {
            one.order(Order::Run)
        } else {
            Ok(())
        }
    }

    /// Lets all run.
    pub fn resume(&mut self) -> Result<(), CpuError> {
        if !self.running {
            for cpu in self.made() {
                if let Some((_, leash)) = cpu.made {
                    leash.loosen();
                }
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
        for cpu in self.made() {
            if let Some((thread, leash)) = cpu.made {
                leash.pull();
                sys::signal_thread(thread, sys::KICK)?;
            }
        }
        for cpu in self.made() {
            match cpu.answer()? {
                Answer::Stopped => {}
                _ => return Err(CpuError::Silent(cpu.index)),
            }
        }
        self.running = false;
        Ok(())
    }

    /// Takes all down.
    pub fn save(&mut self) -> Result<Vec<(u8, SavedCpu)>, CpuError> {
        if self.running {
            return Err(CpuError::Running);
        }
        self.made()
            .map(|cpu| {
                cpu.order(Order::Save)?;
                match cpu.answer()? {
                    Answer::Saved(saved) => Ok((cpu.index, *saved)),
                    Answer::Failed(error) => Err(CpuError::Failed(error)),
                    _ => Err(CpuError::Silent(cpu.index)),
                }
            })
            .collect()
    }

    fn made(&mut self) -> impl Iterator<Item = &mut Cpu> {
        self.cpus.iter_mut().filter(|cpu| cpu.made.is_some())
    }
}

impl Cpu {
    /// Starts the thread, with its vCPU or to make one at the first order.
    fn start(
        index: u8,
        vcpu: Option<Vcpu>,
        factory: &CpuFactory,
        stop: &Arc<Stop>,
    ) -> Result<Self, CpuError> {
        let (orders, told) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let kind = match &vcpu {
            Some(_) => ThreadKind::Vcpu,
            None => ThreadKind::ParkedVcpu,
        };
        let factory = factory.clone();
        spawn(&format!("vcpu{index}"), kind, stop, move || {
            let vcpu = match vcpu {
                Some(vcpu) => Ok(vcpu),
                None => {
                    // The sender lives as long as the process.
                    let _ = told.recv();
                    make(&factory, index)
                }
            };
            // Never dropped: its thread may not close descriptors, and its leash is held.
            let mut vcpu = match vcpu.map(ManuallyDrop::new) {
                Ok(vcpu) => vcpu,
                Err(error) => {
                    let _ = answer.send(Answer::Failed(error.clone()));
                    return Ok(format!("vcpu failed: {error}"));
                }
            };
            Ok(serve(&mut vcpu, &told, &answer))
        })?;
        Ok(Self {
            index,
            orders,
            answers,
            made: None,
        })
    }

    fn await_made(&mut self) -> Result<(), CpuError> {
        match self.answer()? {
            Answer::Made(thread, leash) => {
                self.made = Some((thread, leash));
                Ok(())
            }
            Answer::Failed(error) => Err(CpuError::Failed(error)),
            _ => Err(CpuError::Silent(self.index)),
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

/// Makes a vCPU on its own thread, and gives up the right to make more.
fn make(factory: &CpuFactory, index: u8) -> Result<Vcpu, String> {
    let vcpu = factory.make(index).map_err(|error| error.to_string())?;
    seccomp::install(ThreadKind::Vcpu).map_err(|error| error.to_string())?;
    Ok(vcpu)
}

/// Follows orders until the guest is gone; returns why.
fn serve(vcpu: &mut Vcpu, orders: &Receiver<Order>, answers: &SyncSender<Answer>) -> String {
    let leash = vcpu.leash();
    // An answer that nobody waits for any more is dropped with its channel.
    let _ = answers.send(Answer::Made(gettid(), leash));
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
