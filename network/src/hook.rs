//! Where a program hangs on an interface.

use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::attach::Remains;
use crate::clsact::Filter;
use crate::loader::{self, BpfError, CounterMap, Link, Program};
use crate::netlink::{Netlink, NetlinkError};

/// How the programs are attached.
///
/// A filter is in place at once. For a link the kernel waits, holding the lock
/// that all of the node's network configuration shares, until no CPU can be
/// using the list of programs it replaced: measured at 10 ms and more, twice.
/// A link on the other hand ends with the process that holds it, while a
/// filter on the pod's interface must be removed, or goes with the interface
/// when the pod's network is deleted. Left behind, it drops what arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HookKind {
    /// Clsact where the kernel has it, else TCX.
    #[default]
    Auto,
    /// By a filter of the clsact qdisc.
    Clsact,
    /// By a `bpf_link` (kernel 6.6).
    Tcx,
}

/// A program on an interface.
#[derive(Debug)]
pub(crate) enum Hook {
    Clsact(Filter),
    /// Ends when it is dropped.
    Tcx {
        _link: Link,
    },
}

impl Hook {
    /// Sends every frame that arrives at the interface `from` out at `to`.
    pub(crate) fn attach(
        netlink: &mut Netlink,
        kind: HookKind,
        program: &Program,
        counters: &CounterMap,
        from: u32,
        to: u32,
    ) -> Result<Self, BpfError> {
        let loaded = program.load(counters.as_fd(), to)?;
        if kind != HookKind::Tcx {
            // An interface's index is never given again in its namespace, so
            // `to` is a handle that no other attachment has.
            match Filter::attach(netlink, from, to, loaded.as_fd(), program.name()) {
                Ok(filter) => return Ok(Self::Clsact(filter)),
                Err(error) if kind == HookKind::Auto && unknown(&error) => {}
                Err(error) => return Err(BpfError::Clsact(error)),
            }
        }
        let link = loader::attach_tcx(loaded.as_fd(), from)?;
        Ok(Self::Tcx { _link: link })
    }

    /// Whether [`Hook::remove`] must be called, in the interface's namespace.
    pub(crate) fn outlives_us(&self) -> bool {
        matches!(self, Self::Clsact(_))
    }

    /// What stays when this process is killed.
    pub(crate) fn remains(&self) -> Option<Remains> {
        match self {
            Self::Tcx { .. } => None,
            Self::Clsact(filter) => Some(filter.remains()),
        }
    }

    /// Takes the program off the interface.
    pub(crate) fn remove(self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        match self {
            Self::Tcx { .. } => Ok(()),
            Self::Clsact(filter) => filter.remove(netlink),
        }
    }
}

/// The answers of kernels that lack the qdisc or the classifier.
fn unknown(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | Errno::EOPNOTSUPP))
}
