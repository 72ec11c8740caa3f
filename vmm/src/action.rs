//! The conversation over the inherited socket pair: one [`Action`] a message
//! (SOCK_SEQPACKET, JSON, descriptors by SCM_RIGHTS), one [`Reply`] to each, in
//! order. [`Event`]s come unasked on a socket of their own.

use serde::{Deserialize, Serialize};

use crate::spec::VmSpec;

/// Asked of the VMM by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Build a VM of this shape and lock the process up; the VM stands at its kernel's
    /// first instruction. Carries the descriptors of [`crate::BootFiles`], in its order.
    Boot(Box<VmSpec>),
    /// The same, where the VM stands where a snapshot of one of this shape was made.
    /// Carries the descriptors of [`crate::RestoreFiles`], in its order.
    Restore {
        /// Its shape.
        spec: Box<VmSpec>,
        /// Nobody waits for it yet.
        ahead: bool,
    },
    /// Wait for another owner, with a VM that has not run yet: whoever connects first to
    /// the listening socket (SOCK_SEQPACKET) that this carries. This owner is not heard any
    /// more. Without a new one the process ends by itself.
    Park {
        /// How long it waits, in seconds.
        seconds: u32,
    },
    /// Let a VM run that has not run yet. Carries the descriptors of [`crate::RunFiles`],
    /// in its order.
    Run {
        /// Bytes of scratch, in whole sectors of 512.
        scratch: u64,
        /// Whether there is a TAP.
        tap: bool,
        /// Whether a new owner says where events and messages go.
        adopt: bool,
    },
    /// Stop all vCPUs. The devices go on.
    Pause,
    /// Let them go on.
    Resume,
    /// Write a VM that is paused to two files: its memory, whose file has the right length
    /// and is empty otherwise, and the rest, to an empty file. Carries both, in this order.
    Save {
        /// It goes on in another process: nothing of it runs here any more, once this has
        /// succeeded, and [`Action::Connections`] and [`Action::Shutdown`] are all that is left.
        /// What is attached to it has to be attached again there, before it runs. Without this,
        /// a VM with something attached is refused.
        leave: bool,
    },
    /// Hand over the sockets of a VM's connections, after [`Action::Save`] with `leave`.
    /// Answer: [`Reply::Connections`], with the first [`crate::files::MAX_FILES`] of them.
    Connections {
        /// Those before this host port are known.
        from: u32,
    },
    /// Go on with saved connections, of a VM that has not run yet. Carries their sockets, in
    /// the ports' order. Of those that it is not given the guest hears that they are gone.
    TakeOver {
        /// Host ports, at most [`crate::files::MAX_FILES`].
        ports: Vec<u32>,
    },
    /// Remember which pages are written to, of a VM that is paused.
    LogWrites,
    /// Write down which pages were written to since [`Action::LogWrites`], of a VM that is
    /// paused again. Carries the file that its memory was saved to before that, and an empty
    /// one for the list, of which nobody but [`Action::Restore`] knows the format.
    Changes,
    /// Make one image file readable in the image window at `offset`.
    /// Carries the file's descriptor. Offset and length: multiples of 4096.
    MapImage {
        /// Byte offset in the window.
        offset: u64,
        /// Bytes of the file to show, from its start.
        length: u64,
    },
    /// Take back what `MapImage` put at `offset`.
    UnmapImage {
        /// As given to `MapImage`.
        offset: u64,
    },
    /// Start the thread of this vCPU (1..vcpus), so that the guest can online it.
    OnlineCpu {
        /// Index of the vCPU.
        cpu: u8,
    },
    /// Ask the guest to have this much memory beyond [`VmSpec::memory_mib`], in MiB: an
    /// even number, at most [`VmSpec::hotplug_mib`]. [`Event::MemoryResized`] says when it
    /// has; it may keep more than it is asked to.
    ResizeMemory {
        /// MiB beyond what it booted with.
        mib: u32,
    },
    /// Ask the guest to do without this much of its memory.
    InflateBalloon {
        /// MiB that it shall not use; 0: it may use all.
        mib: u32,
    },
    /// Put a file system daemon behind the file system device. Carries the descriptors
    /// of [`crate::FsBackend`], in its order. Answer: [`Reply::Attached`].
    AttachFs,
    /// Take the daemon away again. The guest must have released the device.
    DetachFs,
    /// Put a block device or file behind a spare disk. Carries its descriptor.
    /// Answer: [`Reply::Attached`].
    AttachDisk {
        /// Bytes to show, in whole sectors of 512.
        size: u64,
        /// Whether writes are refused.
        read_only: bool,
        /// Which one: that of before, when the VM was saved with it. Else the first that is
        /// free.
        slot: Option<u8>,
    },
    /// Take back what `AttachDisk` put in this slot.
    DetachDisk {
        /// As answered to `AttachDisk`.
        slot: u8,
    },
    /// Counters of the VM and its devices.
    Stats,
    /// The newest of what the guest's kernel has logged.
    KernelLog,
    /// Stop the VM and exit.
    Shutdown,
}

/// Answer to an [`Action`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// Answer to [`Action::Stats`].
    Stats(Box<crate::metrics::Stats>),
    /// Answer to [`Action::AttachFs`] and [`Action::AttachDisk`].
    Attached {
        /// Which slot of its kind was taken.
        slot: u8,
        /// The device's name below /sys/bus/platform/devices of the guest.
        device: String,
    },
    /// Answer to [`Action::Connections`]: their host ports in ascending order. Carries their
    /// sockets, in the same order.
    Connections(Vec<u32>),
    /// Answer to [`Action::KernelLog`]: lines of printable ASCII, at most
    /// [`crate::kernel_log::ring::MAX_TEXT`] bytes.
    KernelLog(String),
    /// Not done; one sentence that names the thing and the next step.
    Failed(String),
}

/// Said unasked by the VMM, newline-delimited JSON; end of file means that the VMM died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The agent dialled the ready port.
    Ready,
    /// The file system daemon is gone or made no sense. The guest gets I/O errors from
    /// its file system from now on.
    FsLost {
        /// Why, in words.
        reason: String,
    },
    /// The guest has the memory that [`Action::ResizeMemory`] asked for last.
    MemoryResized {
        /// MiB beyond what it booted with.
        mib: u32,
    },
    /// The guest is gone. The VMM exits soon after it; until then its owner may ask
    /// for the kernel's log.
    Stopped {
        /// Why, in words: "guest reset", "guest panic", "vcpu failed: ...".
        reason: String,
    },
}
