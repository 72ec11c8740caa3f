//! What the CNI plugin configured: which interface is the pod's, and with
//! which addresses, routes and neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::endpoint::{Cidr, Endpoint, Neighbour, Route};
use crate::netlink::{Netlink, NetlinkError};

/// The tables of a namespace, as rtnetlink gives them.
pub(crate) struct Tables {
    links: Vec<LinkMessage>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<NeighbourMessage>,
}

/// The pod's interface.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) endpoint: Endpoint,
    /// Other interfaces that a pod could use and this guest will not have.
    pub(crate) left_out: Vec<String>,
}

/// Why an interface cannot be the guest's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// A virtio NIC cannot stand in for it.
    Kind(&'static str),
    /// It is down.
    Down,
    /// Duplicate address detection failed for this address.
    Duplicate(IpAddr),
}

impl Tables {
    /// Reads the tables of the namespace that `netlink` was opened in.
    pub(crate) fn read(netlink: &mut Netlink) -> Result<Self, (&'static str, NetlinkError)> {
        let mut links = LinkMessage::default();
        // The counters are most of a link's message and nobody reads them.
        links
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut dump = |action, request| netlink.dump(&request).map_err(|error| (action, error));
        Ok(Self {
            links: dump(
                "listing the interfaces",
                RouteNetlinkMessage::GetLink(links),
            )?
            .into_iter()
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect(),
            addresses: dump(
                "listing the addresses",
                RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            )?
            .into_iter()
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewAddress(address) => Some(address),
                _ => None,
            })
            .collect(),
            routes: dump(
                "listing the routes",
                RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            )?
            .into_iter()
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })
            .collect(),
            neighbours: dump(
                "listing the neighbours",
                RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            )?
            .into_iter()
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
                _ => None,
            })
            .collect(),
        })
    }

    /// The interface the guest gets: the one with the default route, IPv4
    /// before IPv6, else the first. `None` where there is only loopback.
    ///
    /// Interfaces that appear in every namespace by themselves, such as
    /// `tunl0` or `gretap0`, are down and have no addresses; they do not count.
    pub(crate) fn find(&self) -> Result<Option<Found>, (String, Unfit)> {
        let mut candidates: Vec<&LinkMessage> = self
            .links
            .iter()
            .filter(|link| !link.header.flags.contains(LinkFlags::Loopback))
            .filter(|link| {
                link.header.flags.contains(LinkFlags::Up) || self.has_address(link.header.index)
            })
            .collect();
        let default = self.default_interface();
        candidates.sort_by_key(|link| (Some(link.header.index) != default, link.header.index));
        let Some((link, others)) = candidates.split_first() else {
            return Ok(None);
        };
        let endpoint = self
            .endpoint(link)
            .map_err(|unfit| (interface_name(link), unfit))?;
        Ok(Some(Found {
            index: link.header.index,
            endpoint,
            left_out: others.iter().map(|link| interface_name(link)).collect(),
        }))
    }

    fn has_address(&self, index: u32) -> bool {
        self.addresses
            .iter()
            .any(|address| address.header.index == index)
    }

    /// The interface of the default route that wins.
    fn default_interface(&self) -> Option<u32> {
        self.routes
            .iter()
            .filter(|route| is_unicast_of_main(route))
            .filter(|route| route.header.destination_prefix_length == 0)
            .filter_map(|route| {
                let route_metric = metric(route);
                let ipv6 = route.header.address_family != AddressFamily::Inet;
                let (interface, _) = hops(route).into_iter().next()?;
                Some((ipv6, route_metric, interface))
            })
            .min()
            .map(|(_, _, interface)| interface)
    }

    fn endpoint(&self, link: &LinkMessage) -> Result<Endpoint, Unfit> {
        if link.header.link_layer_type != LinkLayerType::Ether {
            return Err(Unfit::Kind("is not an Ethernet interface"));
        }
        if !link.header.flags.contains(LinkFlags::Up) {
            return Err(Unfit::Down);
        }
        let index = link.header.index;
        let name = interface_name(link);
        let mut mac = None;
        let mut mtu = 0;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(address) => mac = hardware_address(address),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                _ => {}
            }
        }
        let mac = mac
            .filter(|mac| *mac != [0; 6] && mac[0] & 1 == 0)
            .ok_or(Unfit::Kind("has no unicast hardware address"))?;
        let mut addresses = Vec::new();
        for message in &self.addresses {
            if message.header.index == index {
                addresses.extend(address(message, mac)?);
            }
        }
        let mut routes: Vec<Route> = self
            .routes
            .iter()
            .filter_map(|message| route(message, index, &name))
            .collect();
        // A gateway must be reachable by a route that is already there.
        routes.sort_by_key(|route| (route.gateway.is_some(), !route.onlink));
        Ok(Endpoint {
            name,
            mac,
            mtu,
            addresses,
            routes,
            neighbours: self
                .neighbours
                .iter()
                .filter(|message| message.header.ifindex == index)
                .filter_map(neighbour)
                .collect(),
        })
    }
}

fn interface_name(link: &LinkMessage) -> String {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
        .unwrap_or_else(|| format!("interface {}", link.header.index))
}

fn hardware_address(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

/// The address, unless the guest's kernel will make it by itself.
fn address(message: &AddressMessage, mac: [u8; 6]) -> Result<Option<Cidr>, Unfit> {
    let mut network = None;
    let mut local = None;
    let mut protocol = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(address) => network = Some(*address),
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Protocol(value) => protocol = Some(value),
            _ => {}
        }
    }
    let cidr = match (local, network) {
        // Point to point: the prefix is the peer's, which has a route.
        (Some(ip), Some(peer)) if ip != peer => Cidr {
            ip,
            prefix: if ip.is_ipv4() { 32 } else { 128 },
        },
        (Some(ip), _) | (None, Some(ip)) => Cidr {
            ip,
            prefix: message.header.prefix_len,
        },
        (None, None) => return Ok(None),
    };
    let IpAddr::V6(ip) = cidr.ip else {
        return Ok(Some(cidr));
    };
    let generated = protocol == Some(&AddressProtocol::LinkLocal) || ip == link_local(mac);
    // The flag means "secondary" for IPv4, hence only here.
    let temporary = flags.contains(AddressFlags::Secondary);
    if (ip.is_unicast_link_local() && generated) || temporary {
        return Ok(None);
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return Err(Unfit::Duplicate(cidr.ip));
    }
    Ok(Some(cidr))
}

/// The link-local address that RFC 4291 derives from a hardware address.
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[0xfe, 0x80]);
    bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    bytes.into()
}

fn is_unicast_of_main(message: &RouteMessage) -> bool {
    let table = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(u32::from(message.header.table));
    table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && message.header.kind == RouteType::Unicast
        && !message.header.flags.contains(RouteFlags::Cloned)
}

fn metric(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .unwrap_or(0)
}

/// One way a route leads: the gateway, and whether it is on the link.
struct Hop {
    gateway: Option<IpAddr>,
    onlink: bool,
}

/// A route's interfaces and the hop over each; several for a multipath route.
fn hops(message: &RouteMessage) -> Vec<(u32, Hop)> {
    let multipath = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    if let Some(several) = multipath {
        let hop = |hop: &RouteNextHop| {
            let way = Hop {
                gateway: gateway(&hop.attributes),
                onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
            };
            (hop.interface_index, way)
        };
        return several.iter().map(hop).collect();
    }
    let hop = |interface| {
        let way = Hop {
            gateway: gateway(&message.attributes),
            onlink: message.header.flags.contains(RouteFlags::Onlink),
        };
        (interface, way)
    };
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(interface) => Some(hop(*interface)),
            _ => None,
        })
        .into_iter()
        .collect()
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        // An IPv4 route over an IPv6 gateway.
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// The route as the guest needs it, if it leads over the interface `index`.
fn route(message: &RouteMessage, index: u32, name: &str) -> Option<Route> {
    if !is_unicast_of_main(message) {
        return None;
    }
    // A guest with one interface has no use for the others of a multipath.
    let (_, hop) = hops(message)
        .into_iter()
        .find(|(interface, _)| *interface == index)?;
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route {
        destination: Cidr {
            ip: unspecified,
            prefix: message.header.destination_prefix_length,
        },
        gateway: hop.gateway,
        interface: name.to_owned(),
        source: None,
        mtu: None,
        scope: message.header.scope.into(),
        metric: metric(message),
        onlink: hop.onlink,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.ip = ip(address)?,
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(bytes) => Some(*bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // Comes with the link-local address, which the guest makes by itself.
    let link_local = matches!(route.destination.ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    (message.header.protocol != RouteProtocol::Kernel || !link_local).then_some(route)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut ip = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                ip = Some((*address).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                ip = Some((*address).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = hardware_address(bytes),
            _ => {}
        }
    }
    Some(Neighbour { ip: ip?, mac: mac? })
}
