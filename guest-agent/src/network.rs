//! The pod's network as the shim describes it: interfaces, addresses, routes, names.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use protocol::guest::{Dns, Interface, Route};
use protocol::ids::FIRST_MAC;
use thiserror::Error;

use crate::netlink::{CREATE, EXCLUSIVE, Netlink, Request};

/// Network devices as the kernel lists them.
const CLASS_NET: &str = "/sys/class/net";
/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
/// `IFNAMSIZ` without the final zero.
const MAX_NAME: usize = 15;

/// Why the network could not be set up.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A part of the request cannot be understood.
    #[error("{0}")]
    Invalid(String),
    /// No device has the MAC.
    #[error("no network device has the MAC {0}")]
    NoDevice(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The step and what it was for.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::System { what, source }
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Cidr {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
            let longest = if address.is_ipv4() { 32 } else { 128 };
            (prefix <= longest).then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| {
            NetworkError::Invalid(format!("{text:?} is no address with a prefix length"))
        })
    }
}

fn address(text: &str) -> Result<IpAddr, NetworkError> {
    text.parse()
        .map_err(|_| NetworkError::Invalid(format!("{text:?} is no address")))
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The last address of an IPv4 network that has room for one.
fn broadcast(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(prefix.into())?;
    (prefix < 31).then(|| Ipv4Addr::from_bits(address.to_bits() | hosts))
}

fn link_request(index: u32, up: bool) -> Request {
    // struct ifinfomsg: family, pad, type (2), index (4), flags (4), which flags (4).
    let flags = if up { IFF_UP } else { 0 };
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&flags.to_ne_bytes());
    Request::new(RTM_NEWLINK, 0, &body)
}

fn address_request(index: u32, cidr: Cidr) -> Request {
    // struct ifaddrmsg: family, prefix length, flags, scope, index (4).
    // The CNI plugin has made sure that the address is not a duplicate.
    let flags = if cidr.address.is_ipv6() {
        IFA_F_NODAD
    } else {
        0
    };
    let mut body = [family(cidr.address), cidr.prefix, flags, 0, 0, 0, 0, 0];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut request = Request::new(RTM_NEWADDR, CREATE | EXCLUSIVE, &body);
    let bytes = octets(cidr.address);
    request
        .attribute(IFA_LOCAL, &bytes)
        .attribute(IFA_ADDRESS, &bytes);
    if let IpAddr::V4(address) = cidr.address
        && let Some(broadcast) = broadcast(address, cidr.prefix)
    {
        request.attribute(IFA_BROADCAST, &broadcast.octets());
    }
    request
}

fn route_request(route: &Route, index: u32) -> Result<Request, NetworkError> {
    let destination: Cidr = route.destination.parse()?;
    let scope = u8::try_from(route.scope).map_err(|_| {
        NetworkError::Invalid(format!(
            "route {}: {} is no scope",
            route.destination, route.scope
        ))
    })?;
    // struct rtmsg: family, prefix length, source prefix, tos, table, protocol, scope,
    // type, flags (4).
    let mut body = [0; 12];
    body[0] = family(destination.address);
    body[1] = destination.prefix;
    body[4..8].copy_from_slice(&[RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST]);
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    let mut request = Request::new(RTM_NEWROUTE, CREATE | EXCLUSIVE, &body);
    if destination.prefix > 0 {
        request.attribute(RTA_DST, &octets(destination.address));
    }
    request.attribute(RTA_OIF, &index.to_ne_bytes());
    if !route.gateway.is_empty() {
        let gateway = address(&route.gateway)?;
        if gateway.is_ipv4() == destination.address.is_ipv4() {
            request.attribute(RTA_GATEWAY, &octets(gateway));
        } else {
            // An IPv4 network behind an IPv6 router: struct rtvia, family (2) and address.
            let mut via = u16::from(family(gateway)).to_ne_bytes().to_vec();
            via.extend(octets(gateway));
            request.attribute(RTA_VIA, &via);
        }
    }
    if !route.source.is_empty() {
        request.attribute(RTA_PREFSRC, &octets(address(&route.source)?));
    }
    if route.metric > 0 {
        request.attribute(RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    if route.mtu > 0 {
        request.nested(RTA_METRICS, RTAX_MTU, &route.mtu.to_ne_bytes());
    }
    Ok(request)
}

/// What the kernel calls a device.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    name: String,
    index: u32,
}

/// Finds the device with this MAC in `class`, a directory like /sys/class/net.
fn find_device(class: &Path, mac: &[u8]) -> Result<Option<Device>, NetworkError> {
    let wanted = text_of(mac);
    let list = || system(format!("list {}", class.display()));
    for entry in fs::read_dir(class).map_err(list())? {
        let entry = entry.map_err(list())?;
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("address").trim() != wanted {
            continue;
        }
        if let (Ok(name), Ok(index)) = (
            entry.file_name().into_string(),
            read("ifindex").trim().parse(),
        ) {
            return Ok(Some(Device { name, index }));
        }
    }
    Ok(None)
}

/// A MAC as the kernel writes it.
fn text_of(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

fn no_device(mac: &[u8]) -> NetworkError {
    NetworkError::NoDevice(text_of(mac))
}

/// Done, or done before.
fn or_exists(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// A configured interface's index.
struct Configured<'a> {
    interface: &'a Interface,
    index: u32,
}

/// Brings `lo` up, names and sizes the interfaces. They are not up yet: see
/// [`Network::bring_up`].
pub struct Network<'a> {
    netlink: Netlink,
    interfaces: Vec<Configured<'a>>,
}

impl<'a> Network<'a> {
    /// Finds the interfaces' devices by their MAC, gives them their names, MACs and sizes.
    pub fn prepare(interfaces: &'a [Interface]) -> Result<Self, NetworkError> {
        let mut netlink = Netlink::open().map_err(system("open a netlink socket"))?;
        netlink
            .call(&mut link_request(LOOPBACK, true))
            .map_err(system("set lo up"))?;
        let mut configured = Vec::with_capacity(interfaces.len());
        for interface in interfaces {
            let name = &interface.name;
            if name.is_empty()
                || name.len() > MAX_NAME
                || name.contains(['/', '\0'])
                || name.starts_with('.')
            {
                return Err(NetworkError::Invalid(format!(
                    "{name:?} is no name of an interface"
                )));
            }
            let class = Path::new(CLASS_NET);
            let device = find_device(class, &interface.mac)?;
            let first = || find_device(class, &FIRST_MAC);
            let (device, fresh) = match device {
                Some(device) => (device, false),
                None => (first()?.ok_or_else(|| no_device(&interface.mac))?, true),
            };
            let mut request = link_request(device.index, false);
            if fresh {
                request.attribute(IFLA_ADDRESS, &interface.mac);
            }
            if device.name != *name {
                request.attribute(IFLA_IFNAME, format!("{name}\0").as_bytes());
            }
            if interface.mtu > 0 {
                request.attribute(IFLA_MTU, &interface.mtu.to_ne_bytes());
            }
            netlink.call(&mut request).map_err(system(format!(
                "name {} {name}, with MTU {}",
                device.name, interface.mtu
            )))?;
            configured.push(Configured {
                interface,
                index: device.index,
            });
        }
        Ok(Self {
            netlink,
            interfaces: configured,
        })
    }

    /// Sets the interfaces up and adds their addresses, then the routes: first those
    /// to networks on the link, behind which the others' gateways are.
    pub fn bring_up(mut self, routes: &[Route]) -> Result<(), NetworkError> {
        for Configured { interface, index } in &self.interfaces {
            let name = &interface.name;
            self.netlink
                .call(&mut link_request(*index, true))
                .map_err(system(format!("set {name} up")))?;
            for text in &interface.addresses {
                let mut request = address_request(*index, text.parse()?);
                or_exists(self.netlink.call(&mut request))
                    .map_err(system(format!("add address {text} to {name}")))?;
            }
        }
        let (direct, behind): (Vec<_>, Vec<_>) =
            routes.iter().partition(|route| route.gateway.is_empty());
        for route in direct.into_iter().chain(behind) {
            let found = self
                .interfaces
                .iter()
                .find(|known| known.interface.name == route.interface);
            let index = found.map(|known| known.index).ok_or_else(|| {
                NetworkError::Invalid(format!(
                    "route {}: there is no interface {:?}",
                    route.destination, route.interface
                ))
            })?;
            let mut request = route_request(route, index)?;
            or_exists(self.netlink.call(&mut request)).map_err(system(format!(
                "add route {} via {:?} on {}",
                route.destination, route.gateway, route.interface
            )))?;
        }
        Ok(())
    }
}

/// Sets a kernel parameter below /proc/sys.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path =
        sysctl_path(name).ok_or_else(|| NetworkError::Invalid(format!("{name:?} is no sysctl")))?;
    fs::write(&path, value).map_err(system(format!("set sysctl {name} to {value:?}")))
}

/// The file of a kernel parameter. Whichever of `.` and `/` comes first separates;
/// after a `.` the `/` stands for a dot in a name ("net.ipv4.conf.eth0/1.forwarding").
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let swap = |character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('.'));
    let relative: String = if dotted {
        name.chars().map(swap).collect()
    } else {
        name.into()
    };
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    relative
        .split('/')
        .all(plain)
        .then(|| Path::new("/proc/sys").join(&relative))
}

/// The text of a resolv.conf.
pub fn resolv_conf(dns: &Dns) -> Result<String, NetworkError> {
    let mut text = String::new();
    for server in &dns.servers {
        text.push_str(&format!("nameserver {}\n", address(server)?));
    }
    for (keyword, words) in [("search", &dns.searches), ("options", &dns.options)] {
        if let Some(word) = words
            .iter()
            .find(|word| word.is_empty() || word.contains(char::is_whitespace))
        {
            return Err(NetworkError::Invalid(format!(
                "{word:?} is no word of a DNS {keyword} list"
            )));
        }
        if !words.is_empty() {
            text.push_str(&format!("{keyword} {}\n", words.join(" ")));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_prefix_that_fits() {
        let cidr: Cidr = "10.88.0.5/16".parse().unwrap();
        assert_eq!(
            (cidr.address, cidr.prefix),
            ("10.88.0.5".parse().unwrap(), 16)
        );
        assert!("fd00::5/64".parse::<Cidr>().is_ok());
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "fd00::/129",
            "10.0.0.1/-1",
            "host/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn broadcast_addresses_exist_where_there_is_room() {
        let address = Ipv4Addr::new(10, 88, 3, 5);
        assert_eq!(
            broadcast(address, 16),
            Some(Ipv4Addr::new(10, 88, 255, 255))
        );
        assert_eq!(broadcast(address, 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!(
            (broadcast(address, 31), broadcast(address, 32)),
            (None, None)
        );
    }

    #[test]
    fn devices_are_found_by_mac() {
        let class = tempfile::tempdir().unwrap();
        for (name, mac, index) in [
            ("lo", "00:00:00:00:00:00", 1),
            ("eth3", "0a:58:0a:58:00:05", 7),
        ] {
            let device = class.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("address"), format!("{mac}\n")).unwrap();
            fs::write(device.join("ifindex"), format!("{index}\n")).unwrap();
        }
        let found = find_device(class.path(), &[0x0a, 0x58, 0x0a, 0x58, 0, 5]).unwrap();
        let found = found.unwrap();
        assert_eq!((found.name.as_str(), found.index), ("eth3", 7));
        assert_eq!(find_device(class.path(), &[1; 6]).unwrap(), None);
        assert_eq!(
            no_device(&[1; 6]).to_string(),
            "no network device has the MAC 01:01:01:01:01:01"
        );
    }

    #[test]
    fn routes_are_checked() {
        let route = |destination: &str, gateway: &str, scope| Route {
            destination: destination.into(),
            gateway: gateway.into(),
            scope,
            ..Default::default()
        };
        assert!(route_request(&route("0.0.0.0/0", "10.88.0.1", 0), 2).is_ok());
        assert!(route_request(&route("10.0.0.0/8", "fe80::1", 0), 2).is_ok());
        assert!(route_request(&route("default", "10.88.0.1", 0), 2).is_err());
        assert!(route_request(&route("0.0.0.0/0", "gateway", 0), 2).is_err());
        assert!(route_request(&route("0.0.0.0/0", "", 256), 2).is_err());
    }

    #[test]
    fn sysctls_stay_below_proc_sys() {
        let path = |name| sysctl_path(name).map(|path| path.to_str().unwrap().to_owned());
        let expect = |text: &str| Some(format!("/proc/sys/{text}"));
        assert_eq!(path("net.core.somaxconn"), expect("net/core/somaxconn"));
        assert_eq!(path("net/core/somaxconn"), expect("net/core/somaxconn"));
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding"),
            expect("net/ipv4/conf/eth0.1/forwarding")
        );
        for name in [
            "",
            "/etc/passwd",
            "net/../../etc/passwd",
            "net..core",
            "a.b//../c",
        ] {
            assert_eq!(path(name), None, "{name}");
        }
    }

    #[test]
    fn resolv_conf_has_one_line_a_server() {
        let mut dns = Dns {
            servers: vec!["10.96.0.10".into(), "fd00::a".into()],
            searches: vec![
                "default.svc.cluster.local".into(),
                "svc.cluster.local".into(),
            ],
            options: vec!["ndots:5".into()],
            ..Default::default()
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "nameserver 10.96.0.10\nnameserver fd00::a\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:5\n"
        );
        dns.searches.push("a\nnameserver 6.6.6.6".into());
        assert!(resolv_conf(&dns).is_err());
    }
}
