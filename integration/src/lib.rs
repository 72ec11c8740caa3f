//! The test bed: boots a Debian virtual machine in which real KVM runs real
//! microVMs, and runs commands in it.
//!
//! [`testbed`] is the side that tests use; [`channel`] is what it says to
//! `testhost-init`, the test host's PID 1, over one TCP connection per command.

pub mod channel;
pub mod combination;
pub mod conformance;
#[cfg(feature = "drivers")]
pub mod cri;
pub mod differential;
pub mod install;
pub mod leaks;
#[cfg(feature = "drivers")]
pub mod perf;
#[cfg(feature = "drivers")]
pub mod processes;
#[cfg(feature = "drivers")]
pub mod records;
pub mod testbed;
