//! Pod to pod, pod to host to pod; IPv4 and IPv6; DNS and MTU.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, Pod, handler, sh};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "network::pods_and_host_reach_each_other",
            pods_and_host_reach_each_other,
        ),
        trial(
            "network::dns_of_the_pod_is_in_the_container",
            dns_of_the_pod_is_in_the_container,
        ),
        trial(
            "network::guest_has_the_cnis_addresses_and_mtu",
            guest_has_the_cnis_addresses_and_mtu,
        ),
        trial("network::bulk_data_is_intact", bulk_data_is_intact),
    ]
}

const SERVE: [&str; 3] = [
    "sh",
    "-c",
    "mkdir /www; hostname > /www/index.html; httpd -f -p 80 -h /www",
];

fn url(address: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]/")
    } else {
        format!("http://{address}/")
    }
}

fn fetch(from: &Container, address: &str) -> String {
    from.sh(&format!(
        "for i in $(seq 1000); do wget -T 5 -qO- {} && exit; sleep 0.2; done; exit 1",
        url(address)
    ))
}

fn pods_and_host_reach_each_other() {
    let (one, two) = (Pod::run(), Pod::run());
    let server = one.start(BUSYBOX, &SERVE);
    let client = two.start(BUSYBOX, &["sleep", "1000"]);
    let name = server.sh("hostname");
    let addresses = one.addresses();
    assert_eq!(
        addresses.len(),
        2,
        "an IPv4 and an IPv6 address: {addresses:?}"
    );
    for address in &addresses {
        assert_eq!(fetch(&client, address), name, "pod to pod, {address}");
        let seen = sh(&format!(
            "curl -gsS --max-time 10 --retry 20 --retry-connrefused --retry-delay 1 '{}'",
            url(address)
        ));
        assert_eq!(seen, name, "host to pod, {address}");
    }
    // The gateway is the host's end of the bridge; the registry listens there.
    for gateway in [
        client.sh("ip route | awk '/^default/{print $3}'"),
        client.sh("ip -6 route | awk '/^default/{print $3}'"),
    ] {
        let ping = if gateway.contains(':') {
            "ping6"
        } else {
            "ping"
        };
        client.sh(&format!("{ping} -c 2 -W 5 {gateway}"));
    }
}

fn dns_of_the_pod_is_in_the_container() {
    let pod = Pod::with(
        handler(),
        json!({"dns_config": {"servers": ["192.0.2.53"], "searches": ["svc.test"], "options": ["ndots:3"]}}),
    );
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let resolv = container.sh("cat /etc/resolv.conf");
    for line in [
        "nameserver 192.0.2.53",
        "search svc.test",
        "options ndots:3",
    ] {
        assert!(resolv.contains(line), "{resolv}");
    }
}

fn guest_has_the_cnis_addresses_and_mtu() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let shown = container.sh("ip addr show eth0");
    for address in pod.addresses() {
        assert!(
            shown.contains(&format!("{address}/")),
            "{address} in {shown}"
        );
    }
    // Beside a runc pod of the same CNI configuration.
    let plain = Pod::with("runc", json!({}));
    let beside = plain.start(BUSYBOX, &["sleep", "1000"]);
    let mtu = "cat /sys/class/net/eth0/mtu";
    assert_eq!(container.sh(mtu), beside.sh(mtu));
    let routes = "ip route | sed 's/src .*//' ; ip -6 route | grep -v fe80 | sed 's/src .*//;s/ pref .*//;s/ proto [a-z]*//;s/ metric [0-9]*//'";
    assert_eq!(container.sh(routes), beside.sh(routes));
}

fn bulk_data_is_intact() {
    let (one, two) = (Pod::run(), Pod::run());
    let server = one.start(
        BUSYBOX,
        &[
            "sh",
            "-c",
            "mkdir /www; seq 1 160000 > /www/a; cat /www/a /www/a /www/a /www/a > /www/index.html; exec httpd -f -p 80 -h /www",
        ],
    );
    let client = two.start(BUSYBOX, &["sleep", "1000"]);
    let address = one.addresses().remove(0);
    // The server answers only once its file is whole.
    assert_eq!(
        fetch(&client, &address).len(),
        server.sh("cat /www/index.html").len()
    );
    let expected = server.sh("sha256sum < /www/index.html");
    assert_eq!(
        client.sh(&format!("wget -qO- http://{address}/ | sha256sum")),
        expected
    );
}
