//! Joins a pod's network: links the interface that a CNI plugin made in the
//! pod's network namespace with a TAP whose other end is the guest's NIC.
//!
//! ```text
//!   host            pod's network namespace               VMM and guest
//!   veth <------> eth0 == eBPF, TC ingress ==> joey0 <---- virtio-net: eth0
//!                 eth0 <== eBPF, TC ingress == joey0       same MAC, addresses
//! ```
//!
//! [`attach`] reads what the plugin configured into an [`Endpoint`], which the
//! guest's agent applies to the guest's own interface, and makes the link.
//!
//! What happens to the namespace:
//!
//! * Every frame that arrives at the interface is redirected before the
//!   namespace's stack sees it, and so is every frame the guest sends. The
//!   stack therefore never answers for the guest: no ARP, no neighbour
//!   discovery, no duplicate address detection, no resets. What it may still
//!   send unasked, such as router solicitations for an interface that has just
//!   come up, bears the same addresses as the guest's own.
//! * The interface keeps its addresses and routes, and they are copied, not
//!   moved: CNI's CHECK compares them with what ADD returned, and DEL of some
//!   plugins reads them to find the firewall rules to remove.
//! * The TAP gets no address, not even an IPv6 link-local one, so that the
//!   namespace's stack has nothing to say to the guest.
//! * The loopback interface is left alone, but [`listen_on_loopback`] takes the
//!   TCP connections to it, of any port: whoever dials localhost in the namespace,
//!   as containerd does to forward a port, means the pod, whose loopback is in the
//!   guest.
//!
//! What outlives what: nothing is pinned. The TAP ends with its descriptor,
//! whoever holds it, and with the TAP the program on it. The program on the
//! pod's interface is removed by the [`Attachment`]; should its process be
//! killed, it stays as a filter that drops what arrives, until the interface
//! goes with the pod's network or another attachment replaces it. [`HookKind`]
//! says why that is preferred to a `bpf_link`, which would end by itself.
//! CNI's DEL works in every one of these states, since it deletes the interface.
//!
//! What the guest must do with an [`Endpoint`]:
//!
//! * give its NIC the endpoint's MAC and MTU. The MAC makes the guest generate
//!   the same IPv6 link-local address, which is therefore not in the list;
//! * add the addresses with `IFA_F_NODAD`, as the plugin has already done
//!   duplicate address detection for them and pods do not wait for it twice,
//!   and with `IFA_F_NOPREFIXROUTE`, as [`Endpoint::routes`] is complete and
//!   some plugins remove the routes the kernel derives from addresses;
//! * add the routes in order with `NLM_F_CREATE | NLM_F_REPLACE`.
//!
//! The programs are C, compiled by clang when this crate is built, and loaded
//! by system calls of this crate. A general loader (aya 0.14 was measured)
//! reads and parses the kernel's whole type information on every load: 18 ms
//! and 3 MB on a machine where all of attaching takes 0.9 ms. The calls made
//! here block; an asynchronous caller gives them a thread.

#[cfg(target_endian = "big")]
compile_error!("the eBPF programs are compiled and patched as little-endian");

mod attach;
mod clsact;
mod endpoint;
mod error;
mod hook;
mod inventory;
mod loader;
mod loopback;
mod namespace;
mod netlink;
mod sys;
mod tap;

pub use attach::{Attachment, Counters, Options, Remains, Traffic, attach, sweep};
pub use endpoint::{Cidr, Endpoint, Neighbour, ParseCidrError, Route};
pub use error::Error;
pub use hook::HookKind;
pub use loader::BpfError;
pub use loopback::{Loopback, listen_on_loopback};
pub use netlink::NetlinkError;
pub use tap::{OFFLOADS, TapError, VNET_HEADER_BYTES, set_offloads};
