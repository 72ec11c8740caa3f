//! A VMM that was taken over: started, handed its files and locked up as `joey-vmm` is, it
//! then makes one attempt instead of running a guest. It is this test program by another name.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vmm::channel::Channel;
use vmm::jail::Cell;
use vmm::seccomp::{self, ThreadKind};
use vmm::sys;
use vmm::{Action, Reply};

use crate::attempts::{ATTEMPTS, Reached, Target};

/// What it shall do; it comes as the id of the VM that it is told to boot.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Order {
    /// The attempt's name.
    pub attempt: String,
    /// As which kind of thread; `None`: without a filter of system calls.
    pub kind: Option<String>,
    /// What it knows.
    pub target: Target,
}

/// An attempt of nothing: it waits for its end.
pub const LINGER: &str = "linger";

/// All kinds of threads, by name.
pub const KINDS: [(&str, ThreadKind); 7] = [
    ("vcpu", ThreadKind::Vcpu),
    ("cpus", ThreadKind::Cpus),
    ("devices", ThreadKind::Devices),
    ("disk", ThreadKind::Disk),
    ("volumes", ThreadKind::Volumes),
    ("fs", ThreadKind::Fs),
    ("memory", ThreadKind::Memory),
];

/// The whole life of the process. It tells by its answer to the boot what it reached.
pub fn live() -> ! {
    let inherited = |number| sys::inherited(number).expect("the client's descriptors");
    let control = Channel::new(inherited(3));
    let _events = inherited(4);
    let _lease = inherited(5);
    let cell = Cell::enter(sys::inherited(6).ok()).expect("a cell");
    let (action, files) = control.receive::<Action>().expect("an action");
    let Action::Boot(spec) = action else {
        panic!("not a boot: {action:?}");
    };
    let text = File::from(files[0].try_clone().expect("the order's file"));
    let mut bytes = vec![0; text.metadata().expect("its length").len() as usize];
    text.read_exact_at(&mut bytes, 0).expect("an order");
    drop(text);
    let mut order: Order = serde_json::from_slice(&bytes).expect("an order");
    order.target.give(&files[1], &files[2], &files[3]);
    let given = files.iter().map(AsRawFd::as_raw_fd);
    order.target.known = (0..6).chain(given).collect();
    cell.lock(spec.uid, spec.gid).expect("a lock");
    if let Some(name) = &order.kind {
        let found = KINDS.iter().find(|(kind, _)| kind == name);
        seccomp::install(found.expect("a kind").1).expect("a filter");
    }
    let linger = order.attempt == LINGER;
    let outcome = match linger {
        true => Ok("locked up".to_owned()),
        false => attempt(&order.attempt, &order.target),
    };
    // A refusal carries a text.
    let answer = Reply::Failed(describe(&outcome));
    control.send(&answer, &[]).expect("a reader");
    if linger {
        let _ = control.receive::<Action>();
    }
    sys::exit_now(0);
}

/// Makes the attempt of a name.
pub fn attempt(name: &str, target: &Target) -> Reached {
    let found = ATTEMPTS.iter().find(|attempt| attempt.name == name);
    (found.expect("an attempt").run)(target)
}

/// How an outcome is told.
pub fn describe(outcome: &Reached) -> String {
    match outcome {
        Ok(what) => format!("reached: {what}"),
        Err(error) => format!("stopped: {error}"),
    }
}
