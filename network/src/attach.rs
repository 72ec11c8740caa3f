//! Making the link between a pod's interface and a guest, and undoing it.

use std::os::fd::OwnedFd;
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use nix::errno::Errno;

use crate::clsact::Filter;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::hook::{Hook, HookKind};
use crate::inventory::{Found, Tables, Unfit};
use crate::loader::{BpfError, CounterMap, FROM_GUEST, TO_GUEST};
use crate::namespace::Namespace;
use crate::netlink::{Netlink, NetlinkError};
use crate::tap::Tap;

/// What can be chosen about an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The TAP's name in the pod's namespace, at most 15 bytes. An interface
    /// of that name there means that another sandbox is attached.
    pub tap_name: String,
    /// How the programs are attached.
    pub hook: HookKind,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tap_name: "joey0".into(),
            hook: HookKind::Auto,
        }
    }
}

/// What was handed over in one direction since attaching.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames; one that carries many segments counts once.
    pub packets: u64,
    /// Bytes, Ethernet headers included.
    pub bytes: u64,
}

/// What was handed over since attaching.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the pod's interface to the guest.
    pub to_guest: Traffic,
    /// From the guest to the pod's interface.
    pub from_guest: Traffic,
}

/// What of an attachment stays when its process is killed: the filter on the pod's
/// interface. See [`sweep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The interface's index, which its namespace never gives again.
    pub interface: u32,
    /// Which of the interface's filters.
    pub handle: u32,
}

/// Removes what an attachment left whose process was killed. Nothing of the namespace's
/// others is touched; what is gone already, or went with the namespace, is fine.
///
/// # Errors
///
/// When the namespace cannot be entered, or the filter not removed.
pub fn sweep(netns: &Path, remains: Remains) -> Result<(), Error> {
    let namespace = match Namespace::open(netns) {
        Ok(namespace) => namespace,
        Err(Error::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let refused = |source| Error::Netlink {
        netns: netns.to_owned(),
        action: "removing a filter that was left",
        source,
    };
    let swept = namespace.run(|| {
        let mut netlink = Netlink::open().map_err(refused)?;
        Filter::of(remains).remove(&mut netlink).map_err(refused)
    });
    match swept {
        // The bind mount is gone, and the namespace with it.
        Err(Error::NotNamespace { .. }) => Ok(()),
        // The interface has lost the qdisc that held all filters.
        Err(Error::Netlink { source, .. }) if source.errno() == Some(Errno::EINVAL) => Ok(()),
        swept => swept,
    }
}

/// A guest's link to its pod's network. Ends with [`Attachment::detach`] or
/// when dropped; the TAP ends with its descriptor, whoever holds it.
#[derive(Debug)]
pub struct Attachment {
    namespace: Namespace,
    endpoint: Endpoint,
    left_out: Vec<String>,
    tap: Option<OwnedFd>,
    counters: CounterMap,
    hooks: Vec<Hook>,
}

/// Joins the network of the pod whose namespace is at `netns`: makes a TAP in
/// it and links it with the interface that the CNI plugin made there.
///
/// Of several interfaces the guest gets the one with the default route, IPv4
/// before IPv6, else the first; [`Attachment::left_out`] names the others.
/// `None`: there is only loopback. The calling thread's namespace does not
/// change; the work is done on another.
///
/// # Errors
///
/// Leaves the namespace as it was. See [`Error`] for the reasons.
pub fn attach(netns: &Path, options: &Options) -> Result<Option<Attachment>, Error> {
    let namespace = Namespace::open(netns)?;
    let joined = namespace.run(|| join(netns, options))?;
    Ok(joined.map(|joined| Attachment {
        namespace,
        endpoint: joined.found.endpoint,
        left_out: joined.found.left_out,
        tap: Some(joined.tap.fd),
        counters: joined.counters,
        hooks: joined.hooks,
    }))
}

struct Joined {
    found: Found,
    tap: Tap,
    counters: CounterMap,
    hooks: Vec<Hook>,
}

/// The part of [`attach`] that runs in the namespace.
fn join(netns: &Path, options: &Options) -> Result<Option<Joined>, Error> {
    let netns = || netns.to_owned();
    let refused = |(action, source)| Error::Netlink {
        netns: netns(),
        action,
        source,
    };
    let mut netlink = Netlink::open().map_err(|error| refused(("opening rtnetlink", error)))?;
    let tables = Tables::read(&mut netlink).map_err(refused)?;
    let found = tables.find().map_err(|(interface, unfit)| match unfit {
        Unfit::Kind(reason) => Error::Unsupported {
            netns: netns(),
            interface,
            reason,
        },
        Unfit::Down => Error::Down {
            netns: netns(),
            interface,
        },
        Unfit::Duplicate(address) => Error::DuplicateAddress {
            netns: netns(),
            interface,
            address,
        },
    })?;
    let Some(found) = found else {
        return Ok(None);
    };
    let tap = Tap::create(&options.tap_name).map_err(|source| Error::Tap {
        netns: netns(),
        name: options.tap_name.clone(),
        source,
    })?;
    bring_up(&mut netlink, &tap, found.endpoint.mtu)
        .map_err(|error| refused(("bringing up the TAP", error)))?;
    let (counters, hooks) =
        link(&mut netlink, options.hook, found.index, tap.index).map_err(|source| Error::Bpf {
            netns: netns(),
            interface: found.endpoint.name.clone(),
            source,
        })?;
    Ok(Some(Joined {
        found,
        tap,
        counters,
        hooks,
    }))
}

/// Gives the TAP its MTU and brings it up, without an IPv6 address: with one,
/// the namespace's stack would solicit routers and neighbours of the guest.
fn bring_up(netlink: &mut Netlink, tap: &Tap, mtu: u32) -> Result<(), NetlinkError> {
    let request = |attributes| {
        let mut link = LinkMessage::default();
        link.header.index = tap.index;
        link.attributes = attributes;
        link
    };
    // Before it is up: that is when the address would be made.
    let mute = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])];
    let muted = netlink.execute(
        RouteNetlinkMessage::SetLink(request(vec![LinkAttribute::AfSpecUnspec(mute)])),
        0,
    );
    match muted {
        // A kernel without IPv6, or an interface it is disabled for.
        Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EINVAL)) => {}
        muted => muted?,
    }
    let mut up = request(vec![LinkAttribute::Mtu(mtu)]);
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    netlink.execute(RouteNetlinkMessage::SetLink(up), 0)
}

/// Loads and attaches the programs: what the guest sends first, the pod's
/// interface last, so that no frame is taken off it before all else stands.
fn link(
    netlink: &mut Netlink,
    kind: HookKind,
    interface: u32,
    tap: u32,
) -> Result<(CounterMap, Vec<Hook>), BpfError> {
    let directions = [(&FROM_GUEST, tap, interface), (&TO_GUEST, interface, tap)];
    let counters = CounterMap::create(directions.len() as u32)?;
    let hooks = directions
        .into_iter()
        .map(|(program, from, to)| Hook::attach(netlink, kind, program, &counters, from, to))
        .collect::<Result<_, _>>()?;
    Ok((counters, hooks))
}

impl Attachment {
    /// What the pod's interface has, for the guest.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Other interfaces in the namespace, which the guest does not get.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The TAP: frames to and from the guest, one per read or write, each
    /// after a header of [`VNET_HEADER_BYTES`](crate::VNET_HEADER_BYTES). Not
    /// blocking. `None` once taken.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }

    /// What stays if this process is killed; to be recorded for [`sweep`].
    pub fn remains(&self) -> Option<Remains> {
        // The pod's interface is the last that is hooked; the TAP's filter goes with it.
        self.hooks.last().and_then(Hook::remains)
    }

    /// What was handed over so far.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Counters, Error> {
        // `enum direction` of `bpf/link.c`.
        let read = |key| {
            let (packets, bytes) = self.counters.read(key).map_err(|source| Error::Bpf {
                netns: self.namespace.path().to_owned(),
                interface: self.endpoint.name.clone(),
                source,
            })?;
            Ok(Traffic { packets, bytes })
        };
        Ok(Counters {
            to_guest: read(0)?,
            from_guest: read(1)?,
        })
    }

    /// Undoes the link. The interface stays as the CNI plugin made it.
    ///
    /// # Errors
    ///
    /// When the filter on the pod's interface cannot be removed.
    pub fn detach(mut self) -> Result<(), Error> {
        self.unlink()
    }

    fn unlink(&mut self) -> Result<(), Error> {
        let mut hooks = std::mem::take(&mut self.hooks);
        // As when attaching: the pod's interface first.
        hooks.reverse();
        self.tap = None;
        if !hooks.iter().any(Hook::outlives_us) {
            return Ok(());
        }
        let refused = |source| Error::Netlink {
            netns: self.namespace.path().to_owned(),
            action: "removing the filters",
            source,
        };
        self.namespace.run(|| {
            let mut netlink = Netlink::open().map_err(refused)?;
            // Each of them, whatever becomes of the one before.
            hooks
                .into_iter()
                .map(|hook| hook.remove(&mut netlink).map_err(refused))
                .fold(Ok(()), Result::and)
        })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Nobody is left to tell; what stays goes with the interface.
        let _ = self.unlink();
    }
}
