//! What attaching reports about a pod's network, and what it refuses.

mod bed;

use std::fs;
use std::path::Path;

use bed::{Bed, MTU, Netns, POD_MAC, TAP};
use network::{Cidr, Endpoint, Error, Neighbour, Options, Route, TapError, attach};

fn endpoint(pod: &Netns) -> Endpoint {
    let attachment = attach(&pod.path(), &Options::default()).unwrap().unwrap();
    attachment.endpoint().clone()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn route(destination: &str) -> Route {
    Route {
        destination: cidr(destination),
        gateway: None,
        interface: "eth0".into(),
        source: None,
        mtu: None,
        scope: 0,
        metric: 0,
        onlink: false,
    }
}

const SCOPE_LINK: u8 = 253;

#[test]
fn all_that_the_plugin_configured_is_there() {
    let bed = Bed::new();
    bed.pod
        .ip("neigh add 169.254.1.1 lladdr 02:00:00:00:00:09 nud permanent dev eth0");
    let mut endpoint = endpoint(&bed.pod);
    // The kernel's order among equals is its own.
    endpoint.routes.sort_by_key(|route| {
        (
            route.gateway.is_some(),
            route.destination.ip,
            route.destination.prefix,
        )
    });
    let expected = Endpoint {
        name: "eth0".into(),
        mac: POD_MAC,
        mtu: MTU,
        addresses: vec![cidr("10.88.0.5/16"), cidr("fd88::5/64")],
        routes: vec![
            Route {
                source: Some("10.88.0.5".parse().unwrap()),
                scope: SCOPE_LINK,
                ..route("10.88.0.0/16")
            },
            Route {
                metric: 256,
                ..route("fd88::/64")
            },
            Route {
                gateway: Some("10.88.0.1".parse().unwrap()),
                mtu: Some(1400),
                ..route("0.0.0.0/0")
            },
            Route {
                gateway: Some("10.88.0.2".parse().unwrap()),
                source: Some("10.88.0.5".parse().unwrap()),
                metric: 7,
                ..route("10.99.0.0/16")
            },
            Route {
                gateway: Some("fd88::1".parse().unwrap()),
                mtu: Some(1410),
                metric: 1024,
                ..route("::/0")
            },
        ],
        neighbours: vec![Neighbour {
            ip: "169.254.1.1".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 9],
        }],
    };
    assert_eq!(endpoint, expected);
}

#[test]
fn gateways_off_the_network_are_told() {
    let bed = Bed::bare();
    bed.pod.ip("addr add 10.1.2.3/32 dev eth0");
    bed.pod
        .ip("route add default via 169.254.1.1 dev eth0 onlink");
    bed.pod.ip("route add 169.254.1.1 dev eth0 scope link");
    bed.pod
        .ip("route add 10.7.0.0/16 via inet6 fe80::1 dev eth0");
    let endpoint = endpoint(&bed.pod);
    assert_eq!(endpoint.addresses, [cidr("10.1.2.3/32")]);
    assert_eq!(
        endpoint.routes[0],
        Route {
            scope: SCOPE_LINK,
            ..route("169.254.1.1/32")
        }
    );
    assert!(endpoint.routes.contains(&Route {
        gateway: Some("169.254.1.1".parse().unwrap()),
        onlink: true,
        ..route("0.0.0.0/0")
    }));
    assert!(endpoint.routes.contains(&Route {
        gateway: Some("fe80::1".parse().unwrap()),
        ..route("10.7.0.0/16")
    }));
}

#[test]
fn multipath_and_point_to_point_are_reduced_to_the_interface() {
    let bed = Bed::bare();
    bed.pod.ip("link add net1 type bridge");
    bed.pod.ip("link set net1 up");
    bed.pod.ip("addr add 10.2.0.1/24 dev net1");
    bed.pod.ip("addr add 10.1.0.2 peer 10.1.0.1/32 dev eth0");
    bed.pod.ip("route add default via 10.1.0.1 dev eth0");
    bed.pod
        .ip("route add 10.9.0.0/16 nexthop via 10.2.0.2 dev net1 nexthop via 10.1.0.1 dev eth0");
    let endpoint = endpoint(&bed.pod);
    assert_eq!(endpoint.addresses, [cidr("10.1.0.2/32")]);
    assert!(endpoint.routes.contains(&Route {
        source: Some("10.1.0.2".parse().unwrap()),
        scope: SCOPE_LINK,
        ..route("10.1.0.1/32")
    }));
    assert!(endpoint.routes.contains(&Route {
        gateway: Some("10.1.0.1".parse().unwrap()),
        ..route("10.9.0.0/16")
    }));
}

#[test]
fn link_local_addresses_of_the_plugin_stay() {
    let bed = Bed::bare();
    bed.pod.ip("addr add fe80::5/64 dev eth0 nodad");
    assert_eq!(endpoint(&bed.pod).addresses, [cidr("fe80::5/64")]);
}

#[test]
fn other_tables_and_kinds_of_routes_are_not_the_guests() {
    let bed = Bed::new();
    bed.pod
        .ip("route add 10.5.0.0/16 via 10.88.0.1 dev eth0 table 100");
    bed.pod.ip("route add blackhole 10.6.0.0/16");
    let routes = endpoint(&bed.pod).routes;
    assert_eq!(routes.len(), 5, "{routes:?}");
}

#[test]
fn of_several_interfaces_the_one_with_the_default_route_is_taken() {
    let bed = Bed::new();
    // Made earlier in the alphabet and later in time; neither decides.
    bed.pod.ip("link add aaa type bridge");
    bed.pod.ip("link set aaa up");
    bed.pod.ip("addr add 10.2.0.1/24 dev aaa");
    bed.pod.ip("link add down0 type bridge");
    let attachment = attach(&bed.pod.path(), &Options::default())
        .unwrap()
        .unwrap();
    assert_eq!(attachment.endpoint().name, "eth0");
    assert_eq!(attachment.left_out(), ["aaa"]);
    drop(attachment);
    bed.pod.await_gone(TAP);
    bed.pod.ip("route del default");
    bed.pod.ip("-6 route del default");
    bed.pod.ip("route add default via 10.2.0.2 dev aaa");
    assert_eq!(endpoint(&bed.pod).name, "aaa");
}

#[test]
fn a_namespace_with_only_loopback_has_no_endpoint() {
    let pod = Netns::new("lo");
    assert!(attach(&pod.path(), &Options::default()).unwrap().is_none());
}

#[test]
fn a_missing_namespace_is_named() {
    let path = Path::new("/run/netns/joeytest-no-such");
    let error = attach(path, &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains("joeytest-no-such"), "{error}");
}

#[test]
fn a_file_that_is_no_namespace_is_refused() {
    let name = format!("joeytest-{}-plain", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, "").unwrap();
    let error = attach(&path, &Options::default()).unwrap_err();
    fs::remove_file(&path).unwrap();
    assert!(matches!(error, Error::NotNamespace { .. }), "{error:?}");
}

#[test]
fn the_namespace_of_the_caller_is_refused() {
    let error = attach(Path::new("/proc/self/ns/net"), &Options::default()).unwrap_err();
    assert!(matches!(error, Error::OwnNamespace { .. }), "{error:?}");
}

#[test]
fn an_interface_that_is_down_is_refused() {
    let bed = Bed::new();
    bed.pod.ip("link set eth0 down");
    let error = attach(&bed.pod.path(), &Options::default()).unwrap_err();
    assert!(
        matches!(&error, Error::Down { interface, .. } if interface == "eth0"),
        "{error:?}"
    );
}

#[test]
fn an_interface_that_is_not_ethernet_is_refused() {
    let pod = Netns::new("tun");
    pod.ip("tuntap add mode tun name tun0");
    pod.ip("addr add 10.1.0.1/24 dev tun0");
    pod.ip("link set tun0 up");
    let error = attach(&pod.path(), &Options::default()).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { interface, .. } if interface == "tun0"),
        "{error:?}"
    );
}

#[test]
fn an_address_that_is_in_use_elsewhere_is_refused() {
    let bed = Bed::bare();
    bed.host.ip("addr add fd88::5/64 dev veth0 nodad");
    bed.pod.ip("addr add fd88::5/64 dev eth0");
    // Waits for the end of duplicate address detection.
    let deadline = std::time::Instant::now() + bed::PATIENCE;
    while !bed.pod.ip("-6 addr show dev eth0").contains("dadfailed") {
        assert!(std::time::Instant::now() < deadline, "no duplicate found");
    }
    let error = attach(&bed.pod.path(), &Options::default()).unwrap_err();
    assert!(
        matches!(&error, Error::DuplicateAddress { address, .. } if address.to_string() == "fd88::5"),
        "{error:?}"
    );
}

#[test]
fn a_namespace_is_attached_only_once() {
    let bed = Bed::new();
    let options = Options::default();
    let first = attach(&bed.pod.path(), &options).unwrap().unwrap();
    let error = attach(&bed.pod.path(), &options).unwrap_err();
    assert!(
        matches!(&error, Error::Tap { name, source: TapError::Exists, .. } if *name == options.tap_name),
        "{error:?}"
    );
    drop(first);
    bed.pod.await_gone(TAP);
    attach(&bed.pod.path(), &options).unwrap().unwrap();
}

#[test]
fn the_callers_namespace_never_changes() {
    let here = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = here();
    let bed = Bed::new();
    let attachment = attach(&bed.pod.path(), &Options::default())
        .unwrap()
        .unwrap();
    assert_eq!(here(), before);
    attach(&bed.pod.path(), &Options::default()).unwrap_err();
    assert_eq!(here(), before);
    attachment.detach().unwrap();
    assert_eq!(here(), before);
}
