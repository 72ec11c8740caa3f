//! The crate's error.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::loader::BpfError;
use crate::netlink::NetlinkError;
use crate::tap::TapError;

/// Why a pod's network could not be joined or left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path does not exist.
    #[error("network namespace {}: no such file; the CNI plugin's ADD comes first", .netns.display())]
    Missing {
        /// The path as given.
        netns: PathBuf,
    },
    /// The path cannot be opened.
    #[error("network namespace {}: cannot be opened; check the path and the permissions", .netns.display())]
    Open {
        /// The path as given.
        netns: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path is something else, often the file whose bind mount is gone.
    #[error("{} is not a network namespace; its bind mount may be gone, let the pod be made anew", .netns.display())]
    NotNamespace {
        /// The path as given.
        netns: PathBuf,
    },
    /// The path is the namespace of the caller: its interface is the node's.
    #[error("network namespace {} is the one this process is in; a pod in the host's network has nothing to attach", .netns.display())]
    OwnNamespace {
        /// The path as given.
        netns: PathBuf,
    },
    /// The namespace cannot be entered.
    #[error("network namespace {}: cannot be entered; CAP_SYS_ADMIN is needed", .netns.display())]
    Enter {
        /// The path as given.
        netns: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread could be started to enter the namespace.
    #[error("network namespace {}: no thread to enter it with; check the limit on tasks", .netns.display())]
    Thread {
        /// The path as given.
        netns: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a question or a change over rtnetlink.
    #[error("network namespace {}: {action}", .netns.display())]
    Netlink {
        /// The path as given.
        netns: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The reason.
        source: NetlinkError,
    },
    /// The interface is of a kind that a virtio NIC cannot stand in for.
    #[error("network namespace {}: {interface} {reason}; use a CNI plugin that makes an Ethernet interface", .netns.display())]
    Unsupported {
        /// The path as given.
        netns: PathBuf,
        /// The interface's name.
        interface: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The interface has addresses but is down.
    #[error("network namespace {}: {interface} is down; the CNI plugin's ADD has not finished or has failed", .netns.display())]
    Down {
        /// The path as given.
        netns: PathBuf,
        /// The interface's name.
        interface: String,
    },
    /// Duplicate address detection found another owner.
    #[error("network namespace {}: {address} of {interface} is in use elsewhere on the link; check the CNI plugin's address ranges", .netns.display())]
    DuplicateAddress {
        /// The path as given.
        netns: PathBuf,
        /// The interface's name.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// The TAP could not be made.
    #[error("network namespace {}: making the TAP {name}", .netns.display())]
    Tap {
        /// The path as given.
        netns: PathBuf,
        /// The TAP's name.
        name: String,
        /// The reason.
        source: TapError,
    },
    /// The eBPF programs or their map were refused.
    #[error("network namespace {}: linking {interface} with the guest", .netns.display())]
    Bpf {
        /// The path as given.
        netns: PathBuf,
        /// The interface's name.
        interface: String,
        /// The reason.
        source: BpfError,
    },
    /// No socket can listen in the namespace.
    #[error("network namespace {}: listening for connections to its loopback", .netns.display())]
    Listen {
        /// The path as given.
        netns: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Connections to the loopback cannot be steered.
    #[error("network namespace {}: taking the connections to its loopback", .netns.display())]
    Steer {
        /// The path as given.
        netns: PathBuf,
        /// The reason.
        source: BpfError,
    },
}
