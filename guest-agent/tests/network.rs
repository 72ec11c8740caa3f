//! Addresses, routes and sysctls on a real network device.

mod common;

use common::{isolated, run};
use guest_agent::network::{Network, NetworkError, set_sysctl};
use protocol::guest::{Interface, Route};
use protocol::ids::FIRST_MAC;

const MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 0x58, 0, 5];

/// A device with that MAC and a kernel-like name, its link up.
fn add_device() {
    run(
        "ip",
        &[
            "link",
            "add",
            "veth7",
            "address",
            "0a:58:0a:58:00:05",
            "type",
            "veth",
            "peer",
            "name",
            "peer",
        ],
    );
    run("ip", &["link", "set", "peer", "up"]);
}

fn interface() -> Interface {
    Interface {
        name: "eth0".into(),
        mac: MAC.into(),
        mtu: 1450,
        addresses: vec!["10.88.0.5/16".into(), "fd00::5/64".into()],
        ..Default::default()
    }
}

fn route(destination: &str, gateway: &str) -> Route {
    Route {
        destination: destination.into(),
        gateway: gateway.into(),
        interface: "eth0".into(),
        ..Default::default()
    }
}

#[test]
fn an_interface_gets_what_the_pod_s_had() {
    isolated("an_interface_gets_what_the_pod_s_had", || {
        add_device();
        let interfaces = [interface()];
        // Gateways first: the order in the request must not matter.
        let mut default = route("0.0.0.0/0", "169.254.1.1");
        default.onlink = true;
        default.mtu = 1400;
        default.source = "10.88.0.5".into();
        let mut direct = route("10.99.0.0/16", "");
        direct.scope = 253;
        direct.metric = 7;
        let routes = [
            default,
            route("192.168.0.0/16", "10.99.0.1"),
            direct,
            route("::/0", "fd00::1"),
            // The kernel has made this one already.
            route("10.88.0.0/16", ""),
        ];
        let network = Network::prepare(&interfaces).unwrap();
        set_sysctl("net.ipv4.conf.eth0.rp_filter", "2").unwrap();
        network.bring_up(&routes).unwrap();

        let link = run("ip", &["-o", "link", "show", "dev", "eth0"]);
        assert!(link.contains("mtu 1450") && link.contains(",UP"), "{link}");
        assert!(run("ip", &["-o", "link", "show", "lo"]).contains(",UP"));
        let addresses = run("ip", &["-o", "addr", "show", "dev", "eth0"]);
        assert!(
            addresses.contains("inet 10.88.0.5/16 brd 10.88.255.255"),
            "{addresses}"
        );
        assert!(
            addresses.contains("inet6 fd00::5/64") && addresses.contains("nodad"),
            "{addresses}"
        );
        assert!(
            !addresses.contains("fd00::5/64 scope global tentative"),
            "{addresses}"
        );
        let v4 = run("ip", &["route"]);
        for expected in [
            "default via 169.254.1.1 dev eth0 proto static src 10.88.0.5 onlink mtu 1400",
            "10.99.0.0/16 dev eth0 proto static scope link metric 7",
            "192.168.0.0/16 via 10.99.0.1 dev eth0",
            "10.88.0.0/16 dev eth0 proto kernel",
        ] {
            assert!(v4.contains(expected), "{expected} is not in\n{v4}");
        }
        let v6 = run("ip", &["-6", "route"]);
        assert!(v6.contains("default via fd00::1 dev eth0"), "{v6}");
        let filter = std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter").unwrap();
        assert_eq!(filter.trim(), "2");

        // A second Configure finds everything there.
        Network::prepare(&interfaces)
            .unwrap()
            .bring_up(&routes)
            .unwrap();
    });
}

#[test]
fn a_new_device_gets_the_pod_s_mac() {
    isolated("a_new_device_gets_the_pod_s_mac", || {
        add_device();
        let first: Vec<String> = FIRST_MAC.iter().map(|byte| format!("{byte:02x}")).collect();
        run("ip", &["link", "set", "veth7", "address", &first.join(":")]);
        let interfaces = [interface()];
        // The second time it has it already.
        for _ in 0..2 {
            let network = Network::prepare(&interfaces).unwrap();
            network.bring_up(&[]).unwrap();
            let link = run("ip", &["-o", "link", "show", "dev", "eth0"]);
            assert!(
                link.contains("0a:58:0a:58:00:05") && link.contains("mtu 1450"),
                "{link}"
            );
        }
    });
}

#[test]
fn mistakes_are_named() {
    isolated("mistakes_are_named", || {
        let interfaces = [interface()];
        let missing = Network::prepare(&interfaces).err().unwrap();
        assert_eq!(
            missing.to_string(),
            "no network device has the MAC 0a:58:0a:58:00:05"
        );

        add_device();
        let network = Network::prepare(&interfaces).unwrap();
        let unreachable = network
            .bring_up(&[route("0.0.0.0/0", "192.0.2.1")])
            .unwrap_err();
        assert!(matches!(unreachable, NetworkError::System { .. }));
        assert!(
            unreachable.to_string().contains("192.0.2.1"),
            "{unreachable}"
        );
        let network = Network::prepare(&interfaces).unwrap();
        let mut elsewhere = route("0.0.0.0/0", "10.88.0.1");
        elsewhere.interface = "eth1".into();
        assert!(matches!(
            network.bring_up(&[elsewhere]),
            Err(NetworkError::Invalid(_))
        ));
    });
}
