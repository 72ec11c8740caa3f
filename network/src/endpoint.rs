//! What the pod's interface had, as plain data for the guest.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The pod's interface as the CNI plugin left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The interface's name, usually `eth0`.
    pub name: String,
    /// The hardware address that the guest's NIC must take over.
    pub mac: [u8; 6],
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// IPv4 and IPv6, without the link-local address that a kernel generates
    /// by itself.
    pub addresses: Vec<Cidr>,
    /// All unicast routes of the main table over this interface, those to the
    /// connected networks included, ordered so that each one's gateway is
    /// reachable by the ones before it.
    pub routes: Vec<Route>,
    /// Permanent neighbours: some plugins name a gateway that answers no ARP.
    pub neighbours: Vec<Neighbour>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; a prefix of 0 is the default route.
    pub destination: Cidr,
    /// Next hop. May be IPv6 for an IPv4 destination. `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// The interface's name.
    pub interface: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Path MTU in bytes; `None`: the interface's.
    pub mtu: Option<u32>,
    /// `rtm_scope` of rtnetlink(7); always 0 for IPv6.
    pub scope: u8,
    /// Priority, lower wins; 0 where the kernel holds none.
    pub metric: u32,
    /// The gateway is on the link whatever the addresses say (`RTNH_F_ONLINK`).
    pub onlink: bool,
}

/// A neighbour whose hardware address is fixed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its protocol address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// An address with the length of its network's prefix; `10.88.0.5/16` as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the prefix: at most 32, or 128 for IPv6.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// The text is not an address, a slash and a prefix length.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix length, like 10.88.0.5/16 or fd00::5/64")]
pub struct ParseCidrError(String);

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (ip, prefix) = text.split_once('/')?;
            let ip: IpAddr = ip.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let longest = if ip.is_ipv4() { 32 } else { 128 };
            (prefix <= longest).then_some(Self { ip, prefix })
        };
        parse().ok_or_else(|| ParseCidrError(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = ParseCidrError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_survive_text() {
        for text in ["10.88.0.5/16", "0.0.0.0/0", "fd00::5/64", "::/0"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn cidrs_that_are_none_are_refused() {
        for text in [
            "10.0.0.1",
            "10.0.0.1/33",
            "fd00::1/129",
            "eth0/8",
            "10.0.0.1/-1",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_survive_json() {
        let endpoint = Endpoint {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
            addresses: vec!["10.1.0.2/24".parse().unwrap()],
            routes: vec![Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
                interface: "eth0".into(),
                source: None,
                mtu: Some(1400),
                scope: 0,
                metric: 0,
                onlink: false,
            }],
            neighbours: vec![],
        };
        let json = serde_json::to_string(&endpoint).unwrap();
        assert!(json.contains("\"10.1.0.2/24\""), "{json}");
        assert_eq!(serde_json::from_str::<Endpoint>(&json).unwrap(), endpoint);
    }
}
