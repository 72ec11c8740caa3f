//! Network devices that a container takes over.

mod common;

use std::process::Command;

use common::Bundle;
use serde_json::json;

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A device of the host with an end that stays there. Dropping this removes both.
struct Device(String);

impl Device {
    fn new(number: u32) -> Self {
        let name = format!("d{}x{number}", std::process::id() % 1_000_000);
        ip(&format!("link add {name} type veth peer name {name}p"));
        let device = Self(name);
        for address in ["192.0.2.7/24 broadcast 192.0.2.255", "2001:db8::7/64"] {
            ip(&format!("addr add {address} dev {}", device.0));
        }
        ip(&format!("link set {} up", device.0));
        device
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "del", &format!("{}p", self.0)])
            .stderr(std::process::Stdio::null())
            .status();
    }
}

#[test]
fn the_loopback_of_a_new_namespace_is_up() {
    let bundle = Bundle::new("ping -c 1 -W 1 127.0.0.1 >/dev/null; ip -o link show lo");
    let text = bundle.run();
    assert!(text.contains("LOOPBACK,UP"), "{text}");
}

#[test]
fn a_device_moves_with_its_addresses() {
    let device = Device::new(1);
    let mut bundle = Bundle::new(
        "ip -o link show eth7; ip -o addr show eth7; cat /proc/sys/net/ipv4/conf/eth7/forwarding",
    );
    bundle.spec["linux"]["netDevices"] = json!({&device.0: {"name": "eth7"}});
    // A parameter of the device can be set: it is there by then.
    bundle.spec["linux"]["sysctl"] = json!({"net.ipv4.conf.eth7.forwarding": "1"});
    let text = bundle.run();
    assert!(text.contains(",UP"), "{text}");
    assert!(text.contains("inet 192.0.2.7/24 brd 192.0.2.255"), "{text}");
    assert!(text.contains("inet6 2001:db8::7/64"), "{text}");
    assert!(text.ends_with("\n1\n"), "{text}");
}

#[test]
fn a_device_comes_back_when_the_container_cannot_be_made() {
    let device = Device::new(2);
    let mut bundle = Bundle::new("true");
    bundle.spec["linux"]["netDevices"] = json!({&device.0: {"name": "eth7"}});
    bundle.spec["process"]["args"] = json!(["no-such-command"]);
    bundle.fail();
    let text = ip(&format!("-o addr show {}", device.0));
    assert!(text.contains("inet 192.0.2.7/24 brd 192.0.2.255"), "{text}");
    assert!(text.contains("inet6 2001:db8::7/64"), "{text}");
    assert!(ip(&format!("-o link show {}", device.0)).contains(",UP"));

    // One that is not there keeps the other from being lost too.
    bundle.spec["process"]["args"] = json!(["true"]);
    bundle.spec["linux"]["netDevices"] = json!({&device.0: {}, "zzz0": {}});
    let error = bundle.fail().0;
    assert!(
        error.starts_with("move the network device zzz0: No such device"),
        "{error}"
    );
    assert!(ip(&format!("-o addr show {}", device.0)).contains("192.0.2.7/24"));
}
