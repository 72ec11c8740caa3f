//! Whether this host's KVM runs ordinary guests, found out by running a very
//! small one: a few dozen instructions that every kernel executes when it boots.
//!
//! A /dev/kvm may be there and answer every question well, and still be a
//! software flavour that needs a kernel made for it: it emulates such
//! instructions, slowly, and stalls on some.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit};

use crate::arch::x86_64::cpuid::Template;
use crate::arch::x86_64::{msrs, regs};
use crate::kvm::{self, KvmError, failed};
use crate::memory::{GuestRam, MemoryError};

/// Guest memory in bytes: tables, program, and the FPU's state.
const MEMORY: u64 = 16 << 20;
/// Where the program is. It stores FPU state at 2 MiB.
const ENTRY: u64 = 1 << 20;
/// The port on which the guest reports the number of a step that it has done.
const PORT: u16 = 0x10;

/// Instructions of the last step.
pub const LOOP_INSTRUCTIONS: u64 = 20_000_000;

/// What the guest does, step by step: what it is called, and the machine code.
const STEPS: [(&str, &[u8]); 6] = [
    ("long mode", &[]),
    (
        "CPUID",
        &[
            0x31, 0xc0, // xor eax, eax
            0x0f, 0xa2, // cpuid
        ],
    ),
    (
        "control registers and FPU",
        &[
            0x0f, 0x20, 0xc0, // mov rax, cr0
            0x48, 0x83, 0xe0, 0xf3, // and rax, ~(EM | TS)
            0x48, 0x83, 0xc8, 0x22, // or rax, MP | NE
            0x0f, 0x22, 0xc0, // mov cr0, rax
            0x0f, 0x20, 0xe0, // mov rax, cr4
            0x48, 0x0d, 0x00, 0x06, 0x00, 0x00, // or rax, OSFXSR | OSXMMEXCPT
            0x0f, 0x22, 0xe0, // mov cr4, rax
            0xdb, 0xe3, // fninit
            0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 2 MiB
            0x0f, 0xae, 0x07, // fxsave [rdi]
            0x0f, 0xae, 0x0f, // fxrstor [rdi]
            0x0f, 0x10, 0x07, // movups xmm0, [rdi]
        ],
    ),
    (
        "extended FPU state (XSETBV)",
        &[
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
            0x0f, 0xa2, // cpuid
            0x0f, 0xba, 0xe1, 0x1a, // bt ecx, XSAVE
            0x73, 0x28, // jnc to the end of the step
            0x0f, 0x20, 0xe0, // mov rax, cr4
            0x48, 0x0d, 0x00, 0x00, 0x04, 0x00, // or rax, OSXSAVE
            0x0f, 0x22, 0xe0, // mov cr4, rax
            0x31, 0xc9, // xor ecx, ecx
            0x0f, 0x01, 0xd0, // xgetbv
            0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, x87 | SSE
            0x31, 0xd2, // xor edx, edx
            0x0f, 0x01, 0xd1, // xsetbv
            0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, x87 | SSE
            0x31, 0xd2, // xor edx, edx
            0x0f, 0xae, 0x27, // xsave [rdi]
            0x0f, 0xae, 0x2f, // xrstor [rdi]
        ],
    ),
    (
        "model-specific registers",
        &[
            0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, EFER
            0x0f, 0x32, // rdmsr
            0x83, 0xc8, 0x01, // or eax, SCE
            0x0f, 0x30, // wrmsr
            0xb9, 0x01, 0x01, 0x00, 0xc0, // mov ecx, GS_BASE
            0x31, 0xc0, // xor eax, eax
            0x31, 0xd2, // xor edx, edx
            0x0f, 0x30, // wrmsr
            0x0f, 0x01, 0xf8, // swapgs
            0x0f, 0x20, 0xd8, // mov rax, cr3
            0x0f, 0x22, 0xd8, // mov cr3, rax
        ],
    ),
    (
        "20 million instructions at full speed",
        &[
            0xb9, 0x80, 0x96, 0x98, 0x00, // mov ecx, 10 000 000
            0xff, 0xc9, // dec ecx
            0x75, 0xfc, // jnz to dec
        ],
    ),
];

/// How far the guest came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did all steps; the last one took this long.
    Works(Duration),
    /// It did not finish this step in time.
    Stuck(&'static str),
    /// KVM gave it up in this step.
    Failed {
        /// The step.
        step: &'static str,
        /// What KVM said.
        reason: String,
    },
}

/// The guest could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory for it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No thread for it.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Runs the guest on an open /dev/kvm, for at most `limit`. One that is stuck
/// stays so until this process ends: call this once.
pub fn run(kvm: OwnedFd, limit: Duration) -> Result<Outcome, ProbeError> {
    let kvm = kvm::open(kvm)?;
    let ram = GuestRam::allocate(MEMORY)?;
    regs::write_tables(ram)?;
    ram.put(ENTRY, &program())?;
    let (sender, reports) = channel();
    let (ready, started) = channel();
    thread::Builder::new().name("probe".into()).spawn(move || {
        match run_guest(&kvm, ram, &ready, &sender) {
            Ok(()) => {}
            Err(error) => {
                // Nobody waits any more after the limit.
                let _ = ready.send(Err(error));
            }
        }
    })?;
    match started.recv() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Ok(gave_up(0, "the thread ended".into())),
    }
    Ok(follow(&reports, limit))
}

/// What the guest's thread says.
enum Report {
    Done(u8),
    Failed(String),
}

fn run_guest(
    kvm: &Kvm,
    ram: GuestRam,
    ready: &Sender<Result<(), KvmError>>,
    reports: &Sender<Report>,
) -> Result<(), KvmError> {
    let vm = kvm.create_vm().map_err(failed("create a VM"))?;
    kvm::add_memory(&vm, ram)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    let cpuid = Template::new(kvm, 1)?.for_cpu(0)?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("set CPUID"))?;
    msrs::set(&vcpu)?;
    regs::set(&vcpu, ENTRY)?;
    let _ = ready.send(Ok(()));
    loop {
        let report = match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, &[step])) => Report::Done(step),
            Ok(exit) => Report::Failed(format!("{exit:?}")),
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => Report::Failed(error.to_string()),
        };
        let last = match report {
            Report::Done(step) => usize::from(step) >= STEPS.len(),
            Report::Failed(_) => true,
        };
        if reports.send(report).is_err() || last {
            return Ok(());
        }
    }
}

fn follow(reports: &std::sync::mpsc::Receiver<Report>, limit: Duration) -> Outcome {
    let end = Instant::now() + limit;
    let mut done = 0;
    let mut since = Instant::now();
    while done < STEPS.len() {
        let left = end.saturating_duration_since(Instant::now());
        match reports.recv_timeout(left) {
            Ok(Report::Done(step)) => {
                done = usize::from(step);
                if done >= STEPS.len() {
                    return Outcome::Works(since.elapsed());
                }
                since = Instant::now();
            }
            Ok(Report::Failed(reason)) => return gave_up(done, reason),
            Err(RecvTimeoutError::Timeout) => return Outcome::Stuck(name(done)),
            Err(RecvTimeoutError::Disconnected) => {
                return gave_up(done, "the thread ended".into());
            }
        }
    }
    Outcome::Works(since.elapsed())
}

fn gave_up(done: usize, reason: String) -> Outcome {
    Outcome::Failed {
        step: name(done),
        reason,
    }
}

/// The step after `done` of them.
fn name(done: usize) -> &'static str {
    STEPS.get(done).map_or("the end", |(name, _)| name)
}

/// Each step, and a report after it.
fn program() -> Vec<u8> {
    let mut code = Vec::new();
    for ((_, step), number) in STEPS.iter().zip(1u8..) {
        code.extend_from_slice(step);
        // mov al, number; out PORT, al
        code.extend_from_slice(&[0xb0, number, 0xe6, PORT as u8]);
    }
    // hlt
    code.push(0xf4);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_reports_once() {
        let code = program();
        for number in 1..=STEPS.len() as u8 {
            let report = [0xb0, number, 0xe6, 0x10];
            let count = code.windows(4).filter(|bytes| *bytes == report).count();
            assert_eq!(count, 1, "step {number}");
        }
        assert_eq!(code.last(), Some(&0xf4));
    }

    #[test]
    fn the_outcome_names_the_step() {
        let (sender, reports) = channel();
        sender.send(Report::Done(1)).unwrap();
        sender.send(Report::Done(2)).unwrap();
        let stuck = follow(&reports, Duration::from_millis(1));
        assert_eq!(stuck, Outcome::Stuck("control registers and FPU"));
        sender.send(Report::Failed("FailEntry".into())).unwrap();
        assert!(matches!(
            follow(&reports, Duration::from_secs(60)),
            Outcome::Failed {
                step: "long mode",
                ..
            }
        ));
        sender.send(Report::Done(6)).unwrap();
        assert!(matches!(
            follow(&reports, Duration::from_secs(60)),
            Outcome::Works(_)
        ));
    }
}
